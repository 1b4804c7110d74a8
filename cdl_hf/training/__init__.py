"""The continual training of teacher and student with Accelerate. Importing `arguments` imports nothing heavy."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .arguments import CDLConfig
    from .callbacks import ContinualCallback, ShowAccuracy
    from .interruptions import Stopped
    from .run_folder import RunFolder
    from .stage import StageError
    from .trainer import ContinualDistillationTrainer
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "CDLConfig": "arguments",
            "ContinualCallback": "callbacks",
            "ContinualDistillationTrainer": "trainer",
            "RunFolder": "run_folder",
            "ShowAccuracy": "callbacks",
            "StageError": "stage",
            "Stopped": "interruptions",
        },
    )

__all__ = [
    "CDLConfig",
    "ContinualCallback",
    "ContinualDistillationTrainer",
    "RunFolder",
    "ShowAccuracy",
    "StageError",
    "Stopped",
]
