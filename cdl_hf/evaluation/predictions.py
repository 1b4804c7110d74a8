"""Predictions of models on a set of images, with their confidences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data import Batches


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model for n images.

    Attributes:
        class_ids: (n,) predicted class ids.
        confidences: (n,) their probabilities.
        in_own_task: (n,) class ids predicted among the classes of the image's own task; `None` without tasks.
    """

    class_ids: np.ndarray
    confidences: np.ndarray
    in_own_task: np.ndarray | None = None


def predict(
    models: Mapping[str, Callable[[Tensor], Tensor]], batches: Batches, task_of_class: Sequence[int] | None = None
) -> tuple[dict[str, Predictions], np.ndarray]:
    """Predictions of several models in one pass over the images.

    Args:
        models: Name -> function from pixel values (B, 3, H, W) on the CPU to logits (B, C).
        batches: Batches of the images, on the CPU.
        task_of_class: Task of each class, (C,), for predictions within the image's own task.

    Returns:
        Name -> predictions, and the labels (n,).
    """
    class_ids: dict[str, list[Tensor]] = {name: [] for name in models}
    confidences: dict[str, list[Tensor]] = {name: [] for name in models}
    in_own_task: dict[str, list[Tensor]] = {name: [] for name in models}
    labels = []
    tasks = None if task_of_class is None else torch.tensor(task_of_class)
    for batch in tqdm(batches, desc="images", unit="batch", leave=False, disable=None):
        labels.append(batch["labels"])
        for name, model in models.items():
            logits = model(batch["pixel_values"])
            highest = logits.softmax(1).max(1)
            confidences[name].append(highest.values.cpu())
            class_ids[name].append(highest.indices.cpu())
            if tasks is not None:
                others = tasks[batch["labels"]][:, None] != tasks
                in_own_task[name].append(logits.cpu().masked_fill(others, -torch.inf).argmax(1))
    predictions = {
        name: Predictions(
            torch.cat(class_ids[name]).numpy(),
            torch.cat(confidences[name]).numpy(),
            None if tasks is None else torch.cat(in_own_task[name]).numpy(),
        )
        for name in models
    }
    return predictions, torch.cat(labels).numpy()
