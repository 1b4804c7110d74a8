"""Task checkpoints: what a model has learned after each task, saved for later runs, which can replay it."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from transformers import BaseImageProcessor

from ..data import TaskStream
from ..data.views import ordered_digest, unordered_digest
from ..models import PromptViTForImageClassification
from ..models.backbones import backbone_digest
from ..utils import CHECKSUM, DamagedFile, atomic_write, seal, verify
from .arguments import CDLConfig
from .checkpointing import load_trained_state, trained_state
from .output_cache import TeacherOutputCache

Counts = list[tuple[int, int]]
_CLASSIFIER = re.compile(r"(kd_)?classifier\.")
# What two runs must have in common for a model of one to serve in the other.
_STREAM = ("num_tasks", "classes_per_task", "class_names", "images")
_SPLITS = ("train", "validation", "test")


class TaskCheckpoints:
    """`states/<role>/` of a run: learnt state, and right answers on each task so far, after every task.

    Args:
        run: Output folder of the run.
        role: `"teacher"` or `"student"`.
    """

    def __init__(self, run: Path, role: str):
        self.run, self.role = run, role

    def save(self, task: int, model: PromptViTForImageClassification, counts: Counts, about: dict[str, Any]) -> None:
        """Writes the state after a task.

        Args:
            counts: (right, all) test images of each task so far.
            about: Output of [`describe`].
        """
        metadata = {name: json.dumps(value) for name, value in {**about, "counts": counts}.items()}
        state = {name: value.contiguous() for name, value in trained_state(model).items()}
        with atomic_write(self.path(task)) as file:
            file.write(seal(to_bytes(state, metadata)))

    def load(self, task: int, model: PromptViTForImageClassification, *, classifier: bool = True) -> None:
        """Puts the state after a task into `model`.

        Args:
            classifier: Whether that of a classifier which predicts in place of the heads is taken too.

        Raises:
            ValueError: It is of another model.
            DamagedFile: It is not what was saved.
        """
        verify(self.path(task))
        state = load_file(self.path(task))
        if not classifier:
            own = trained_state(model, statistics=True)
            own = {name: value for name, value in own.items() if _CLASSIFIER.match(name)}
            state = {name: value for name, value in state.items() if not _CLASSIFIER.match(name)} | own
        load_trained_state(model, state)

    def counts(self, task: int) -> Counts:
        """(right, all) test images of each task so far."""
        return [tuple(count) for count in self.about(task)["counts"]]

    def about(self, task: int) -> dict[str, Any]:
        """What the state was saved with.

        Raises:
            DamagedFile: It is not what was saved.
        """
        verify(self.path(task))
        with safe_open(self.path(task), "pt") as file:
            return {name: json.loads(value) for name, value in file.metadata().items() if name != CHECKSUM}

    def digest(self) -> str:
        """SHA-256 over the states of all tasks, by which a run knows what it has taken, wherever it lies."""
        digest = hashlib.sha256()
        for path in sorted(self.path(0).parent.glob("task_*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def answers(self, task: int) -> TeacherOutputCache:
        """Where the answers to the task's training images are, or may be written."""
        return TeacherOutputCache(self.path(task).with_suffix(""))

    def path(self, task: int) -> Path:
        return self.run / "states" / self.role / f"task_{task:03d}.safetensors"


def describe(
    model: PromptViTForImageClassification,
    stream: TaskStream,
    args: CDLConfig,
    image_processor: BaseImageProcessor,
) -> dict[str, Any]:
    """What a run leaves with a model's states, so that another run can tell whether they fit; values of JSON.

    `stream`, `networks` (weights and image sizes of the model's and of its query network) and `head` decide whether
    the model fits, `images` (which they are, in which order, and what is done with them) whether its answers do.
    """
    networks = (model.backbone, model.query_backbone or model.backbone)
    about = {
        "stream": describe_stream(stream),
        "networks": [[backbone_digest(network), *network.patch_embed.img_size] for network in networks],
        "head": {
            "head": model.config.head,
            "ranpac_width": model.config.ranpac_width,
            "aligned": args.classifier_alignment,
        },
        "images": [
            *(args.seed, args.num_train_epochs, args.crop_scale, args.horizontal_flip, image_processor.to_dict()),
            stream.digests(ordered_digest)["train"],
        ],
    }
    return _as_read(about)


def describe_stream(stream: TaskStream) -> dict[str, Any]:
    """The stream's part of [`describe`].

    `images` has a number for each split and task, which says which images of which classes they are, in any order:
    those of several tasks at once have the sum.
    """
    about = stream.describe()
    del about["source"]  # the data may lie elsewhere by then
    return _as_read({**about, "images": stream.digests(unordered_digest)})


def _as_read(about: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(about))


