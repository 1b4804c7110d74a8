"""The baseline of a run: RanPAC on the frozen backbones, with which nothing is trained."""

from types import SimpleNamespace

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from ..data import TaskImages
from ..evaluation.evaluator import Evaluator
from ..models import PromptViTForImageClassification
from ..models.classifiers import RanPAC
from ..models.prefix_attention import cls_features
from ..utils import derive_seed
from .classifier_fitting import head_features


class FrozenRanPAC(nn.Module):
    """RanPAC (arXiv 2307.02251) on the class token of a model's frozen backbone, without its prompts.

    It has the width and the ridge's rule of the model's configuration.

    Args:
        model: Its backbone is shared, not copied.
    """

    def __init__(self, model: PromptViTForImageClassification):
        super().__init__()
        self.backbone, self.num_classes = model.backbone, model.config.num_classes
        self.classifier = RanPAC(model.config, model.backbone.embed_dim)
        self.classifier.init_weights()
        self.classifier.to(model.device)

    def head_features(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1, D), as a model's."""
        return cls_features(self.backbone, pixel_values)[:, None]

    def query(self, pixel_values: Tensor) -> None:
        """It has no prompts."""

    def shares_query_with(self, other: nn.Module) -> bool:
        return False

    def forward(self, pixel_values: Tensor, query: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(self.head_features(pixel_values)[:, 0], self.num_classes))


@torch.no_grad()
def baseline_accuracies(
    models: dict[str, PromptViTForImageClassification],
    training_images: list[TaskImages],
    test_images: list[TaskImages],
    evaluator: Evaluator,
    seed: int,
) -> dict[str, float]:
    """For each model the accuracy in % after all tasks, mean over the tasks, of [`FrozenRanPAC`] on its backbone.

    Args:
        models: By role.
        training_images, test_images: Of each task, under the eval transform.
        evaluator: Of the run.
        seed: The run's.
    """
    baselines = {}
    for role, model in models.items():
        set_seed(derive_seed(seed, "baseline", role))
        baselines[role] = FrozenRanPAC(model)
        classifier = baselines[role].classifier
        for images in training_images:
            options = (evaluator.batch_size, evaluator.num_workers, evaluator.after_batch)
            features, labels = head_features(evaluator.accelerator, baselines[role], images, *options)
            add = classifier.fit if images is training_images[-1] else classifier.accumulate  # solved once
            add(features[:, 0], labels)
    counts = Evaluator(evaluator.accelerator, evaluator.batch_size, evaluator.num_workers, evaluator.after_batch)(
        baselines, test_images
    )
    return {
        role: 100 * sum(correct / total for correct, total in of_tasks) / len(test_images)
        for role, of_tasks in counts.items()
    }
