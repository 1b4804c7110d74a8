"""Ways to watch a run, or to alter it, without another trainer."""

from typing import TYPE_CHECKING

from ..data import Task

if TYPE_CHECKING:
    from .trainer import ContinualDistillationTrainer


class ContinualCallback:
    """Called at the joints of a run, on every process; a subclass has those of the methods that it needs.

    The trainer shows all there is: `models`, `matrices`, `seconds`, `folder`. Its `args` may be altered between the
    stages (a resumed run starts with the given ones again), and its `stop` ends the run. What happened after the last
    checkpoint happens again in a resumed run, so that a method may be called a second time for the same task.
    """

    def on_stage_end(self, trainer: "ContinualDistillationTrainer", task: Task, roles: tuple[str, ...]) -> None:
        """The models of `roles` have learnt the task."""

    def on_evaluation(self, trainer: "ContinualDistillationTrainer", task: Task) -> None:
        """`trainer.matrices` have the accuracy of each model on all tasks up to this one."""

    def on_task_end(self, trainer: "ContinualDistillationTrainer", task: Task) -> None:
        """All is done for the task but its checkpoint; what the models have learnt is in `states/`."""


class ShowAccuracy(ContinualCallback):
    """Prints a line after each task."""

    def on_evaluation(self, trainer: "ContinualDistillationTrainer", task: Task) -> None:
        shown = ", ".join(f"{role} {matrix.average_accuracy:.1f}%" for role, matrix in trainer.matrices.items())
        done = f"task {task.index + 1}/{len(trainer.stream)}, {task.class_ids.stop} classes"
        trainer.accelerator.print(f"{done}: accuracy {shown}")
