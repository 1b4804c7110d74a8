"""Columns of pixel values: what they become, and which are refused."""

import numpy as np
import pytest
from datasets import Array2D, Array3D, ClassLabel, Dataset, Features, List, Value

from cdl_hf.data import DatasetError, load_image_dataset

GREY = np.arange(20).reshape(4, 5) * 13
COLORS = np.arange(60).reshape(4, 5, 3) * 4
NESTED = List(List(Value("int64")))


def saved(path, feature, array):
    """Six equal images of two classes."""
    features = Features(image=feature, label=ClassLabel(names=["x", "y"]))
    Dataset.from_dict({"image": [array] * 6, "label": [0, 1] * 3}, features=features).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize(
    ("feature", "array", "expected"),
    [
        (Array2D((4, 5), "uint8"), GREY.astype(np.uint8), GREY),
        (Array3D((4, 5, 1), "uint8"), GREY[..., None].astype(np.uint8), GREY),
        (Array3D((4, 5, 3), "uint8"), COLORS.astype(np.uint8), COLORS),
        (Array2D((4, 5), "uint8"), (GREY > 99).astype(np.uint8), GREY > 99),
        (Array2D((4, 5), "int32"), GREY.astype(np.int32), GREY),
        (NESTED, GREY.tolist(), GREY),
        (List(NESTED), COLORS.tolist(), COLORS),
    ],
)
def test_8_bits_are_as_they_were(tmp_path, feature, array, expected):
    splits = load_image_dataset(saved(tmp_path / "data", feature, array))
    for dataset in splits.values():
        shown = np.asarray(dataset[0]["image"])
        assert np.array_equal(shown if expected.ndim == 3 else shown[..., 0], expected)


@pytest.mark.parametrize(
    ("feature", "array", "told"),
    [
        (Array3D((4, 5, 3), "uint16"), (COLORS * 257).astype(np.uint16), "arrays of uint16 with values of 0 to 60652"),
        (Array2D((4, 5), "float32"), np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5), "arrays of float"),
        (NESTED, (GREY - 1).tolist(), "arrays of int64 with values of -1 to 246"),
        (NESTED, (GREY > 99).astype(int).tolist(), "arrays of int64 with values of 0 to 1"),
        (Array3D((3, 4, 5), "uint8"), np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\); expected \(height, width\)"),
    ],
)
def test_others_are_refused(tmp_path, feature, array, told):
    with pytest.raises(DatasetError, match=told):
        load_image_dataset(saved(tmp_path / "data", feature, array))
