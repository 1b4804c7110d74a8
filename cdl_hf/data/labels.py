"""What is decided from labels alone: reading them, and stratified choices."""

import unicodedata

import numpy as np
from datasets import Dataset


def one_name(name: str) -> str:
    """A class's name in Unicode's composed form (NFC): some file systems take names apart, and é is then two signs."""
    return unicodedata.normalize("NFC", name)


def read_labels(dataset: Dataset) -> np.ndarray:
    """The labels of a data set, (n,) 32-bit integers; reads no image.

    Raises:
        ValueError: some label is missing (null or negative).
    """
    labels = np.empty(len(dataset), dtype=np.int32)
    missing = start = 0
    # a part at a time, so that ten million labels are never in memory as Arrow's 64-bit integers as well
    for part in dataset.select_columns("label").with_format("arrow").iter(batch_size=2**18):
        column = part["label"].fill_null(-1).to_numpy()
        missing += int((column < 0).sum())
        labels[start : start + len(column)] = column
        start += len(column)
    if missing:
        raise ValueError(f"{missing} of {len(labels)} images have no label (null, empty or negative); remove them.")
    return labels


def rank_in_class(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each sample's place in a random order of its class, (n,) 32-bit integers from 0."""
    shuffled = rng.permutation(np.arange(len(labels), dtype=np.int32))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    firsts = np.repeat((np.cumsum(sizes) - sizes).astype(np.int32), sizes)
    rank = np.empty(len(labels), dtype=np.int32)
    rank[by_class] = np.arange(len(labels), dtype=np.int32) - firsts
    return rank


def share(fraction: float, sizes: np.ndarray) -> np.ndarray:
    """How many of each class's `sizes` samples a fraction > 0 is, rounded: at least one, but never all of them."""
    return np.minimum(np.maximum(np.rint(fraction * sizes), 1), sizes - 1)
