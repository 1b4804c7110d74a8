"""Predictions of models on a set of images, with their confidences."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data import Batches


@dataclass(frozen=True)
class Predictions:
    """Predicted class id of each image and its probability, each (n,)."""

    class_ids: np.ndarray
    confidences: np.ndarray


def predict(
    models: dict[str, Callable[[Tensor], Tensor]], batches: Batches
) -> tuple[dict[str, Predictions], np.ndarray]:
    """Predictions of several models in one pass over the images.

    Args:
        models: Name -> function from pixel values (B, 3, H, W) on the CPU to logits (B, C).
        batches: Batches of the images, on the CPU.

    Returns:
        Name -> predictions, and the labels (n,).
    """
    class_ids: dict[str, list[Tensor]] = {name: [] for name in models}
    confidences: dict[str, list[Tensor]] = {name: [] for name in models}
    labels = []
    for batch in tqdm(batches, desc="images", unit="batch", leave=False):
        labels.append(batch["labels"])
        for name, model in models.items():
            highest = model(batch["pixel_values"]).softmax(1).max(1)
            confidences[name].append(highest.values.cpu())
            class_ids[name].append(highest.indices.cpu())
    predictions = {
        name: Predictions(torch.cat(class_ids[name]).numpy(), torch.cat(confidences[name]).numpy()) for name in models
    }
    return predictions, torch.cat(labels).numpy()
