"""The baselines of a run: classifiers computed on the frozen backbones, with which nothing is trained."""

from functools import partial
from typing import Any, cast

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from ..data import TaskImages
from ..distillation.analytic import Analytic
from ..evaluation.evaluator import Evaluator
from ..models import PromptViTConfig, PromptViTForImageClassification
from ..utils import derive_seed
from .classifier_fitting import head_features

_SHARED = ("backbone", "backbone_args", "ranpac_width", "analytic_width")  # fields of the configuration


def frozen(
    model: PromptViTForImageClassification, class_names: list[str], **config
) -> PromptViTForImageClassification:
    """A model on the backbone of another one, without prompts and with RanPAC, for all classes at once.

    Args:
        model: Its backbone is shared, not copied.
        config: Further fields of the configuration.
    """
    own = model.config
    fields: dict[str, Any] = {name: getattr(own, name) for name in _SHARED} | config
    made = PromptViTForImageClassification(
        PromptViTConfig(classes_per_task=[own.num_classes], prompt_method="none", head="ranpac", **fields)
    )
    made.backbone = model.backbone
    cast(nn.Module, made).to(model.device)
    made.start_task(class_names)
    return made.eval()


def _given(features: Tensor, model: PromptViTForImageClassification, mirrored: bool) -> Tensor:
    """Features that were read before."""
    return features


@torch.no_grad()
def baseline_accuracies(
    models: dict[str, PromptViTForImageClassification],
    training_images: list[TaskImages],
    test_images: list[TaskImages],
    class_names: list[str],
    evaluator: Evaluator,
    seed: int,
) -> dict[str, dict[str, float]]:
    """For each baseline the accuracy in % after all tasks, mean over the tasks, by role.

    `"frozen_ranpac"` is RanPAC (arXiv 2307.02251) on each model's frozen backbone, `"frozen_analytic"` distillation in
    closed form between these, fitted task after task as in a run: the features of one task are in memory at a time.

    Args:
        models: Teacher and student by role.
        training_images, test_images: Of each task, under the eval transform.
        class_names: By class id.
        evaluator: Of the run.
        seed: The run's.
    """
    set_seed(derive_seed(seed, "baseline", "teacher"))
    teacher = frozen(models["teacher"], class_names)
    width = teacher.network.width(teacher.readout)
    set_seed(derive_seed(seed, "baseline", "student"))
    groups = models["student"].network.num_tokens
    student = frozen(models["student"], class_names, kd_branch="analytic", teacher_width=width, analytic_groups=groups)
    plain = frozen(models["student"], class_names)

    options = (evaluator.batch_size, evaluator.num_workers, evaluator.after_batch)

    distillation = Analytic(student, teacher)
    for images in training_images:
        taught, labels = head_features(evaluator.accelerator, teacher, images, *options)
        teacher.fit_classifier(taught, labels)
        features, _ = head_features(evaluator.accelerator, student, images, *options)
        distillation.fit_classifier(features, labels, partial(_given, taught), mirror=False)
        plain.fit_classifier(features[..., -student.network.embed_dim :], labels)
    predictors = {"teacher": teacher, "student": plain, "analytic": student}
    counts = Evaluator(evaluator.accelerator, *options)(predictors, test_images)
    accuracies = {
        name: 100 * sum(of_task.correct / of_task.total for of_task in of_tasks) / len(test_images)
        for name, of_tasks in counts.items()
    }
    return {
        "frozen_ranpac": {role: accuracies[role] for role in ("teacher", "student")},
        "frozen_analytic": {"student": accuracies["analytic"]},
    }
