"""Mean and standard deviation over seeds, and paired differences with their confidence intervals."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

# 97.5% quantiles of Student's t distribution for 1, 2, ... 30 degrees of freedom
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

ScoresBySeed = Mapping[int, float]


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation (n - 1 in the denominator; `None` for a single value) of `count` values."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, scores: ScoresBySeed) -> "MeanStd":
        """Over all seeds.

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
    """Mean of `num_pairs` differences, and half the width of its 95% confidence interval (`None` for one pair)."""

    mean: float
    half_width: float | None
    num_pairs: int

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes zero; not corrected for the number of comparisons."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.mean - self.half_width:+.2f}, {self.mean + self.half_width:+.2f}]"


def paired_difference(scores: ScoresBySeed, reference: ScoresBySeed) -> PairedDifference | None:
    """`scores` minus `reference` over the seeds that both have; `None` if they share no seed.

    The interval is Student's t over the paired differences: mean ± t(n - 1) s / sqrt(n). Runs with the same seed share
    the order of their images and their initial weights, and the differences remove that common part. Beyond 31 pairs
    the quantile of 30 degrees of freedom is used, which makes the interval slightly too wide.
    """
    differences = [scores[seed] - reference[seed] for seed in scores if seed in reference]
    if not differences:
        return None
    count, half_width = len(differences), None
    if count > 1:
        quantile = T_QUANTILES[min(count - 1, len(T_QUANTILES)) - 1]
        half_width = quantile * statistics.stdev(differences) / math.sqrt(count)
    return PairedDifference(statistics.fmean(differences), half_width, count)


def significantly_best(scores: Mapping[str, ScoresBySeed]) -> str | None:
    """The name whose scores are above all others': the 95% interval of its difference to each excludes zero."""
    for name, own in scores.items():
        differences = [paired_difference(own, other) for key, other in scores.items() if key != name]
        if differences and all(d is not None and d.is_significant and d.mean > 0 for d in differences):
            return name
    return None
