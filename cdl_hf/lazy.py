"""Light imports: names that are imported when first used, and work that waits for another module's import."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder


def lazy_attributes(package: str, home: dict[str, str]) -> Callable[[str], object]:
    """A `__getattr__` for `package`: each name of `home` is imported from the submodule it is at home in."""

    def __getattr__(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{home[name]}", package), name)

    return __getattr__


def after_import(module_name: str, action: Callable[[], None]) -> None:
    """Calls `action` now if the module is imported already, else right after somebody imports it."""
    if module_name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _AfterImport(module_name, action))


class _AfterImport(MetaPathFinder, Loader):
    """Finds the module as Python would, and calls the action once its code has run."""

    def __init__(self, module_name: str, action: Callable[[], None]):
        self.module_name, self.action = module_name, action

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != self.module_name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.action()
