"""Pareto front of models by cost and accuracy."""

from collections.abc import Mapping


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names on the Pareto front, in order of cost.

    Args:
        points: Name -> (cost, accuracy).

    Returns:
        Names of the points that no other one dominates; of equal points the first.
    """
    front, best = [], float("-inf")
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best:
            front.append(name)
            best = points[name][1]
    return front
