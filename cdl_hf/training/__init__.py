"""The continual training of teacher and student with Accelerate."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from ..arguments.config import CDLConfig
    from ..runs.folder import RunFolder
    from ..runs.interruptions import Stopped
    from .callbacks import ContinualCallback, ShowAccuracy
    from .stage import StageError
    from .trainer import ContinualDistillationTrainer
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "CDLConfig": ".arguments.config",
            "ContinualCallback": "callbacks",
            "ContinualDistillationTrainer": "trainer",
            "RunFolder": ".runs.folder",
            "ShowAccuracy": "callbacks",
            "StageError": "stage",
            "Stopped": ".runs.interruptions",
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
