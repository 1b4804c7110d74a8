"""What models answer on a set of images, and how sure they are."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data import Batches


@dataclass(frozen=True)
class Predictions:
    """Of each image the column answered, and the probability that the model gives it, each (n,)."""

    class_ids: np.ndarray
    confidences: np.ndarray


def predict(
    models: dict[str, Callable[[Tensor], Tensor]], batches: Batches
) -> tuple[dict[str, Predictions], np.ndarray]:
    """Every model's answers in one pass over the images.

    Args:
        models: Name -> what gives logits (B, C) for pixel values (B, 3, H, W) on the CPU.
        batches: Of the images, on the CPU.

    Returns:
        Name -> answers, and the labels (n,).
    """
    columns: dict[str, list[Tensor]] = {name: [] for name in models}
    confidences: dict[str, list[Tensor]] = {name: [] for name in models}
    labels = []
    for batch in tqdm(batches, desc="images", unit="batch", leave=False):
        labels.append(batch["labels"])
        for name, model in models.items():
            highest = model(batch["pixel_values"]).softmax(1).max(1)
            confidences[name].append(highest.values.cpu())
            columns[name].append(highest.indices.cpu())
    answers = {
        name: Predictions(torch.cat(columns[name]).numpy(), torch.cat(confidences[name]).numpy()) for name in models
    }
    return answers, torch.cat(labels).numpy()
