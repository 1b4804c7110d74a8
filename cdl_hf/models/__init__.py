"""What a checkpoint is: configuration, model, prompt pools and KD branches. Imported when first used."""

from ..lazy import lazy_attributes

_HOME = {
    "PretrainedBackbone": "backbones",
    "PromptViTConfig": "configuration_prompt_vit",
    "PromptViTForImageClassification": "modeling_prompt_vit",
    "PromptViTOutput": "modeling_prompt_vit",
    "load_backbone": "backbones",
}
__all__ = list(_HOME)
__getattr__ = lazy_attributes(__name__, _HOME)
