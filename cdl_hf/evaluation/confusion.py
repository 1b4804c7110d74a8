"""Which classes are taken for which."""

import numpy as np


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (C, C): row is the true class, column the answer.

    Args:
        labels, predictions: (n,) columns in [0, C).
        num_classes: C.
    """
    pairs = np.asarray(labels) * num_classes + np.asarray(predictions)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def worst_pairs(matrix: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes: (true class, answer, number of images), the most frequent first, none of zero."""
    mistakes = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    pairs = [divmod(int(place), len(matrix)) for place in order]
    return [(true, answer, int(matrix[true, answer])) for true, answer in pairs if mistakes[true, answer]]
