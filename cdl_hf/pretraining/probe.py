"""Accuracy of simple classifiers on a frozen backbone's features, fitted on all classes at once."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.labels import complete_labels
from ..data.splits import Splits
from ..data.task_images import Batches, TaskImages
from ..data.transforms import eval_transform, image_processor_for
from ..models import PromptViTConfig
from ..models.classifiers import RanPAC

RIDGE = 1e-3  # of the linear probe; fixed beforehand, not tuned
RANPAC_WIDTH = 2000  # number of random features, as the default of training


def probe(backbone: Any, splits: Splits, batch_size: int = 256) -> dict[str, float]:
    """Accuracy (%) of a linear classifier, the nearest class mean (cosine) and RanPAC on a frozen backbone's features.

    Args:
        backbone: A timm model of any architecture, without classifier.
        splits: With images of every class in "train".

    Raises:
        ValueError: A class has no training image.
    """
    complete_labels(splits["train"], "train")
    classes = splits["train"].features["label"].num_classes
    transform = eval_transform(image_processor_for(backbone.pretrained_cfg))
    (x, y), (x_test, y_test) = (
        _features(backbone, TaskImages(splits[split], np.arange(classes), transform), batch_size)
        for split in ("train", "test")
    )
    means = torch.stack([F.normalize(x[y == label], dim=1).mean(0) for label in range(classes)])
    nearest = (F.normalize(x_test, dim=1) @ F.normalize(means, dim=1).T).argmax(1)
    predictions = {
        "linear_probe": _linear(x, y, x_test, classes),
        "nearest_class_mean": nearest,
        "ranpac": _ranpac(x, y, x_test, classes),
    }
    return {name: 100 * (predicted == y_test).float().mean().item() for name, predicted in predictions.items()}


@torch.no_grad()
def _features(backbone, images: TaskImages, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that a head reads (n, D), and labels (n,)."""
    device = next(backbone.parameters()).device
    backbone.eval()
    features, labels = [], []
    for batch in tqdm(Batches(DataLoader(images, batch_size), images), desc="features", leave=False):
        tokens = backbone.forward_features(batch["pixel_values"].to(device))
        features.append(backbone.forward_head(tokens, pre_logits=True).float().cpu())
        labels.append(batch["labels"])
    return torch.cat(features), torch.cat(labels)


def _linear(x: torch.Tensor, y: torch.Tensor, x_test: torch.Tensor, classes: int) -> torch.Tensor:
    """Predictions of multinomial logistic regression on standardized features, trained to convergence."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = (x - mean) / std, (x_test - mean) / std
    head = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(head(x), y) + RIDGE / 2 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head(x_test).argmax(1)


def _ranpac(x: torch.Tensor, y: torch.Tensor, x_test: torch.Tensor, classes: int) -> torch.Tensor:
    """Predictions of RanPAC fitted on all classes at once, always with the same random projection."""
    config = PromptViTConfig(classes_per_task=[classes], head="ranpac", ranpac_width=RANPAC_WIDTH)
    classifier = RanPAC(config, x.shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier.init_weights()
    classifier.fit(x, y)
    return classifier(x_test, classes).argmax(1)
