"""Whether a model is right as often as it says."""

import numpy as np

BINS = 15  # the usual number, of the paper as well


def reliability(confidences: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """Answers grouped by confidence into intervals ((k-1)/bins, k/bins] of equal width; empty ones are left out.

    Args:
        confidences: (n,) probability that the model gave its answer, in [0, 1].
        correct: (n,) whether the answer is right.
        bins: Number of intervals.

    Returns:
        For each interval the upper bound, the number of answers, their mean confidence and accuracy (in [0, 1]).

    Raises:
        ValueError: There is no answer, or a confidence is not in [0, 1].
    """
    confidences, correct = np.asarray(confidences, np.float64), np.asarray(correct, bool)
    if not len(confidences):
        raise ValueError("there are no answers whose calibration could be measured")
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
    answers; the confidence is the probability of the predicted class.

    Args:
        confidences: (n,) in [0, 1].
        correct: (n,) whether the answer is right.
        bins: Number of intervals of equal width.
    """
    groups = reliability(confidences, correct, bins)
    total = sum(group["count"] for group in groups)
    return 100 * sum(group["count"] / total * abs(group["accuracy"] - group["confidence"]) for group in groups)
