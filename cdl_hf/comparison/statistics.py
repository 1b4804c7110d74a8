"""Mean and standard deviation over runs, paired differences with confidence intervals, and Holm's correction."""

import math
import statistics
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

LEVEL = 0.05
MIN_RUNS = 3  # fewer say too little on their own variation for an interval

Key = TypeVar("Key", bound=Hashable)
Scores = Mapping[Any, float]  # by run: its class order and seed


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation (n - 1 in the denominator; `None` for a single value) of `count` values."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, scores: Scores) -> "MeanStd":
        """Over all runs.

        Raises:
            ValueError: There are no scores.
        """
        if not scores:
            raise ValueError("cannot take the mean of no values")
        values = list(scores.values())
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `num_pairs` differences, with its uncertainty where there are at least [`MIN_RUNS`] pairs.

    Args:
        mean: Mean of the differences.
        half_width: Half the width of the 95% confidence interval; `None` also where the differences do not vary.
        p_value: Probability of a mean at least as far from zero if the true difference is zero; two-sided.
        num_pairs: Number of independent differences: of class orders, or of seeds where there is one order.
    """

    mean: float
    half_width: float | None
    p_value: float | None
    num_pairs: int

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.mean - self.half_width:+.2f}, {self.mean + self.half_width:+.2f}]"


def paired_difference(scores: Scores, reference: Scores) -> PairedDifference | None:
    """`scores` minus `reference` over the runs that both have; `None` if they share none.

    The interval is Student's t over the paired differences: mean ± t(n - 1) s / sqrt(n). Runs with the same class
    order and seed share their images, the order of these and their initial weights, and the differences remove that
    common part. The seeds of one class order share what is peculiar to it: where there are several orders, the
    differences are the means of each order.
    """
    differences = _independent({run: scores[run] - reference[run] for run in scores if run in reference})
    if not differences:
        return None
    count, mean = len(differences), statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(count) if count >= MIN_RUNS else 0.0
    if error < 1e-9:  # too few, or all the same, which says nothing about the noise
        return PairedDifference(mean, None, None, count)
    return PairedDifference(mean, t_quantile(count - 1) * error, two_sided_p(abs(mean) / error, count - 1), count)


def _independent(differences: Scores) -> list[float]:
    by_order: dict[Any, list[float]] = {}
    for run, difference in differences.items():
        by_order.setdefault(getattr(run, "order", run), []).append(difference)
    of_orders = list(by_order.values())
    return of_orders[0] if len(of_orders) == 1 else [statistics.fmean(values) for values in of_orders]


def binomial_half_width(accuracy: float, count: int) -> float:
    """Half the width, in points, of the 95% interval that an accuracy has from the number of test images alone.

    The score interval: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.

    Args:
        accuracy: In %.
        count: Number of images.
    """
    p, z = accuracy / 100, statistics.NormalDist().inv_cdf(1 - LEVEL / 2)
    return 100 * z / (1 + z**2 / count) * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))


def two_sided_p(t: float, degrees: int) -> float:
    """Probability of a value at least as far from zero as t >= 0 under Student's t distribution.

    The finite series for whole degrees of freedom: Abramowitz and Stegun, Handbook of Mathematical Functions,
    26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    total, term = 0.0, cosine if is_odd else 1.0
    for power in range(is_odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return max(1 - inside, 0.0)


@cache
def t_quantile(degrees: int) -> float:
    """The t whose two-sided probability is 5%."""
    low, high = 1.0, 13.0  # 12.71 with one degree of freedom
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, degrees) > LEVEL else (low, middle)
    return (low + high) / 2


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """P values corrected for the number of comparisons by Holm's step-down method: below 5%, a result is significant.

    The smallest is multiplied by the number of comparisons, the next by one less, and so on; none is below the one
    before (Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979).
    """
    corrected: dict[Key, float] = {}
    highest = 0.0
    for place, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        highest = max(highest, min((len(p_values) - place) * p_values[key], 1.0))
        corrected[key] = highest
    return corrected


@dataclass(frozen=True)
class Comparison:
    """A difference as one of several that were looked at together; `p_value` is corrected for their number."""

    difference: PairedDifference
    p_value: float | None

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p value is below 5%."""
        return self.p_value is not None and self.p_value < LEVEL

    @property
    def is_better(self) -> bool:
        """Whether the first is significantly better than the second."""
        return self.is_significant and self.difference.mean > 0

    def __str__(self) -> str:
        if self.p_value is None:
            return str(self.difference)
        return f"{self.difference}, p {'< 0.001' if self.p_value < 0.001 else f'= {self.p_value:.3f}'}"


def compare(pairs: Mapping[Key, tuple[Scores, Scores]]) -> dict[Key, Comparison]:
    """Differences of the first to the second scores, with Holm's correction; pairs without common runs are ignored."""
    found = {key: paired_difference(*pair) for key, pair in pairs.items()}
    differences = {key: difference for key, difference in found.items() if difference is not None}
    p_values = holm({key: d.p_value for key, d in differences.items() if d.p_value is not None})
    return {key: Comparison(difference, p_values.get(key)) for key, difference in differences.items()}


def best_of(scores: Mapping[Key, Scores]) -> tuple[Key, dict[Key, Comparison]]:
    """The name with the highest mean over the runs that all have, or else over its own; its comparisons to all others.

    Raises:
        ValueError: There are no scores.
    """
    shared = [run for run in next(iter(scores.values()), {}) if all(run in other for other in scores.values())]

    def mean(name: Key) -> float:
        return statistics.fmean(scores[name][run] for run in shared or scores[name])

    best = max(scores, key=mean)
    return best, compare({name: (scores[best], other) for name, other in scores.items() if name != best})


def significantly_best(scores: Mapping[Key, Scores]) -> Key | None:
    """The name with the highest mean, if it is significantly better than each of the others."""
    if len(scores) < 2:
        return None
    best, others = best_of(scores)
    is_clear = len(others) == len(scores) - 1 and all(other.is_better for other in others.values())
    return best if is_clear else None
