"""A model that an earlier run has trained, taken over task by task."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from ..models import PromptViTForImageClassification
from ..utils import DamagedFile
from .task_states import Counts, TaskStates

# What two runs must have in common for a model of one to serve in the other.
_STREAM = ("num_tasks", "classes_per_task", "class_names", "images")
_SPLITS = ("train", "validation", "test")


def check_states(states: TaskStates, stream: Mapping[str, Any]) -> bool:
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
            raise ValueError(f"{role}_from has no {role} of task {task + 1}: {states.path(task)} is missing")
        try:
            theirs = states.about(task)["stream"]
        except (DamagedFile, SafetensorError) as error:
            reason = error.reason if isinstance(error, DamagedFile) else error
            raise ValueError(f"{states.path(task)} of {role}_from is damaged: {reason}") from error
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


class GivenModel:
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

    def __init__(self, states: TaskStates, model: PromptViTForImageClassification, about: Mapping[str, Any]):
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
            raise ValueError(f"the {role} of {run} has seen all classes, and predicts as it does: take its --head")
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
            earlier = self.model.config.current_columns.start
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
        num_epochs = self.about["images"][1]
        return num_epochs, self.about["stream"]["train"][task]
