"""What a checkpoint is: configuration, model, prompt pools and KD branches."""

from transformers import AutoConfig, AutoModelForImageClassification

from .backbones import PretrainedBackbone, load_backbone
from .configuration_prompt_vit import PromptViTConfig
from .modeling_prompt_vit import PromptViTForImageClassification, PromptViTOutput

AutoConfig.register(PromptViTConfig.model_type, PromptViTConfig)
AutoModelForImageClassification.register(PromptViTConfig, PromptViTForImageClassification)

__all__ = [
    "PretrainedBackbone",
    "PromptViTConfig",
    "PromptViTForImageClassification",
    "PromptViTOutput",
    "load_backbone",
]
