"""What figures of several seeds say: their spread, and differences that are more than the spread."""

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

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 in the denominator; `None` of a single value) of `count` values."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: BySeed) -> "Spread":
        """Of the values of all seeds.

        Raises:
            ValueError: There is none.
        """
        if not values:
            raise ValueError("there are no values to take the mean of")
        figures = list(values.values())
        deviation = statistics.stdev(figures) if len(figures) > 1 else None
        return cls(statistics.fmean(figures), deviation, len(figures))

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


@dataclass(frozen=True)
class Difference:
    """Mean of `pairs` differences, and half the width of its 95% confidence interval (`None` for a single pair)."""

    mean: float
    half_width: float | None
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.mean - self.half_width:+.2f}, {self.mean + self.half_width:+.2f}]"


def paired_difference(values: BySeed, reference: BySeed) -> Difference | None:
    """Of the seeds that both have, `values` minus `reference`; `None` where they share none.

    The interval is Student's t over the paired differences: mean ± t(n - 1) s / sqrt(n). Seeds that two settings
    share have the order of their images and their new weights in common, which the differences leave out. Beyond 31
    pairs the quantile of 30 degrees of freedom is taken, which makes the interval a little too wide.
    """
    differences = [values[seed] - reference[seed] for seed in values if seed in reference]
    if not differences:
        return None
    count, half_width = len(differences), None
    if count > 1:
        quantile = T_QUANTILES[min(count - 1, len(T_QUANTILES)) - 1]
        half_width = quantile * statistics.stdev(differences) / math.sqrt(count)
    return Difference(statistics.fmean(differences), half_width, count)


def clear_best(values: Mapping[str, BySeed]) -> str | None:
    """The name whose values are above all others' by more than chance: its 95% interval to each leaves out zero."""
    for name, own in values.items():
        others = [paired_difference(own, other) for key, other in values.items() if key != name]
        if others and all(other is not None and other.is_clear and other.mean > 0 for other in others):
            return name
    return None
