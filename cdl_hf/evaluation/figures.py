"""All figures of one model on one set of images."""

from typing import Any

import numpy as np

from .calibration import BINS, expected_calibration_error, reliability
from .confusion import confusion_matrix, worst_pairs
from .predictions import Predictions

PAIRS = 20  # most frequent mistakes that are listed


def figures(
    predictions: Predictions, labels: np.ndarray, class_names: list[str], classes_per_task: list[int]
) -> dict[str, Any]:
    """Accuracy (%) over all, by task and by class, confusion, and calibration, in types that JSON holds.

    Args:
        predictions: The model's answers, (n,).
        labels: (n,) columns of the true classes.
        class_names: Names of the classes seen, C of them, by column.
        classes_per_task: Classes of each task seen; they add up to C.

    Returns:
        A task or class without images has `None` for its accuracy and is in no mean.
    """
    correct = predictions.class_ids == labels
    task_of_column = np.repeat(np.arange(len(classes_per_task)), classes_per_task)
    tasks = [_accuracy(correct[task_of_column[labels] == task]) for task in range(len(classes_per_task))]
    confusion = confusion_matrix(labels, predictions.class_ids, len(class_names))
    return {
        "images": len(labels),
        "average_accuracy": float(np.mean([accuracy for accuracy in tasks if accuracy is not None])),
        "average_accuracy_by_image": _accuracy(correct),
        "accuracy_by_task": tasks,
        "accuracy_by_class": {name: _accuracy(correct[labels == i]) for i, name in enumerate(class_names)},
        "calibration": {
            "expected_calibration_error": expected_calibration_error(predictions.confidences, correct),
            "mean_confidence": 100 * float(predictions.confidences.mean()),
            "bins": BINS,
            "reliability": reliability(predictions.confidences, correct),
        },
        "worst_pairs": [
            {"class": class_names[true], "taken_for": class_names[answer], "images": count}
            for true, answer, count in worst_pairs(confusion, PAIRS)
        ],
        "confusion": confusion.tolist(),
    }


def _accuracy(correct: np.ndarray) -> float | None:
    return 100 * float(correct.mean()) if len(correct) else None
