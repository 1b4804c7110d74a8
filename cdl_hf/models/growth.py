"""Growth of a model beyond its stream: classes that nobody planned, and classes that must be forgotten."""

import copy
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import cached_file

from .analytic import AnalyticHead
from .classifiers import Classifier, RanPAC
from .computed import NO_STATISTICS, Computed
from .configuration_prompt_vit import PromptViTConfig
from .left_out import BackbonesLeftOut
from .prompt_pools import CodaPrompt, PromptPool
from .readout import Readout

STATISTICS_NAME = "statistics.safetensors"  # beside the weights of a saved model
# What depends on the tasks or their classes. Of the heads and classifiers, these tensors have a row for each class.
_GROWING = ("prompt_pool", "kd_branch", "head", "kd_head", "classifier", "kd_classifier", "analytic")
_WITHOUT_CLASSES = ("prompt_pool", "kd_branch")
_ROUNDING = 1e-4  # of a sum of features when they are subtracted again; one of a thousand images is more
_BY_CLASS = ("weight", "bias", "sums", "classifier.weight", "classifier.sums")


class MissingStatistics(ValueError):
    """A model was saved without what it needs to learn further classes."""


class Growing(BackbonesLeftOut):
    """A model that can learn classes which its stream did not plan, and forget some."""

    config: PromptViTConfig
    prompt_pool: PromptPool
    classifier: Classifier | None
    kd_classifier: Classifier | None
    analytic: AnalyticHead | None
    readout: Readout
    readout_of_classifier: Readout
    _in_task: bool

    def start_task(self, class_names: Sequence[str]) -> None:
        raise NotImplementedError

    def save_pretrained(  # type: ignore[override]  # takes all but the folder by keyword
        self, save_directory: str | PathLike, *, save_statistics: bool = False, **kwargs
    ) -> None:
        """As `PreTrainedModel.save_pretrained`.

        Args:
            save_statistics: Whether to write also what a prediction does not need but further classes do, such as
                RanPAC's Gram matrix, to `statistics.safetensors`. `push_to_hub=True` does not upload this file.
            save_backbone: `False` leaves out the weights of the frozen transformers, by far the largest part. The
                checkpoint records their source and digest, and [`from_pretrained`] restores them.

        Raises:
            ValueError: The weights are to be left out, but their source is unknown.
        """
        super().save_pretrained(save_directory, **kwargs)
        file = Path(save_directory) / STATISTICS_NAME
        if save_statistics and (statistics := _statistics_of(self)):
            save_file(statistics, file)
        else:
            file.unlink(missing_ok=True)  # it was of other weights

    @classmethod
    def from_pretrained(  # type: ignore[override]  # takes all but the path by keyword
        cls,
        pretrained_model_name_or_path: str | PathLike,
        *model_args,
        load_statistics: bool = False,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """As `PreTrainedModel.from_pretrained`; also loads models saved with `save_backbone=False`.

        Args:
            load_statistics: Whether to load what `save_pretrained(..., save_statistics=True)` has written as well, so
                that the model can learn further classes.
            backbones: Outputs of [`load_backbone`] for weights that were left out and cannot be loaded by name (from a
                folder, a file, or without a network).

        Raises:
            ValueError: Weights that were left out cannot be loaded or differ from those that the prompts were trained
                on, the weights do not fit the configuration, or the statistics are missing.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        if load_statistics:
            names = ("local_files_only", "cache_dir", "token", "revision", "subfolder")
            download = {name: kwargs[name] for name in names if name in kwargs}
            _restore_statistics(model, pretrained_model_name_or_path, **download)
        return (model, info) if output_loading_info else model

    @property
    def can_grow(self) -> bool:
        """Whether [`add_classes`] can add a class after the stream, with the statistics that are in memory."""
        try:
            _growth(self, 1)
        except ValueError:
            return False
        return True

    @property
    def needs_statistics(self) -> bool:
        """Whether [`add_classes`] needs what only `save_pretrained(..., save_statistics=True)` writes."""
        if self.classifier is None:
            return self.prompt_pool.needs_fisher
        return any(isinstance(module, Computed) and module.num_statistics for module in self.modules())

    def add_classes(self, class_names: Sequence[str]) -> None:
        """Begins a task of classes that the stream did not plan; the model's shapes grow where they must.

        With a computed classifier nothing is trained for them: [`fit_classifier`] with their images is all that
        follows. A trained head learns them as in [`start_task`]. DualPrompt and LoRA get room for one more task,
        CODA-Prompt further components; L2P and APT stay as they are.

        Args:
            class_names: Their names, in the order of their class ids.

        Raises:
            ValueError: A class is known already, or the model cannot grow: CODA-Prompt has no further orthogonal
                components, the head is not trained in later tasks, or the stream has planned tasks of another form.
        """
        _plan_classes(self, class_names)
        self.start_task(class_names)
        self._in_task = self.classifier is None

    def remove_classes(
        self, class_names: Sequence[str], features: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        """Removes classes: a computed classifier is afterwards as if it had never seen their images.

        What was chosen or trained by their images stays: RanPAC's ridge (where held-out images could choose it), the
        scale of the logits, prompts and trained heads, which only lose the rows of these classes.

        Args:
            features: (n, 1 or 2, W), outputs of [`head_features`] of all images of these classes that were fitted.
                RanPAC needs them, NCM does not.
            labels: (n,), their class ids.

        Raises:
            ValueError: A class is not known, or none would be left; RanPAC gets no features, or those of other images
                than it was fitted on, or it has no statistics; the student is of closed-form distillation.
        """
        if self.analytic is not None:
            raise ValueError(
                "a student of closed-form distillation cannot take back images: fit it again without these classes"
            )
        removed = _ids_of(self, class_names)
        if features is None and isinstance(self.classifier, RanPAC):
            raise ValueError(
                "RanPAC has mixed the images of all classes: to remove some, give the features and labels of theirs"
            )
        if features is not None:
            if labels is None or not set(labels.tolist()) <= removed:
                raise ValueError("labels must be the class ids of the features, all of classes to remove")
            own = self.network.select(features, self.readout_of_classifier, self.readout)
            without = {}
            for i, name in enumerate(("classifier", "kd_classifier")):
                if getattr(self, name) is not None:
                    without[name] = copy.deepcopy(getattr(self, name))
                    without[name].add(own[:, i], labels, subtract=True)
                    _check_taken_back(getattr(self, name), without[name], sorted(removed))
            for name, classifier in without.items():
                setattr(self, name, classifier)
        _forget_classes(self, class_names)


def _plan_classes(model: "Growing", class_names: Sequence[str]) -> None:
    """Makes the next task of the stream one of these new classes, in the shapes of all that depends on it.

    Raises:
        ValueError: A class is known already or named twice, or the model cannot grow.
    """
    config = model.config
    if isinstance(class_names, str):
        raise ValueError(f"class_names must be a list of names, got {class_names!r}")
    known = set(names_of(config))
    repeated = [name for i, name in enumerate(class_names) if name in known or name in class_names[:i]]
    if not class_names or repeated:
        raise ValueError(f"the class {repeated[0]!r} is known already" if repeated else "there are no classes to add")
    changes = _growth(model, len(class_names))
    if changes:
        _restructure(model, changes, list(range(config.seen_classes)))


def _growth(model: "Growing", num_classes: int) -> dict[str, Any]:
    """Fields of the configuration that a task of so many classes changes; none where the stream has planned it.

    Raises:
        ValueError: The model cannot grow.
    """
    config = model.config
    tasks = config.classes_per_task[: config.tasks_seen]
    trains_prompts = config.prompt_method != "none" and (config.train_tasks or config.num_tasks) > len(tasks)
    stays_trained = model.classifier is None or not trains_prompts
    if config.classes_per_task[len(tasks) : len(tasks) + 1] == [num_classes] and stays_trained:
        return {}
    if model.classifier is None and config.train_tasks is not None:
        raise ValueError(
            f"the head of this model is trained in its first {config.train_tasks} tasks only, so that it cannot learn "
            "further classes: choose a computed classifier (ncm or ranpac)"
        )
    if model.classifier is None and model.prompt_pool.misses_statistics:
        raise ValueError(NO_STATISTICS.format("LoRA that is merged by Fisher information"))
    changes: dict[str, Any] = {"classes_per_task": [*tasks, num_classes]}
    if model.classifier is not None and config.prompt_method != "none":
        changes["train_tasks"] = min(config.num_trained_tasks, len(tasks))  # what is computed needs no training
    elif config.prompt_method == "coda_prompt":
        assert config.pool_size is not None  # the configuration sets the paper's
        changes["pool_size"] = size = config.pool_size // config.num_trained_tasks * (len(tasks) + 1)
        pool = model.prompt_pool
        assert isinstance(pool, CodaPrompt)
        if size > (most := min(pool.keys.shape[-1], pool.prompts[0, 0].numel())):
            raise ValueError(
                f"CODA-Prompt's pool cannot grow to {size} components for another task: they cannot be orthogonal in "
                f"{most} dimensions; train with a smaller pool_size, or with a computed classifier (ncm, or ranpac "
                "with its statistics), which needs no further prompts"
            )
    return changes


def _check_taken_back(before: Classifier, after: Classifier, removed: list[int]) -> None:
    """
    Raises:
        ValueError: Of RanPAC's classes with the ids `removed`, more or other images were subtracted than it was fitted
            on: the sum of their features is not zero.
    """
    if not isinstance(before, RanPAC) or not isinstance(after, RanPAC):
        return
    assert before.sums is not None and after.sums is not None
    left, whole = (sums.sums[:, removed].norm(dim=0) for sums in (after.sums, before.sums))
    if (left > _ROUNDING * whole).any():
        raise ValueError(
            "these are not the images of the classes to remove that RanPAC was fitted on, or not in the same "
            "precision: give all of those images and no others, in the precision of the fit"
        )


def _forget_classes(model: "Growing", class_names: Sequence[str]) -> None:
    """Removes the rows of classes, and the classes from the configuration."""
    config, removed = model.config, _ids_of(model, class_names)
    kept = [class_id for class_id in range(config.seen_classes) if class_id not in removed]
    task_of = [task for task, size in enumerate(config.classes_per_task[: config.tasks_seen]) for _ in range(size)]
    sizes = [sum(task_of[class_id] == task for class_id in kept) for task in range(config.tasks_seen)]
    _restructure(model, {"classes_per_task": sizes + config.classes_per_task[config.tasks_seen :]}, kept)


def _ids_of(model: "Growing", class_names: Sequence[str]) -> set[int]:
    """Class ids of classes to remove.

    Raises:
        ValueError: A class is not known, or none would be left.
    """
    names = names_of(model.config)
    if isinstance(class_names, str):
        raise ValueError(f"class_names must be a list of names, got {class_names!r}")
    if unknown := [name for name in class_names if name not in names]:
        raise ValueError(f"the model does not know the class {unknown[0]!r}")
    removed = {class_id for class_id, name in enumerate(names) if name in class_names}
    if len(removed) == len(names):
        raise ValueError("a model cannot forget all its classes")
    return removed


def names_of(config: PromptViTConfig) -> list[str]:
    """Names of the classes seen, by class id."""
    names = cast(dict[int, str], config.id2label or {})
    return [names[class_id] for class_id in range(config.seen_classes)]


def _restructure(model: "Growing", changes: Mapping[str, Any], kept: list[int]) -> None:
    """Gives a model the shapes of another configuration; what it has learned stays where it is.

    Args:
        changes: Fields of the configuration.
        kept: Class ids of the classes that stay, which are numbered from 0 in this order.

    Raises:
        ValueError: The prompts cannot grow so.
    """
    names = names_of(model.config)
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    config.validate_fields()
    config.id2label = {class_id: names[old] for class_id, old in enumerate(kept)}
    config.label2id = {name: class_id for class_id, name in config.id2label.items()}
    with torch.device("meta"):
        shapes = type(model)(config)
    grown: dict[str, nn.Module] = {}
    for name in _GROWING:
        old = getattr(model, name)
        if old is not None:
            grown[name] = getattr(shapes, name).to_empty(device=model.device)
            grown[name].apply(model._init_weights)
            _take_over(old, grown[name], None if name in _WITHOUT_CLASSES else kept)
    for name, module in grown.items():
        setattr(model, name, module)
    model.config = config
    model.train(model.training)


@torch.no_grad()
def _take_over(old: nn.Module, new: nn.Module, kept: list[int] | None) -> None:
    """Copies what a module has learned into one of another shape.

    Args:
        kept: Class ids whose rows are copied, one after the other; `None` for a module that does not know of classes.
    """
    sources = old.state_dict()
    for name, target in new.state_dict(keep_vars=True).items():
        source = sources[name]
        if kept is not None and name in _BY_CLASS:
            source = source[kept]
        if any(size < needed for size, needed in zip(target.shape, source.shape, strict=True)):
            raise ValueError(
                f"this model cannot take other classes than its stream has planned: its {type(old).__name__} would "
                f"lose a part of its {name}, {tuple(source.shape)} -> {tuple(target.shape)}"
            )
        target.data = target.data.to(source.dtype)
        target[tuple(map(slice, source.shape))] = source
    for name, computed in old.named_modules():
        if not isinstance(computed, Computed):
            continue
        replaced = new.get_submodule(name)
        if isinstance(computed, RanPAC) and isinstance(replaced, RanPAC):
            assert kept is not None
            if computed.sums is not None:
                replaced.sums = computed.sums.of_targets(kept, len(replaced.weight))
        elif isinstance(replaced, Computed):
            replaced.load_statistics(computed.statistics())


def _statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """What a model keeps only to learn further classes, by module and name, on the CPU."""
    return {
        f"{name}.{key}": tensor
        for name, module in model.named_modules()
        if isinstance(module, Computed)
        for key, tensor in module.statistics().items()
    }


def _restore_statistics(model: nn.Module, source: str | PathLike, **download: Any) -> None:
    """Loads what `save_pretrained(..., save_statistics=True)` has written beside the weights.

    Args:
        source: Folder or Hub name of the model.
        download: Arguments of `cached_file`.

    Raises:
        MissingStatistics: They are needed, and are not there.
        ValueError: They are damaged or of another model.
    """
    where = cached_file(source, STATISTICS_NAME, _raise_exceptions_for_missing_entries=False, **download)
    if where is None:
        computed = [module for module in model.modules() if isinstance(module, Computed)]
        if needed := sorted({type(module).__name__ for module in computed if module.num_statistics}):
            raise MissingStatistics(
                f"{str(source)!r} has no {STATISTICS_NAME}, which {' and '.join(needed)} needs to learn further "
                "classes: train with --save_statistics, or save it with save_pretrained(..., save_statistics=True)"
            )
        return
    try:
        statistics = load_file(where)
    except SafetensorError as error:
        raise ValueError(f"{where} is damaged: {error}") from error
    known = set()
    for name, module in model.named_modules():
        if isinstance(module, Computed):
            names = {key: f"{name}.{key}" for key in module.for_further_classes if f"{name}.{key}" in statistics}
            module.load_statistics({key: statistics[full] for key, full in names.items()})
            known |= set(names.values())
    if foreign := sorted(statistics.keys() - known):
        raise ValueError(f"{where} is of another model: {', '.join(foreign[:3])} do not fit")
