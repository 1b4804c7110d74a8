"""Continual distillation learning with prompted Vision Transformers.

`import cdl_hf` imports neither torch nor transformers, and still makes the models known to transformers: its auto
classes and pipelines load them, whether transformers is imported before or after.
"""

from typing import TYPE_CHECKING

from . import auto_classes
from .lazy import lazy_attributes
from .version import __version__

if TYPE_CHECKING:
    from .arguments.config import CDLConfig
    from .data import TaskStream, load_image_dataset
    from .distillation import METHODS
    from .models import PromptViTConfig, PromptViTForImageClassification, load_backbone
    from .training import ContinualCallback, ContinualDistillationTrainer
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "CDLConfig": "arguments.config",
            "ContinualCallback": "training",
            "ContinualDistillationTrainer": "training",
            "METHODS": "distillation",
            "PromptViTConfig": "models",
            "PromptViTForImageClassification": "models",
            "TaskStream": "data",
            "load_backbone": "models",
            "load_image_dataset": "data",
        },
    )

__all__ = [
    "METHODS",
    "CDLConfig",
    "ContinualCallback",
    "ContinualDistillationTrainer",
    "PromptViTConfig",
    "PromptViTForImageClassification",
    "TaskStream",
    "__version__",
    "load_backbone",
    "load_image_dataset",
]

auto_classes.register()
