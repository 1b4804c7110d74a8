import numpy as np
import pytest
from tiny_data import labelled

from cdl_hf.data.views import select_rows


@pytest.fixture(params=["table", "view", "view of a view"])
def dataset(request):
    """Ten rows whose labels tell them apart, seen directly or through other views."""
    data = labelled(list(range(10)), [f"c{label}" for label in range(10)])
    if request.param != "table":
        data = (
            labelled([0] * 10 + list(range(10)), [f"c{label}" for label in range(10)]).select(range(5, 20)).shuffle(0)
        )
        data = data.sort("label").select(range(5, 15))
    return select_rows(data, np.arange(10)) if request.param == "view of a view" else data


@pytest.mark.parametrize("rows", [[3, 1, 8], [2, 3, 4], [7], [5, 5], []])
def test_it_is_select_without_a_copy(dataset, rows):
    view = select_rows(dataset, np.array(rows, dtype=np.int64))
    assert view["label"][:] == dataset.select(rows)["label"][:]
    assert [row["label"] for row in view] == view["label"][:] and len(view) == len(rows)
    assert view.data is dataset.data and view.features == dataset.features
    assert dataset["label"][:] == list(range(10)), "the data set itself stays as it was"


def test_what_is_cached_for_one_view_is_not_taken_for_another(dataset):
    fingerprints = [select_rows(dataset, np.array(rows))._fingerprint for rows in ([1, 2], [2, 1], [1, 2])]
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]
    assert dataset._fingerprint not in fingerprints
