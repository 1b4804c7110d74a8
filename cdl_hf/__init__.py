"""Continual distillation learning with prompted Vision Transformers.

`import cdl_hf` is light, so that a command line answers at once, and makes the models known to transformers: its auto
classes and pipelines load them, whether transformers is imported before or after.
"""

from .lazy import after_import, lazy_attributes

__version__ = "0.1.0"

_HOME = {
    "ContinualDistillationTrainer": "training",
    "PromptViTConfig": "models",
    "PromptViTForImageClassification": "models",
    "TaskStream": "data",
    "load_backbone": "models",
    "load_image_dataset": "data",
}
__all__ = ["__version__", *_HOME]
__getattr__ = lazy_attributes(__name__, _HOME)


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .models.configuration_prompt_vit import PromptViTConfig

    AutoConfig.register(PromptViTConfig.model_type, PromptViTConfig)


def _register_model() -> None:
    from transformers.models.auto.modeling_auto import AutoModelForImageClassification

    from .models.configuration_prompt_vit import PromptViTConfig
    from .models.modeling_prompt_vit import PromptViTForImageClassification

    AutoModelForImageClassification.register(PromptViTConfig, PromptViTForImageClassification)


after_import("transformers.models.auto.configuration_auto", _register_config)
after_import("transformers.models.auto.modeling_auto", _register_model)