def check_states(states: TaskCheckpoints, stream: Mapping[str, Any]) -> bool:
    """Whether a model of an earlier run has learnt all classes of this stream's several tasks at once.

    Only a teacher may: there is then one state of it, for all tasks. Else there must be one after each task. Which
    images the run had is told by their digests, not by where they lie; one without digests is warned of.

    Args:
        stream: Output of [`describe_stream`].

    Raises:
        ValueError: The run has neither left.
    """
    role, run = states.role, states.run
    for task in range(stream["num_tasks"]):
        if not states.path(task).is_file():
            raise ValueError(f"{role}_run has no {role} of task {task + 1}: {states.path(task)} is missing")
        try:
            theirs = states.about(task)["stream"]
        except (DamagedFile, SafetensorError) as error:
            reason = error.reason if isinstance(error, DamagedFile) else error
            raise ValueError(f"{states.path(task)} of {role}_run is damaged: {reason}") from error
        if "images" not in theirs and task == 0:
            warnings.warn(
                f"{run} is of a version that kept no digests of its images: whether its {role} has learnt the images "
                "of this run, and none of its test images, could not be compared",
                stacklevel=2,
            )
        if role == "teacher" and stream["num_tasks"] > 1 and not _differing(theirs, _at_once(stream)):
            return True
        if differing := _differing(theirs, stream):
            raise ValueError(
                f"the {role} of {run} has learnt another stream ({differing}): take its data, tasks and stream_seed"
            )
    return False


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In what two streams differ, in words; empty where they do not."""
    names = _STREAM if "images" in theirs else [name for name in ours if name in theirs]
    differing = [name for name in names if theirs.get(name) != ours.get(name)]
    if differing == ["images"]:
        splits = [split for split in _SPLITS if theirs["images"][split] != ours["images"][split]]
        return f"other {' and '.join(splits)} images"
    return f"other {', '.join(differing)}" if differing else ""


def _at_once(stream: Mapping[str, Any]) -> dict[str, Any]:
    """The stream, were all its tasks one."""
    one = {name: [sum(stream[name])] for name in ("classes_per_task", *_SPLITS)}
    images = {split: [sum(stream["images"][split]) % 2**64] for split in _SPLITS}
    return {**stream, **one, "images": images, "num_tasks": 1}


class TaskCheckpointReplay:
    """What an earlier run has left of a model, for one that is built alike.

    Args:
        states: What was left.
        model: Into which it is put.
        about: What this run would leave with the model's states: see [`describe`].

    Attributes:
        at_once: Whether it has learnt all classes at once: it is the same in every task, and its classes are known.
        kept: Whether its classifier is this run's, as it was then.

    Raises:
        ValueError: The run has no such model, or not of all tasks, or it has learnt something else.
    """

    def __init__(self, states: TaskCheckpoints, model: PromptViTForImageClassification, about: Mapping[str, Any]):
        self.states, self.model, self.about = states, model, about
        role, run = states.role, states.run
        self.at_once = check_states(states, about["stream"])
        theirs = states.about(0)
        if theirs["networks"] != about["networks"]:
            raise ValueError(
                f"the {role} of {run} stands on other weights, or takes its query from others: take its --teacher, "
                "and its --student"
            )
        self.kept = theirs["head"] == about["head"]
        if not self.kept and theirs["head"]["aligned"]:
            raise ValueError(
                f"the heads of the {role} of {run} are aligned, and no longer as they were trained: take a run "
                "without classifier_alignment"
            )
        if self.at_once and not self.kept:
            raise ValueError(
                f"the {role} of {run} has seen all classes, and predicts as it does: take its --classifier"
            )
        try:
            states.load(0, model, classifier=self.kept)
        except ValueError as error:
            raise ValueError(f"the {role} of {run} is not the one configured here: {error}") from error
        for task in range(about["stream"]["num_tasks"]):
            if self._has_answers(task):
                states.answers(task).open(*self._answered(task))  # its mistakes are found before anything is trained

    @torch.no_grad()
    def load(self, task: int) -> None:
        """Puts the state after a task into the model; of heads that this run aligns, the newest classes' rows."""
        heads = [head for head in (self.model.head, self.model.kd_head) if head is not None]
        rows = [tensor for head in heads for tensor in (head.weight, head.bias)]
        before = [tensor.clone() for tensor in rows]
        self.states.load(0 if self.at_once else task, self.model, classifier=self.kept)
        if self.about["head"]["aligned"] and not self.kept:
            earlier = self.model.config.current_classes.start
            for tensor, aligned in zip(rows, before, strict=True):
                tensor[:earlier] = aligned[:earlier]

    def counts(self, task: int) -> Counts:
        """(right, all) test images of each task so far, as that run has found them; not of one `at_once`."""
        return self.states.counts(task)

    def answers(self, task: int) -> dict[str, list[np.ndarray | None]]:
        """Its answers to the task's training images, if they were stored and are of this run's images."""
        return self.states.answers(task).read(*self._answered(task)) if self._has_answers(task) else {}

    def _has_answers(self, task: int) -> bool:
        if self.at_once:
            return False  # they are in the order of its one task
        return self.states.about(task)["images"] == self.about["images"]

    def _answered(self, task: int) -> tuple[int, int]:
        """Epochs and images of a task."""
        num_train_epochs = self.about["images"][1]
        return num_train_epochs, self.about["stream"]["train"][task]
