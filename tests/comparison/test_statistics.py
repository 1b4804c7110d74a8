"""Means, paired intervals and significance, against values computed by hand."""

import math

import pytest

from cdl_hf.comparison.statistics import T_QUANTILES, MeanStd, PairedDifference, paired_difference, significantly_best


def test_mean_and_standard_deviation():
    assert MeanStd.of({0: 1.0, 1: 2.0, 2: 6.0}) == MeanStd(3.0, math.sqrt(7), 3)  # (4 + 1 + 9) / 2
    assert str(MeanStd.of({0: 1.0, 1: 2.0, 2: 6.0})) == "3.00 ± 2.65"
    assert str(MeanStd.of({4: 1.5})) == "1.50"
    with pytest.raises(ValueError, match="no values"):
        MeanStd.of({})


def test_paired_interval():
    # Differences 1, 2, 3: mean 2, s = 1, and 4.303 / sqrt(3) = 2.484 on two degrees of freedom.
    found = paired_difference({0: 11.0, 1: 22.0, 2: 33.0}, {2: 30.0, 1: 20.0, 0: 10.0})
    assert (found.mean, found.num_pairs) == (2.0, 3)
    assert found.half_width == pytest.approx(2.4843, abs=1e-4)
    assert not found.is_significant
    assert str(found) == "+2.00 [-0.48, +4.48]"


def test_only_shared_seeds_are_paired():
    found = paired_difference({0: 1.0, 1: 5.0, 7: 100.0}, {0: 0.0, 1: 2.0, 8: 0.0})
    assert (found.mean, found.num_pairs) == (2.0, 2)
    assert found.half_width == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2))
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_one_pair_has_no_interval_and_is_never_significant():
    found = paired_difference({0: 50.0}, {0: 1.0})
    assert found == PairedDifference(49.0, None, 1)
    assert not found.is_significant
    assert str(found) == "+49.00"


def test_quantiles_fall_to_the_normal_one():
    assert len(T_QUANTILES) == 30
    assert all(a > b > 1.96 for a, b in zip(T_QUANTILES, T_QUANTILES[1:], strict=False))
    many = {seed: float(seed % 2) for seed in range(100)}
    assert paired_difference(many, dict.fromkeys(many, 0.0)).half_width == pytest.approx(
        2.042 * math.sqrt(25 / 99) / 10
    )


def test_best_only_where_it_is_significantly_above_all_others():
    values = {"none": {0: 1.0, 1: 2.0, 2: 3.0}, "kd": {0: 1.1, 1: 2.2, 2: 3.2}, "kdp": {0: 4.0, 1: 5.1, 2: 6.0}}
    assert significantly_best(values) == "kdp"
    assert significantly_best({**values, "dkd": {0: 4.1, 1: 5.0, 2: 5.9}}) is None  # within the noise of another
    assert significantly_best({name: {0: value[0]} for name, value in values.items()}) is None  # one seed says nothing
    assert significantly_best({"kdp": values["kdp"]}) is None
