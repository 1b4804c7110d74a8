"""The Accelerate loop. `arguments` and `parser` import nothing heavy; the rest is loaded when first used."""

from importlib import import_module

_HOME = {
    "ContinualDistillationTrainer": "trainer",
    "RunFolder": "run_folder",
    "StageError": "stage",
}
__all__ = ["ContinualDistillationTrainer", "RunFolder", "StageError"]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
