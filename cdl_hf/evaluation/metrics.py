"""Metrics of the predictions of one model on one set of images."""

from typing import Any

import numpy as np

from .calibration import BINS, expected_calibration_error, reliability
from .confusion import confusion_matrix, worst_pairs
from .predictions import Predictions

NUM_WORST_PAIRS = 20  # confusions that are listed


def prediction_metrics(
    predictions: Predictions, labels: np.ndarray, class_names: list[str], classes_per_task: list[int]
) -> dict[str, Any]:
    """Accuracy (%) over all, by task and by class, confusion, and calibration, in types that JSON holds.

    Args:
        predictions: The model's, (n,).
        labels: (n,) true class ids.
        class_names: Names of the classes seen, C of them, by class id.
        classes_per_task: Number of classes of each task seen; they add up to C.

    Returns:
        A task or class without images has `None` for its accuracy and is in no mean.
    """
    correct = predictions.class_ids == labels
    task_of_class = np.repeat(np.arange(len(classes_per_task)), classes_per_task)
    tasks = [_accuracy(correct[task_of_class[labels] == task]) for task in range(len(classes_per_task))]
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
            {"class": class_names[true], "taken_for": class_names[predicted], "images": count}
            for true, predicted, count in worst_pairs(confusion, NUM_WORST_PAIRS)
        ],
        "confusion": confusion.tolist(),
    }


def _accuracy(correct: np.ndarray) -> float | None:
    return 100 * float(correct.mean()) if len(correct) else None
