"""Online evaluation: models tested while they learn, on the classes that they have been shown so far."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from ..arguments.config import CDLConfig
from ..data import Task, TaskImages, TaskStream
from ..data.labels import read_labels
from ..data.views import select_rows
from ..evaluation.evaluator import Evaluator
from ..models import PromptViTForImageClassification
from ..models.outputs import PromptViTOutput
from .callbacks import ContinualCallback, Run
from .learner import STUDENT, TEACHER
from .memory import explain_oom
from .stage import EpochSampler, order_seed

MERGED_AT_END = ("apt", "lora")  # prompt methods that predict with what was merged at the end of a task


@dataclass(frozen=True)
class Point:
    """A place in the stream where models are tested.

    Args:
        images: Training images shown by then, over all tasks.
        seen: (C,) whether each class is among them.
        is_end: Whether it is the end of a task, where models are tested once all of it is done.
    """

    images: int
    seen: np.ndarray
    is_end: bool


class OnlinePoints:
    """Where a stream is tested: every `eval_steps` optimizer steps of a task, and at its end.

    The order of the images is that of the training, so that nothing but the labels is needed to know what a model has
    been shown. Images that make no whole batch are not shown.

    Attributes:
        of_tasks: For each task, its points by the number of its optimizer steps done.
        class_order: (K,) class ids in the order in which the points see them; classes never seen are left out.
    """

    def __init__(self, stream: TaskStream, args: CDLConfig):
        assert args.eval_steps is not None
        self.of_tasks: list[dict[int, Point]] = []
        class_order: list[int] = []
        before, seen = 0, np.zeros(len(stream.class_names), bool)
        for task in stream:
            sampler = EpochSampler(len(task.train), min(args.batch_size, len(task.train)), order_seed(args, task))
            shown = stream.label_to_class_id[read_labels(task.train)][list(sampler)]
            points = {}
            for step in [*range(args.eval_steps, sampler.steps, args.eval_steps), sampler.steps]:
                images, known = min(step * args.batch_size, len(shown)), seen
                seen = known.copy()
                seen[shown[:images]] = True
                class_order += np.flatnonzero(seen & ~known).tolist()
                points[step] = Point(before + images, seen, step == sampler.steps)
            self.of_tasks.append(points)
            before += len(shown)
        self.class_order = np.array(class_order)

    def num_tested(self, test_labels: np.ndarray) -> int:
        """Number of images tested at all points together.

        Args:
            test_labels: Class ids of all test images, (n,).
        """
        points = [point for each in self.of_tasks for point in each.values()]
        counts = np.bincount(test_labels, minlength=len(points[0].seen))
        return sum(int(counts[point.seen].sum()) for point in points)


class OnlineEvaluation(ContinualCallback):
    """Tests models at the points of a stream and adds what is found to their learners' `online` accuracy.

    Args:
        accelerator: With `split_batches`.
        stream: The tasks.
        test_images: Of each task.
        args: The run's.
    """

    def __init__(
        self, accelerator: Accelerator, stream: TaskStream, test_images: Sequence[TaskImages], args: CDLConfig
    ):
        self.points = OnlinePoints(stream, args)
        self._test_images, self._label_to_class_id = test_images, stream.label_to_class_id
        options = (accelerator, args.eval_batch_size, args.dataloader_num_workers)
        # an evaluator keeps the queries of one model
        self._evaluators = {role: Evaluator(*options) for role in (TEACHER, STUDENT)}

    def on_step_end(self, trainer: Run, task: Task, roles: tuple[str, ...], step: int) -> None:
        point = self.points.of_tasks[task.index].get(step)
        if point is not None and not point.is_end:
            self._evaluate(trainer, task, roles, point)

    def on_evaluation(self, trainer: Run, task: Task) -> None:
        (point,) = (each for each in self.points.of_tasks[task.index].values() if each.is_end)
        self._evaluate(trainer, task, tuple(trainer.learners), point)

    def _evaluate(self, trainer: Run, task: Task, roles: tuple[str, ...], point: Point) -> None:
        began, size = time.perf_counter(), trainer.args.eval_batch_size
        where = f"the online evaluation in task {task.index + 1}"
        described = f"test images, in {where} after {point.images:,} training images of the stream,"
        images, total = self._images_of(point)
        for role in roles:
            learner = trainer.learners[role]
            if learner.online is None:
                continue
            was_training, model = learner.objective.training, _AmongSeen(learner.model, point.seen)
            with explain_oom(f"{where} does not fit into memory; take a smaller --eval_batch_size than {size}"):
                (counts,) = self._evaluators[role]({role: model}, [images], described)[role]
            learner.objective.train(was_training)
            learner.online.add(point.images, counts.correct, total)
            accuracy = learner.online.curve[-1][1]
            values = {"task": task.index, "stage": role, "images": point.images, "accuracy": accuracy}
            trainer.folder.log(event="online_evaluation", **values)
            trainer.accelerator.log({f"{role}/online_accuracy": accuracy}, step=trainer.progress.steps)
        trainer.seconds["evaluation"] += time.perf_counter() - began

    def _images_of(self, point: Point) -> tuple[TaskImages, int]:
        """The test images of the classes seen, filled up to whole batches, and their number without the filling.

        Every point has the batches of the points before it, whose queries are cached, and further ones. What fills the
        last one up is of classes that are not seen yet: no prediction is one of them, so none of it counts as correct.
        """
        labels, view = self._in_order
        total = int(point.seen[labels].sum())
        size = self._evaluators[STUDENT].batch_size
        rows = np.arange(min(math.ceil(total / size) * size, len(labels)))
        return TaskImages(select_rows(view, rows), self._label_to_class_id, self._test_images[0].transform), total

    @cached_property
    def _in_order(self) -> tuple[np.ndarray, Dataset]:
        """Class ids and view of the test images of all tasks, in the order in which their classes are seen."""
        labels = np.concatenate([images.labels for images in self._test_images])
        place = np.full(len(self._label_to_class_id), -1)
        place[self.points.class_order] = np.arange(len(self.points.class_order))
        rows = np.argsort(place[labels], kind="stable")
        rows = rows[place[labels[rows]] >= 0]
        view = concatenate_datasets([images.view for images in self._test_images])
        return labels[rows], select_rows(view, rows)


class _AmongSeen:
    """A model whose predictions are among some of its classes.

    Args:
        seen: (C,) which.
    """

    def __init__(self, model: PromptViTForImageClassification, seen: np.ndarray):
        self.model, self.unseen = model, torch.from_numpy(~seen)

    def eval(self) -> None:
        self.model.eval()

    def query(self, pixel_values: Tensor) -> Tensor | None:
        return self.model.query(pixel_values)

    def shares_query_with(self, other: object) -> bool:
        return other is self

    def __call__(self, pixel_values: Tensor, query: Tensor | None = None) -> PromptViTOutput:
        output = self.model(pixel_values, query=query)
        unseen = self.unseen[: output.logits.shape[1]].to(output.logits.device)
        output.logits = output.logits.masked_fill(unseen, -torch.inf)
        return output


def check_online(stream: TaskStream, model: PromptViTForImageClassification, args: CDLConfig) -> None:
    """
    Raises:
        ValueError: `eval_steps` is given, and the run has nothing that can be tested in the middle of a task.
    """
    config = model.config
    if args.eval_steps is None:
        return
    if model.classifier is not None:
        raise ValueError(
            f"eval_steps tests models in the middle of a task, and classifier={config.head} is computed at its end: "
            "take classifier=linear"
        )
    if args.classifier_alignment:
        raise ValueError(
            "eval_steps tests models in the middle of a task, and classifier_alignment aligns heads at its end: leave "
            "one of them out"
        )
    if config.prompt_method in MERGED_AT_END:
        raise ValueError(
            f"eval_steps tests models in the middle of a task, and {config.prompt_method} predicts with what it "
            "merges at its end: take another prompt_method"
        )
    if stream.domains is not None:
        raise ValueError(
            "eval_steps tests on the classes seen so far, and in a stream of domains all may come in the first: "
            "leave it out, the accuracy on each domain is measured after each task"
        )
