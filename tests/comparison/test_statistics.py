"""Means, paired intervals, p values and Holm's correction, against values computed by hand or from tables."""

import math

import pytest

from cdl_hf.comparison.experiments import Unit
from cdl_hf.comparison.statistics import (
    MeanStd,
    PairedDifference,
    binomial_half_width,
    holm,
    paired_difference,
    significantly_best,
    t_quantile,
    two_sided_p,
)


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
    assert found.half_width == pytest.approx(2.4841, abs=1e-4)
    # t = 2 sqrt(3); with two degrees of freedom p = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 / 14)
    assert found.p_value == pytest.approx(1 - math.sqrt(12 / 14))
    assert str(found) == "+2.00 [-0.48, +4.48]"


def test_only_shared_runs_are_paired():
    found = paired_difference({0: 1.0, 1: 5.0, 2: 6.0, 7: 100.0}, {0: 0.0, 1: 2.0, 2: 4.0, 8: 0.0})
    assert (found.mean, found.num_pairs) == (2.0, 3)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_pairs_have_no_interval(count):
    found = paired_difference({run: 50.0 + run for run in range(count)}, dict.fromkeys(range(count), 1.0))
    assert found == PairedDifference(49.0 + (count - 1) / 2, None, None, count)
    assert str(found) == f"{found.mean:+.2f}"


def test_equal_differences():
    """They say nothing about the noise."""
    found = paired_difference({0: 2.1, 1: 2.2, 2: 2.3}, {0: 1.1, 1: 1.2, 2: 1.3})
    assert found.mean == pytest.approx(1) and (found.p_value, found.half_width) == (None, None)


def test_seeds_of_one_class_order_are_not_independent():
    """Differences of about 0, 1 and 2 in three orders: the interval is that of three values, not of nine."""
    scores = {Unit(order, seed): order + 0.1 * seed for order in range(3) for seed in range(3)}
    found = paired_difference(scores, dict.fromkeys(scores, 0.0))
    assert found.num_pairs == 3
    of_orders = paired_difference({0: 0.1, 1: 1.1, 2: 2.1}, dict.fromkeys(range(3), 0.0))
    assert found.mean == pytest.approx(1.1) and found.half_width == pytest.approx(of_orders.half_width)
    one_order = {unit: score for unit, score in scores.items() if unit.order == 0}
    assert paired_difference(one_order, dict.fromkeys(one_order, 0.0)).num_pairs == 3


def test_the_best_is_found_on_the_runs_that_all_have():
    """A model with further runs, of easier orders, is not better for them."""
    lucky, better = {0: 50.0, 1: 50.2, 2: 50.1, 3: 70.0, 4: 70.0}, {0: 51.0, 1: 51.1, 2: 51.2}
    assert significantly_best({"lucky": lucky, "better": better}) == "better"
    apart = {"a": {0: 1.0, 1: 2.0, 2: 3.0, 8: 90.0}, "b": {0: 2.0, 1: 3.1, 2: 3.9}, "c": {8: 1.0}}
    assert significantly_best(apart) is None  # none shares its runs with all


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042), (120, 1.980)],
)
def test_quantiles_of_the_t_distribution(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=6e-4)
    assert two_sided_p(t_quantile(degrees), degrees) == pytest.approx(0.05)


def test_uncertainty_by_the_number_of_images():
    """With many images 1.96 sqrt(p (1 - p) / n); with few, or none wrong, that of the score interval."""
    assert binomial_half_width(50, 10_000) == pytest.approx(0.98, abs=0.001)
    assert binomial_half_width(10, 2_500) == pytest.approx(1.176, abs=0.002)
    assert binomial_half_width(100, 10) == pytest.approx(100 * 1.96**2 / 2 / (10 + 1.96**2), rel=1e-3)


def test_holm():
    # 0.01 x 4; 0.02 x 3 and 0.03 x 2 are both 0.06; 0.04 x 1 may not be below them
    assert holm({"a": 0.03, "b": 0.01, "c": 0.02, "d": 0.04}) == pytest.approx(
        {"b": 0.04, "c": 0.06, "a": 0.06, "d": 0.06}
    )
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_best_only_where_it_is_significantly_above_all_others():
    values = {"none": {0: 1.0, 1: 2.0, 2: 3.0}, "kd": {0: 1.1, 1: 2.2, 2: 3.2}, "kdp": {0: 4.0, 1: 5.1, 2: 6.0}}
    assert significantly_best(values) == "kdp"
    assert significantly_best({**values, "dkd": {0: 4.1, 1: 5.0, 2: 5.9}}) is None  # within the noise of another
    assert significantly_best({name: {0: value[0], 1: value[1]} for name, value in values.items()}) is None
    assert significantly_best({"kdp": values["kdp"]}) is None


def test_the_best_of_many_needs_a_clearer_difference():
    others = {f"method {i}": {0: 1.0, 1: 2.0, 2: 3.0} for i in range(20)}
    best = {0: 2.0, 1: 3.1, 2: 3.9}  # differences 1, 1.1, 0.9: p = 0.003
    assert significantly_best({"best": best, "method": others["method 0"]}) == "best"
    assert significantly_best({"best": best, **others}) is None
