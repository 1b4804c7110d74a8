"""Online accuracy and the area under its curve."""

import pytest

from cdl_hf.evaluation import OnlineAccuracy


def test_area_by_hand():
    """50% after 10 images, 100% after 30, 25% after 40: (50 * 10 + 100 * 20 + 25 * 10) / 40."""
    online = OnlineAccuracy()
    online.add(10, 1, 2)
    online.add(30, 4, 4)
    with_two_points = (50 * 10 + 100 * 20) / 30
    assert online.area == pytest.approx(with_two_points)
    online.add(40, 1, 4)
    assert online.area == pytest.approx(68.75)
    assert online.summary() == {"a_auc": 68.75, "online_accuracy": [[10, 50.0], [30, 100.0], [40, 25.0]]}


def test_a_curve_goes_on_where_it_was_saved():
    whole, part = OnlineAccuracy([(4, 1, 3), (8, 2, 3)]), OnlineAccuracy([(4, 1, 3)])
    resumed = OnlineAccuracy(part.counts())
    resumed.add(8, 2, 3)
    assert resumed.summary() == whole.summary()
    with pytest.raises(ValueError, match="more images, got 8 after 8"):
        resumed.add(8, 2, 3)


@pytest.mark.parametrize("counts", [(2, 1), (-1, 1), (0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="between 0 and total"):
        OnlineAccuracy().add(1, *counts)


def test_nothing_measured_has_no_area():
    with pytest.raises(ValueError, match="has not been measured"):
        OnlineAccuracy().summary()
