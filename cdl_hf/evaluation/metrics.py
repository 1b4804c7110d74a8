"""Metrics of the predictions of one model on one set of images: accuracy, confusion and calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .predictions import Predictions

BINS = 15  # as in the paper
NUM_WORST_PAIRS = 20  # confusions that are listed


def prediction_metrics(
    predictions: Predictions,
    labels: np.ndarray,
    class_names: list[str],
    task_of_class: Sequence[int],
    domains: np.ndarray | None = None,
) -> dict[str, Any]:
    """Accuracy (%) overall, by task and by class, confusion, and calibration, in types of JSON.

    Args:
        predictions: Predictions of the model, (n,).
        labels: (n,) true class ids.
        class_names: Names of the classes seen, C of them, by class id.
        task_of_class: Task of the test images of each class, (C,), from 0.
        domains: Name of the domain of each image, (n,): then the accuracies are by domain in place of by task.

    Returns:
        The accuracy of a task or class without images is `None`, and excluded from means. With predictions within the
        image's own task, the accuracy among its classes and the share of images assigned to the right task, as
        [`TaskCounts`] defines them; there are none by domain, because a class does not have one.
    """
    correct = predictions.class_ids == labels
    if domains is None:
        task_of_image = np.asarray(task_of_class)[labels]
        of_tasks = [task_of_image == task for task in range(max(task_of_class) + 1)]
        tasks = [_accuracy(correct[own]) for own in of_tasks]
        by_part: dict[str, Any] = {"accuracy_by_task": tasks}
        if predictions.in_own_task is not None:
            task_known = predictions.in_own_task == labels
            right_task = np.asarray(task_of_class)[predictions.class_ids] == task_of_image
            for name, is_right in (("task_known_accuracy", task_known), ("right_task_share", right_task)):
                shares = [_accuracy(is_right[own]) for own in of_tasks]
                by_part |= {name: _mean(shares), f"{name}_by_task": shares}
    else:
        of_domain = {str(name): _accuracy(correct[domains == name]) for name in np.unique(domains)}
        tasks, by_part = list(of_domain.values()), {"accuracy_by_domain": of_domain}
    confusion = confusion_matrix(labels, predictions.class_ids, len(class_names))
    return {
        "images": len(labels),
        "average_accuracy": _mean(tasks),
        "average_accuracy_by_image": _accuracy(correct),
        **by_part,
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


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (C, C): rows are true classes, columns predicted classes.

    Args:
        labels, predictions: (n,) class ids in [0, C).
        num_classes: C.
    """
    pairs = np.asarray(labels) * num_classes + np.asarray(predictions)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def worst_pairs(matrix: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The most frequent confusions, (true class, predicted class, number of images > 0), in descending order."""
    mistakes = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    pairs = [divmod(int(place), len(matrix)) for place in order]
    return [(true, other, int(matrix[true, other])) for true, other in pairs if mistakes[true, other]]


def reliability(confidences: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """Predictions grouped by confidence into intervals ((k-1)/bins, k/bins]; empty intervals are left out.

    Args:
        confidences: (n,) probability of the predicted class, in [0, 1].
        correct: (n,) whether the prediction is correct.
        bins: Number of intervals.

    Returns:
        For each interval the upper bound, the number of predictions, their mean confidence and accuracy (in [0, 1]).

    Raises:
        ValueError: There are no predictions, or a confidence is not in [0, 1].
    """
    confidences, correct = np.asarray(confidences, np.float64), np.asarray(correct, bool)
    if not len(confidences):
        raise ValueError("there are no predictions whose calibration can be measured")
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise ValueError("confidences must be probabilities in [0, 1]")
    place = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    return [
        {
            "upper_bound": (k + 1) / bins,
            "count": int((place == k).sum()),
            "confidence": float(confidences[place == k].mean()),
            "accuracy": float(correct[place == k].mean()),
        }
        for k in np.unique(place)
    ]


def expected_calibration_error(confidences: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """ECE in percentage points (Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, eq. 3).

    The mean of |accuracy - confidence| over the intervals of [`reliability`], each weighted by its share of the
    predictions; the confidence is the probability of the predicted class.

    Args:
        confidences: (n,) in [0, 1].
        correct: (n,) whether the prediction is correct.
        bins: Number of intervals.
    """
    groups = reliability(confidences, correct, bins)
    total = sum(group["count"] for group in groups)
    return 100 * sum(group["count"] / total * abs(group["accuracy"] - group["confidence"]) for group in groups)


def _mean(values: list[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def _accuracy(correct: np.ndarray) -> float | None:
    return 100 * float(correct.mean()) if len(correct) else None
