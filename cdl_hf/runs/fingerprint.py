"""Fingerprint of a run, which a resumed one must share: arguments, images, weights, processes, versions."""

import json
import os
from collections.abc import Iterable, Mapping
from inspect import get_annotations
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from transformers import CLIPImageProcessor

from ..arguments.config import RUN
from ..arguments.sets import (
    affecting,
    found_content,
    names_of,
    not_of_the_run,
    recorded_defaults,
    unused,
    with_present_names,
)
from ..cli import to_dict
from ..data import TaskStream
from ..data.task_images import unlabeled_digest
from ..data.views import ordered_digest
from ..distillation import TrainingObjective
from ..models import PromptViTConfig, PromptViTForImageClassification
from ..models.backbones import backbone_digest
from ..models.configuration_prompt_vit import TRANSFORMERS
from ..models.networks import network_of
from ..utils import versions
from .checkpointing import load_newest_checkpoint
from .folder import RunFolder
from .task_checkpoints import PROCESSOR, TaskCheckpoints

logger = get_logger(__name__)
VERSION = "version of "
# The images of each split, by the names under which a fingerprint holds their digests.
IMAGES = {"train": "training images", "validation": "validation images", "test": "test images"}
UNLABELED = "images without labels"
_STREAM = ("class_names", "classes of the tasks", *IMAGES.values())
_NETWORKS = ("teacher", "student", "teacher's query", "student's query")
_WEIGHTS = tuple(f"{what} of the {whose}" for what in ("weights", "shape") for whose in _NETWORKS)
# Fields of a model's configuration that name its networks, or say how much of the stream it has seen. The others say
# how its prompts and heads are made.
_STATE = {"left_out", "tasks_seen"} | {
    f"{network}{what}" for network in TRANSFORMERS for what in ("", "_args", "_weights")
}
_CONFIGURATION = tuple(name for name in get_annotations(PromptViTConfig) if name not in _STATE)
# What was found -> the entries that hold it. Where these are the same, the arguments that name it may differ: data
# that moved are the same data.
_ENTRIES: dict[str, tuple[str, ...]] = {
    "stream": _STREAM,
    "backbones": _WEIGHTS,
    "images without labels": (UNLABELED,),
    **{states: (states,) for states in ("states of the teacher", "states of the student")},
}


