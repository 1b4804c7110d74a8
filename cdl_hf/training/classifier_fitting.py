"""Classifiers computed or aligned after a task, when the prompts are trained: no gradient reaches them any more.

It changes neither what was trained nor what will be, since in training only the newest task's classes compete.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from ..arguments.config import CDLConfig
from ..data import Batches, Task, TaskImages
from ..data.loaders import image_loader
from ..distillation.analytic import Analytic
from ..evaluation.evaluator import divided_batch_size
from ..models import PromptViTForImageClassification
from .learner import STUDENT, TEACHER, Learner
from .memory import explain_oom

Reader = Callable[[PromptViTForImageClassification, bool], tuple[Tensor, Tensor]]  # see Learner.fit_classifier


class FeatureExtractor(Protocol):
    """A [`PromptViTForImageClassification`], or another model with features for a classifier."""

    def eval(self) -> Any: ...

    def head_features(self, pixel_values: Tensor) -> Tensor: ...


@torch.no_grad()
def head_features(
    accelerator: Accelerator,
    model: FeatureExtractor,
    images: TaskImages,
    batch_size: int,
    workers: int,
    after_batch: Callable[[], None] = lambda: None,
    mirrored: bool = False,
) -> tuple[Tensor, Tensor]:
    """What a model's classifiers read of images, (n, 1 or 2, W), and the images' columns, (n,), on every process.

    Args:
        batch_size: Images of one step over all processes; rounded as the evaluator does.
        after_batch: Called on every process after each step; what it raises ends the work.
        mirrored: Whether to read their mirror images instead.

    Raises:
        FloatingPointError: A feature is not finite.
    """
    model.eval()
    loader = image_loader(accelerator, images, divided_batch_size(batch_size, accelerator), workers)
    all_features, all_labels = [], []
    for batch in Batches(loader, images):
        with accelerator.autocast():
            found = model.head_features(batch["pixel_values"].flip(-1) if mirrored else batch["pixel_values"])
        found, columns = accelerator.gather_for_metrics((found.float(), batch["labels"]))
        all_features.append(found)
        all_labels.append(columns)
        after_batch()
    features = torch.cat(all_features)
    if not features.isfinite().all():
        raise FloatingPointError("what the heads read of the training images is not finite")
    return features, torch.cat(all_labels)


class ClassifierFitting:
    """Fits the classifiers that predict in place of the heads, or aligns the heads, after each task.

    Args:
        accelerator: As in [`Stage`].
        learners: By role.
        after_batch: Called on every process after each step; what it raises ends the work.
    """

    def __init__(
        self, accelerator: Accelerator, learners: Mapping[str, Learner], after_batch: Callable[[], None] = lambda: None
    ):
        self.accelerator, self.learners, self.after_batch = accelerator, learners, after_batch

    def add_unlabeled(self, images: Sequence[TaskImages], args: CDLConfig) -> None:
        """Adds images without labels to a student's distillation in closed form; before the first task."""
        for block in images:
            objective = self.learners[STUDENT].objective
            assert isinstance(objective, Analytic)  # see check_fit
            objective.add_unlabeled(_features(self._reader(block, args)), args.horizontal_flip > 0)

    def read_before(self, task: Task, learners: Sequence[Learner], images: TaskImages, args: CDLConfig) -> None:
        """Reads the images of a task to come, for classifiers whose earlier tasks are carried along.

        Raises:
            OutOfMemory: The memory is full.
            FloatingPointError: A feature is not finite.
        """
        for learner in learners:
            if learner.is_compensated:
                where = f"the {learner.role}'s features before task {task.index + 1}"
                smaller = f"take a smaller --eval_batch_size than {args.eval_batch_size}"
                with explain_oom(f"computing {where} does not fit into memory; {smaller}"), explain_divergence(where):
                    learner.features_before = self._reader(images, args)(learner.model, False)[0].cpu()

    def fit(self, task: Task, images: TaskImages, args: CDLConfig) -> bool:
        """Fits them to a task's images, as these are tested; returns whether there are any to fit.

        Raises:
            OutOfMemory: The memory is full.
            FloatingPointError: A feature or a matrix is not finite.
        """
        smaller = f"take a smaller --eval_batch_size than {args.eval_batch_size}, --ranpac_width or --analytic_width"
        learners = [self.learners[role] for role in (STUDENT, TEACHER) if role in self.learners]
        learners = [learner for learner in learners if learner.has_classifier_to_fit]
        for learner in learners:
            where = f"the {learner.role}'s classifier after task {task.index + 1}"
            with explain_oom(f"computing {where} does not fit into memory; {smaller}"), explain_divergence(where):
                read = self._reader(images, args)
                learner.fit_classifier(task, read, args.horizontal_flip > 0, self.after_batch)
        return bool(learners)

    def _reader(self, images: TaskImages, args: CDLConfig) -> Reader:
        options = (args.eval_batch_size, args.dataloader_num_workers, self.after_batch)
        return lambda model, mirrored: head_features(self.accelerator, model, images, *options, mirrored)


def _features(read: Reader) -> Callable[[PromptViTForImageClassification, bool], Tensor]:
    return lambda model, mirrored: read(model, mirrored)[0]


@contextmanager
def explain_divergence(where: str) -> Iterator[None]:
    """Raises a matrix that cannot be solved or factored as numbers that have grown out of bounds.

    Raises:
        FloatingPointError: There was one.
    """
    try:
        yield
    except (torch.linalg.LinAlgError, FloatingPointError) as error:
        raise FloatingPointError(f"{where} cannot be computed ({str(error).splitlines()[0]})") from error
