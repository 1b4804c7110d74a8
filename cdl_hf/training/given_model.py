"""A model that an earlier run has trained, taken over task by task."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from ..models import PromptViTForImageClassification
from .task_states import Counts, TaskStates


def check_states(states: TaskStates, stream: Mapping[str, Any]) -> bool:
    """Whether a model of an earlier run has learnt all classes of this stream's several tasks at once.

    Only a teacher may: there is then one state of it, for all tasks. Else there must be one after each task.

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
        except SafetensorError as error:
            raise ValueError(f"{states.path(task)} of {role}_from is damaged: {error}") from error
        if role == "teacher" and stream["num_tasks"] > 1 and theirs == _at_once(stream):
            return True
        if theirs != stream:
            raise ValueError(f"the {role} of {run} has learnt another stream: take its data, tasks and stream_seed")
    return False


def _at_once(stream: Mapping[str, Any]) -> dict[str, Any]:
    """The stream, were all its tasks one."""
    one = {name: [sum(stream[name])] for name in ("classes_per_task", "train", "validation", "test")}
    return {**stream, **one, "num_tasks": 1}


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

    def answers(self, task: int) -> dict[str, np.ndarray]:
        """Its answers to the task's training images, if they were stored and are of this run's images."""
        if self.at_once:
            return {}  # they are in the order of its one task
        same_images = self.states.about(task)["images"] == self.about["images"]
        return self.states.answers(task).read() if same_images else {}
