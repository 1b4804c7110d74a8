"""What a saved model, or a teacher and its student, learn and forget after the end of their stream."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from torch import Tensor
from transformers import CLIPImageProcessor

from ..arguments.config import CDLConfig, DistillationArguments
from ..data import TaskImages, eval_transform, train_transform
from ..data.labels import normalized_name, read_labels
from ..data.views import select_rows
from ..distillation import TrainingObjective
from ..evaluation.evaluator import Evaluator
from ..models import PromptViTForImageClassification
from ..models.growth import names_of
from ..utils import derive_seed
from .build import build_objective
from .classifier_fitting import head_features
from .fisher import measure_fisher
from .stage import Stage, StageSettings


@dataclass(frozen=True)
class Learned:
    """What came of it.

    Args:
        new_classes: Names of the classes that were not known before.
        known_classes: Names of those that were.
        images: Number of images that were learned from.
        seconds: For all models.
        correct: For each model, correct predictions of the test images of these classes, among all classes known now,
            and the number of these images.
    """

    new_classes: list[str]
    known_classes: list[str]
    images: int
    seconds: float
    correct: dict[str, tuple[int, int]]


class FurtherLearning:
    """Models of one stream that learn from images which the stream did not have.

    A computed classifier takes new classes and further images of known ones, and nothing is trained. A trained head
    learns new classes as in a task of a run, with its prompts or weight updates; a student learns them as in its run.

    Args:
        models: By role, `"teacher"` and `"student"` or one of them.
        image_processor: Serves all of them.
        distillation: How the student learns.
        args: Hyper-parameters.
        accelerator: With `split_batches`.

    Raises:
        ValueError: A student learns from a teacher that is not given, or its heads are aligned after each task.
    """

    def __init__(
        self,
        models: Mapping[str, PromptViTForImageClassification],
        image_processor: CLIPImageProcessor,
        distillation: DistillationArguments,
        args: CDLConfig,
        accelerator: Accelerator,
    ):
        self.models, self.image_processor, self.args, self.accelerator = models, image_processor, args, accelerator
        self.distillation = distillation
        first = next(iter(models.values()))
        self.class_names = names_of(first.config)
        if any(names_of(model.config) != self.class_names for model in models.values()):
            raise ValueError("teacher and student do not know the same classes in the same order")
        for model in models.values():
            if "teacher" not in models and model.config.kd_branch != "none":
                raise ValueError(
                    f"this model is a student that learns from its teacher (kd_branch={model.config.kd_branch}): give "
                    "the folder of the run, which has both"
                )
        is_distilled = distillation.distillation != "none" and "teacher" not in models
        if is_distilled and any(model.classifier is None for model in models.values()):
            raise ValueError(
                f"this student has learned from its teacher ({distillation.distillation}): give the folder of the "
                "run, which has both"
            )
        if args.classifier_alignment:
            raise ValueError(
                "the heads of this run are aligned to all classes after each task, by statistics of the earlier "
                "classes that are not kept: choose a computed classifier (ncm or ranpac)"
            )

        if not args.num_train_epochs and any(model.classifier is None for model in models.values()):
            raise ValueError(
                "the run trained no heads (num_train_epochs=0), so there are none to train further: take a run with "
                "a computed classifier (ncm or ranpac)"
            )

    def learn(self, train: Dataset, test: Dataset) -> Learned:
        """Learns from images, and tests the models on others of the same classes.

        Args:
            train, test: Columns `image` and `label`, a ClassLabel; classes are matched to known ones by their names.

        Raises:
            ValueError: A model cannot learn these classes.
        """
        began, names = time.perf_counter(), train.features["label"].names
        class_ids = {normalized_name(name): class_id for class_id, name in enumerate(self.class_names)}
        present = [names[label] for label in np.unique(read_labels(train))]
        new = list(
            {normalized_name(name): name for name in present if normalized_name(name) not in class_ids}.values()
        )
        known = [name for name in present if normalized_name(name) in class_ids]
        class_ids |= {normalized_name(name): len(self.class_names) + i for i, name in enumerate(new)}
        label_to_class_id = np.array([class_ids.get(normalized_name(name), -1) for name in names])
        for role in sorted(self.models, key=["teacher", "student"].index):
            model = self.models[role]
            if known and model.classifier is None:
                raise ValueError(
                    f"the {role} has a trained head, which learns a class once, and knows {known[0]!r} already: leave "
                    "such classes out, or choose a computed classifier (ncm or ranpac)"
                )
            if len(new) < 2 and model.classifier is None:
                raise ValueError(
                    f"the {role} has a trained head, and training cannot tell one class alone from others: give "
                    "images of two new classes or more, or choose a computed classifier (ncm or ranpac)"
                )
            set_seed(derive_seed(self.args.seed, "further", role, model.config.tasks_seen))
            if new:
                model.add_classes(new)
            self._learn(role, train, label_to_class_id)
        self.class_names += new
        seconds = time.perf_counter() - began
        tested = select_rows(test, np.flatnonzero(np.isin(read_labels(test), np.unique(read_labels(train)))))
        images = TaskImages(tested, label_to_class_id, eval_transform(self.image_processor))
        evaluator = Evaluator(self.accelerator, self.args.eval_batch_size, self.args.dataloader_num_workers)
        counts = evaluator(self.models, [images]) if len(images) else {}
        correct = {role: (of_all.correct, of_all.total) for role, (of_all,) in counts.items()}
        return Learned(new, known, len(train), seconds, correct)

    def _learn(self, role: str, view: Dataset, label_to_class_id: np.ndarray) -> None:
        args, model, task = self.args, self.models[role], self.models[role].config.tasks_seen - 1
        objective = TrainingObjective(model)
        if role == "student":
            objective = build_objective(model, self.models.get("teacher"), self.distillation)
        for_fitting = TaskImages(view, label_to_class_id, eval_transform(self.image_processor))
        options = (args.eval_batch_size, args.dataloader_num_workers)
        if model.classifier is None:
            low, high = args.crop_scale
            transform = train_transform(self.image_processor, (low, high), horizontal_flip=args.horizontal_flip)
            images = TaskImages(view, label_to_class_id, transform, seed=args.seed, task=task)
            settings = StageSettings(
                name=f"the {role}'s new classes",
                num_train_epochs=args.num_train_epochs,
                batch_size=args.batch_size,
                learning_rate=args.learning_rate,
                num_workers=args.dataloader_num_workers,
                seed=derive_seed(args.seed, "order", task),
            )
            for epoch in Stage(self.accelerator, {role: objective}, images, settings):
                for _ in epoch:
                    pass
            measure_fisher(self.accelerator, model, for_fitting, *options)
            merges_late = args.teacher_merge == "after_student" and "student" in self.models
            if role != "teacher" or not merges_late:
                model.end_task()
            if role == "student" and "teacher" in self.models and merges_late:
                self.models["teacher"].end_task()
        objective.eval()
        if model.classifier is not None:

            def read(model: PromptViTForImageClassification, mirrored: bool) -> tuple[Tensor, Tensor]:
                return head_features(self.accelerator, model, for_fitting, *options, mirrored=mirrored)

            features, labels = read(model, False)
            objective.fit_classifier(
                features, labels, lambda other, mirrored: read(other, mirrored)[0], args.horizontal_flip > 0
            )


def forget(
    model: PromptViTForImageClassification,
    class_names: Sequence[str],
    train: Dataset | None,
    image_processor: CLIPImageProcessor,
    args: CDLConfig,
    accelerator: Accelerator,
) -> None:
    """Removes classes from a model, as [`PromptViTForImageClassification.remove_classes`] describes.

    Args:
        train: With the images that the classes were learned from, columns `image` and `label`; images of other
            classes are not read.

    Raises:
        ValueError: The model cannot forget these classes, or not by these images.
    """
    features, labels = None, None
    if train is not None:
        class_ids = {normalized_name(name): i for i, name in enumerate(names_of(model.config)) if name in class_names}
        label_to_class_id = np.array([class_ids.get(normalized_name(n), -1) for n in train.features["label"].names])
        rows = np.flatnonzero(label_to_class_id[read_labels(train)] >= 0)
        if not len(rows):
            raise ValueError(f"the data set has no training images of the classes to forget: {', '.join(class_names)}")
        images = TaskImages(select_rows(train, rows), label_to_class_id, eval_transform(image_processor))
        options = (args.eval_batch_size, args.dataloader_num_workers)
        features, labels = head_features(accelerator, model, images, *options)
    model.remove_classes(class_names, features, labels)
