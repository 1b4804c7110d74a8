"""Registration of the models with transformers' auto classes and pipelines.

Nothing but an import hook can both keep `import cdl_hf` free of torch and transformers, which `--help` needs, and let
`AutoModelForImageClassification` load the models where transformers is imported later: transformers reads no entry
points, and the code that a checkpoint carries needs `trust_remote_code=True`.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def register() -> None:
    """Registers the models now if transformers' auto classes are imported already, else as soon as they are."""
    for name, register_with in _REGISTER_WITH.items():
        if name in sys.modules:
            register_with(sys.modules[name])
    if not _REGISTER_WITH.keys() <= sys.modules.keys():
        sys.meta_path.insert(0, _RegisterOnImport())


def _register_config(configuration_auto: ModuleType) -> None:
    from .models.configuration_prompt_vit import PromptViTConfig

    configuration_auto.AutoConfig.register(PromptViTConfig.model_type, PromptViTConfig, exist_ok=True)


def _register_model(modeling_auto: ModuleType) -> None:
    from .models.configuration_prompt_vit import PromptViTConfig
    from .models.modeling_prompt_vit import PromptViTForImageClassification

    auto_class = modeling_auto.AutoModelForImageClassification
    auto_class.register(PromptViTConfig, PromptViTForImageClassification, exist_ok=True)


_REGISTER_WITH = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
}


class _RegisterOnImport(MetaPathFinder):
    """Finds the modules of the auto classes as Python does, and registers the models once their code has run."""

    def find_spec(self, name: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _REGISTER_WITH:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _REGISTER_WITH[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