def fingerprint(
    arguments: Iterable[Any],
    stream: TaskStream,
    modules: Mapping[str, TrainingObjective],
    image_processor: CLIPImageProcessor,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The resolved arguments and what they led to: images, classes, weights, processes, precision, versions.

    Args:
        arguments: Instances of argument classes, at least of `CDLConfig`.
        modules: Role -> what is trained, its weights not yet in shards.
    """
    given = {name: value for name, value in to_dict(arguments).items() if name not in not_of_the_run()}
    about, digests = stream.describe(), stream.digests(ordered_digest)
    found = {name: about[name] for name in ("train", "validation", "test", "class_names")}
    found |= {"classes of the tasks": about["classes_per_task"]}
    found |= {name: digests[split] for split, name in IMAGES.items()}
    processor = json.loads(image_processor.to_json_string())
    found |= {f"{name} of the images": processor[name] for name in PROCESSOR}
    if given.get("unlabeled_dataset") is not None:
        found[UNLABELED] = unlabeled_digest(given["unlabeled_dataset"])
    for role, module in modules.items():
        found |= _weights(role, module.model)
        config = module.model.config
        found |= {f"{name} of the {role}": getattr(config, name) for name in _CONFIGURATION}
        loss = [type(module).__name__, getattr(module, "kd_alpha", None), getattr(module, "temperature", None)]
        found[f"loss of the {role}"] = loss
        if given.get(f"{role}_run") is not None:
            found[f"states of the {role}"] = TaskCheckpoints(Path(given[f"{role}_run"]), role).digest()
    return {
        **given,
        **found,
        "num_processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        **{f"{VERSION}{name}": value for name, value in versions().items()},
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Differences between two fingerprints, in words, by the name of the entry.

    A fingerprint of an earlier version lacks some entries: its arguments had their defaults, and other entries that it
    lacks are not compared. Arguments do not count where what they name was found to be the same, nor those of a
    classifier that neither has.
    """
    before = _with_defaults(before)
    compared = (before.keys() & now.keys()) - (unused(before) & unused(now))
    return {
        name: _difference(name, before[name], now[name])
        for name in before
        if name in compared and before[name] != now[name] and not _is_found_again(name, before, now)
    }


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences on the differences of a resumed run that leave its result as it is, up to rounding and versions.

    Raises:
        ValueError: A difference changes the result.
    """
    notes = {
        "Changed arguments without effect on the result": affecting("nothing"),
        "Changes that may affect the rounding of the result": affecting("rounding") | {"num_processes"},
        "Changes that may affect the result": {name for name in now if name.startswith(VERSION)},
    }
    found = changes(before, now)
    if decisive := [words for name, words in found.items() if not any(name in names for names in notes.values())]:
        raise ValueError("; ".join(decisive))
    sentences = [
        f"{note}: {'; '.join(words)}."
        for note, names in notes.items()
        if (words := [words for name, words in found.items() if name in names])
    ]
    if not set(IMAGES.values()) <= before.keys():
        sentences.append(
            "The checkpoint was written by a version without digests of images: the images could not be compared."
        )
    return sentences


def load_run_checkpoint(folder: RunFolder, now: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest valid checkpoint of a run that is to be resumed, or `None` where it has saved none yet.

    Args:
        now: The fingerprint of the run that resumes it. What differs without changing the result is logged.

    Raises:
        ValueError: What differs changes the result; no checkpoint is valid; the run is finished, and its checkpoints
            are gone.
    """
    state = load_newest_checkpoint(folder.checkpoints)
    if state is None:
        if folder.is_finished:
            raise ValueError(
                f"the run in {folder.path} is finished, and its checkpoints are gone: there is nothing to resume; "
                "--overwrite_output_dir would run it again"
            )
        return None
    try:
        notes = compare(state["fingerprint"], now)
    except ValueError as error:
        raise ValueError(
            f"the run in {folder.path} was made with other arguments, images or weights, and cannot go on: {error}. "
            "Resume it with the old ones (args.yaml there), or choose another output_dir"
        ) from error
    for note in notes:
        logger.info(note)
    return state


def _weights(role: str, model: PromptViTForImageClassification) -> dict[str, Any]:
    """Digests of a model's transformers, and what their weights do not show: image size and number of heads."""
    config = model.config
    networks = {role: (model.backbone, config.backbone_weights)}
    if model.query_backbone is not None:
        networks[f"{role}'s query"] = (model.query_backbone, config.query_backbone_weights)
    digests = {
        f"weights of the {whose}": weights["sha256"] if weights else backbone_digest(network)
        for whose, (network, weights) in networks.items()
    }
    shapes = {f"shape of the {whose}": network_of(network).shape for whose, (network, _) in networks.items()}
    return digests | shapes


def _with_defaults(before: Mapping[str, Any]) -> dict[str, Any]:
    before = with_present_names(before)
    for name in ("loss of the teacher", "loss of the student"):
        if before.get(name, [None])[0] == "Supervised":  # as version 0.1.0 called it
            before[name] = ["TrainingObjective", *before[name][1:]]
    recorded = set().union(*(names for names in map(names_of, RUN) if names & before.keys()))
    return {name: value for name, value in recorded_defaults().items() if name in recorded} | before


def _is_found_again(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    content = found_content().get(name)
    entries = [] if content is None else [entry for entry in _ENTRIES[content] if entry in now]
    if entries and all(entry in before for entry in entries):
        return all(before[entry] == now[entry] for entry in entries)
    return content is not None and _is_same_place(before[name], now[name])  # an earlier version kept no content


def _is_same_place(before: Any, now: Any) -> bool:
    """Whether two texts are paths of the same existing file or folder."""
    texts = isinstance(before, str) and isinstance(now, str)
    return texts and os.path.exists(before) and os.path.exists(now) and os.path.samefile(before, now)


def _difference(name: str, before: Any, now: Any) -> str:
    if name in IMAGES.values() and len(before) == len(now):
        tasks = [str(task + 1) for task, (a, b) in enumerate(zip(before, now, strict=True)) if a != b]
        return f"the {name} of task {', '.join(tasks)} are others, or in another order"
    return f"{name} was {_short(before)}, is now {_short(now)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
