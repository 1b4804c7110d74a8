"""Continual distillation learning with prompted Vision Transformers.

`import cdl_hf` is light, so that a command line answers at once. Its models are imported when they are first used, and
made known to transformers' auto classes and pipelines when those are imported.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder

__version__ = "0.1.0"

_HOME = {
    "ContinualDistillationTrainer": "training",
    "PromptViTConfig": "models",
    "PromptViTForImageClassification": "models",
    "TaskStream": "data",
    "load_backbone": "models",
    "load_source": "data",
}
__all__ = ["__version__", *_HOME]

# `pipeline` and the auto classes for models all come by way of this module of transformers.
_AUTO_CLASSES = "transformers.models.auto.modeling_auto"


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _RegisterWithAutoClasses(MetaPathFinder, Loader):
    """Imports `cdl_hf.models`, which registers them, right after transformers' auto classes, whoever imports those."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != _AUTO_CLASSES:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        self.inner, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec):
        return self.inner.create_module(spec)

    def exec_module(self, module) -> None:
        module.__spec__.loader = module.__loader__ = self.inner
        self.inner.exec_module(module)
        import_module(".models", __name__)


if _AUTO_CLASSES in sys.modules:
    import_module(".models", __name__)
else:
    sys.meta_path.insert(0, _RegisterWithAutoClasses())
