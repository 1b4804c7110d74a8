"""The Accelerate loop. Imported when first used: `arguments` and `parser` need nothing heavy."""

from ..lazy import lazy_attributes

_HOME = {
    "ContinualDistillationTrainer": "trainer",
    "RunFolder": "run_folder",
    "ShowAccuracy": "callbacks",
    "StageError": "stage",
    "Stopped": "interruptions",
    "ContinualCallback": "callbacks",
    "CDLConfig": "arguments",
}
__all__ = list(_HOME)
__getattr__ = lazy_attributes(__name__, _HOME)
