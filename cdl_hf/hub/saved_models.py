"""Saved models with their image processors, loaded from a folder, a run or the Hub."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPImageProcessor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

from ..data.sources import is_hub_reachable
from ..models import PromptViTConfig, PromptViTForImageClassification
from ..models.architecture_args import shortened
from ..models.growth import MissingStatistics
from ..utils import verify
from .image_processor import image_processor_of

ROLES = ("teacher", "student")


@dataclass(frozen=True)
class SavedModel:
    """A model in evaluation mode, and its image processor."""

    model: PromptViTForImageClassification
    image_processor: CLIPImageProcessor

    @property
    def class_names(self) -> list[str]:
        """Names of the classes seen, by class id."""
        names = cast(dict[int, str], self.model.config.id2label)
        return [names[class_id] for class_id in range(self.model.config.seen_classes)]

    @torch.inference_mode()
    def logits(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) on any device -> (B, C_seen) in float32."""
        return self.model(pixel_values.to(self.model.device)).logits.float()


def is_run(folder: str | Path) -> bool:
    """Whether a folder is the output folder of a run."""
    return (Path(folder) / "args.yaml").is_file()


def load_run(folder: str | Path, *, statistics: bool = False) -> dict[str, SavedModel]:
    """Models of a finished run, by role.

    Args:
        statistics: As in [`load_saved_model`].

    Raises:
        ValueError: There is no model, or one cannot be loaded.
    """
    roles = [role for role in ROLES if (Path(folder) / role / "config.json").is_file()]
    if not roles:
        raise ValueError(f"the run in {folder} is not finished: it has neither teacher/ nor student/")
    return {role: load_saved_model(Path(folder) / role, statistics=statistics) for role in roles}


def trained_on(source: str | Path) -> str:
    """Name of the data set that a saved model was trained on, by the results beside it; empty if it is not known."""
    return str(_stream_of(source).get("source") or "")


def tasks_of_classes(source: str | Path, classes_per_task: Sequence[int]) -> list[int]:
    """Task of the test images of each class, (C,) from 0, for a saved model or a run.

    In a stream with blurry boundaries it is that of the results beside the model; otherwise, and where they are
    missing, the task in which the class first came.

    Args:
        classes_per_task: Number of classes of each task seen that no earlier task has; they add up to C.
    """
    tasks = [task for task, size in enumerate(classes_per_task) for _ in range(size)]
    blurry = _stream_of(source).get("blurry")
    own = blurry.get("task_of_class") if isinstance(blurry, dict) else None
    if not isinstance(own, list) or not all(task in range(len(classes_per_task)) for task in own):
        return tasks
    return [*own, *tasks[len(own) :]][: len(tasks)]  # the model may have learned further classes


def has_domains(source: str | Path) -> bool:
    """Whether a saved model or run has learned a stream of domains, by the results beside it."""
    return "domains" in _stream_of(source)


def _stream_of(source: str | Path) -> dict[str, Any]:
    """Description of a model's stream, by the results beside it; empty if it is not known."""
    results = file_beside(source, "results.json")
    try:
        stream = None if results is None else _as_object(results).get("stream")
    except (OSError, ValueError):
        return {}
    return stream if isinstance(stream, dict) else {}


def file_beside(source: str | Path, name: str) -> Path | None:
    """A file in the folder or repository of a saved model; `None` where there is none, or it cannot be reached."""
    here = {"local_files_only": Path(source).is_dir() or not is_hub_reachable()}
    try:
        found = _find(source, name, optional=True, **here)
    except (OSError, ValueError):  # no access, or no name of a repository
        return None
    return None if found is None else Path(found)


def load_saved_model(source: str | Path, *, statistics: bool = False) -> SavedModel:
    """A model from a folder or the Hub, on the accelerator if there is one.

    Args:
        statistics: Whether to load what it needs to learn further classes.

    Raises:
        ValueError: There is no such model, it is damaged or of another type, or it has seen no class.
    """
    if is_run(source):
        raise ValueError(f"{source} is the folder of a run; give one of its models: {Path(source) / 'student'}")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        if roles := [role for role in ROLES if (Path(source) / role / "config.json").is_file()]:
            raise ValueError(f"{source} holds models of a run; give one of them: {Path(source) / roles[-1]}")
        raise ValueError(f"there is no model in {source}: it has no config.json")
    is_folder = Path(source).is_dir()
    here: dict[str, Any] = {"local_files_only": is_folder or not is_hub_reachable()}
    try:
        for weights in Path(source).glob("*.safetensors") if is_folder else ():
            verify(weights)
        fields = _read_object(source, "config.json", **here)
        kind = fields.get("model_type")
        if kind == PromptViTConfig.model_type:
            if PromptViTConfig.from_dict(fields).left_out and is_folder:  # the weights may be on the Hub
                here["local_files_only"] = not is_hub_reachable()
            processor = image_processor_of(_read_object(source, "preprocessor_config.json", **here))
            if _find(source, SAFE_WEIGHTS_INDEX_NAME, optional=True, **here) is not None:
                _check_shards(_read_object(source, SAFE_WEIGHTS_INDEX_NAME, **here))
            model, loading = PromptViTForImageClassification.from_pretrained(
                source, output_loading_info=True, load_statistics=statistics, **here
            )
    except MissingStatistics:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"the model {source} cannot be loaded: {_reason(error, is_folder, **here)}") from error
    if kind != PromptViTConfig.model_type:
        raise ValueError(f"{source} is a model of another type ({shortened(str(kind), 80)}), not of this package")
    for keys, what in (("missing_keys", "are incomplete"), ("unexpected_keys", "are of another model")):
        if loading[keys]:
            raise ValueError(f"the weights of {source} {what}: {shortened(', '.join(sorted(loading[keys])[:3]))}")
    wrong = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if wrong:
        raise ValueError(f"the weights of {source} are not finite numbers: {', '.join(wrong[:3])}")
    if not model.config.tasks_seen:
        raise ValueError(f"the model {source} has seen no class yet")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return SavedModel(model.to(device).eval(), processor)


def _find(source: str | Path, name: str, *, local_files_only: bool, optional: bool = False) -> str | None:
    """Path of a file of a model's folder or repository.

    Raises:
        OSError: The file is missing and not `optional`.
    """
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(source, name, local_files_only=local_files_only, **(missing if optional else {}))


def _read_object(source: str | Path, name: str, **here: bool) -> dict[str, Any]:
    """A JSON file of a model; transformers does not check that it is an object.

    Raises:
        OSError: The file is missing.
        ValueError: It is not a JSON object.
    """
    return _as_object(Path(str(_find(source, name, **here))))


def _as_object(file: Path) -> dict[str, Any]:
    """
    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} is not a JSON object")
    return content


def _check_shards(index: dict[str, Any]) -> None:
    """Checks that an index of sharded weights is valid and names only files beside it."""
    of_tensors = index.get("weight_map")
    files = list(of_tensors.values()) if isinstance(of_tensors, dict) else []
    are_plain = all(isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file) for file in files)
    if not files or not are_plain or not isinstance(index.get("metadata"), dict):
        raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} does not name files beside it with the weights")


def _reason(error: Exception, is_folder: bool, local_files_only: bool) -> str:
    if is_folder or not isinstance(error, (OSError, HFValidationError)):
        return shortened(str(error))
    from_hub = (
        "the Hub cannot be reached"
        if local_files_only
        else "it could not be downloaded from the Hub: check its name and your access"
    )
    return f"there is no such folder, and {from_hub}"
