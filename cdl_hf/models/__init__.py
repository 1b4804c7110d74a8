"""Models: configuration, backbones, prompt pools, heads, classifiers and KD branches."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .backbones import PretrainedBackbone, load_backbone
    from .configuration_prompt_vit import PromptViTConfig
    from .modeling_prompt_vit import PromptViTForImageClassification, PromptViTOutput
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "PretrainedBackbone": "backbones",
            "PromptViTConfig": "configuration_prompt_vit",
            "PromptViTForImageClassification": "modeling_prompt_vit",
            "PromptViTOutput": "modeling_prompt_vit",
            "load_backbone": "backbones",
        },
    )

__all__ = [
    "PretrainedBackbone",
    "PromptViTConfig",
    "PromptViTForImageClassification",
    "PromptViTOutput",
    "load_backbone",
]
