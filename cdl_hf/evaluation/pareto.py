"""Which of several models no other beats in both cost and accuracy."""

from collections.abc import Mapping


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names on the front, the cheapest first.

    Args:
        points: (cost, accuracy) by name.

    Returns:
        Those for which no other has at most the cost and at least the accuracy, and one of them better; of equal ones
        the first.
    """
    front, best = [], float("-inf")
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best:
            front.append(name)
            best = points[name][1]
    return front
