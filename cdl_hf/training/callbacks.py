"""Callbacks, which watch a run or change it."""

from typing import Any, Protocol

from accelerate import Accelerator
from transformers import CLIPImageProcessor

from ..arguments.config import CDLConfig
from ..cli import ParsedArguments
from ..data import Task, TaskImages, TaskStream
from ..evaluation import AccuracyMatrix
from ..evaluation.evaluator import Evaluator
from ..models import PromptViTForImageClassification
from ..runs.folder import RunFolder
from ..runs.progress import RunProgress
from .learner import Learner


class Run(Protocol):
    """A run, as callbacks and the writing of results see the trainer."""

    stream: TaskStream
    args: CDLConfig
    arguments: ParsedArguments
    image_processor: CLIPImageProcessor
    folder: RunFolder
    accelerator: Accelerator
    evaluator: Evaluator
    learners: dict[str, Learner]
    progress: RunProgress
    test_images: list[TaskImages]
    seconds: dict[str, float]

    @property
    def models(self) -> dict[str, PromptViTForImageClassification]: ...

    @property
    def matrices(self) -> dict[str, AccuracyMatrix]: ...

    @property
    def seconds_left(self) -> float | None: ...

    def stop(self) -> None: ...

    def results(self) -> dict[str, Any]: ...

    def save_models(self) -> None: ...

    def images_for_fitting(self, task: Task) -> TaskImages: ...


class ContinualCallback:
    """Hooks called during a run, on every process; a subclass overrides those that it needs.

    The trainer gives access to everything: `models`, `matrices`, `seconds`, `folder`. Its `args` may be changed
    between the stages (a resumed run starts with the given ones again), and its `stop` ends the run. A resumed run
    repeats what came after the last checkpoint, so that a hook may be called a second time for the same task.
    """

    def on_step_end(self, trainer: Run, task: Task, roles: tuple[str, ...], step: int) -> None:
        """The models of `roles`, in training mode, have taken an optimizer step, the `step`-th of the epoch."""

    def on_stage_end(self, trainer: Run, task: Task, roles: tuple[str, ...]) -> None:
        """The models of `roles` have learned the task."""

    def on_evaluation(self, trainer: Run, task: Task) -> None:
        """`trainer.matrices` have the accuracy of each model on all tasks up to this one."""

    def on_task_end(self, trainer: Run, task: Task) -> None:
        """The task is finished but for the run's checkpoint; its task checkpoints are in `states/`."""


class ShowAccuracy(ContinualCallback):
    """Prints a line after each task."""

    def on_evaluation(self, trainer: Run, task: Task) -> None:
        shown = ", ".join(f"{role} {matrix.average_accuracy:.1f}%" for role, matrix in trainer.matrices.items())
        domain = f" ({task.domain})" if task.domain is not None else ""
        done = f"task {task.index + 1}/{len(trainer.stream)}{domain}, {task.class_ids.stop} classes"
        left = trainer.seconds_left
        estimate = f" ({duration(left)} left)" if left else ""
        trainer.accelerator.print(f"{done}: accuracy {shown}{estimate}")


def duration(seconds: float) -> str:
    """Seconds in the units in which people think of them."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
