"""What is decided from labels alone: reading them, and stratified choices."""

import numpy as np
from datasets import Dataset


def read_labels(dataset: Dataset) -> np.ndarray:
    """The labels of a data set, (n,) integers; reads no image.

    Raises:
        ValueError: some label is missing (null or negative).
    """
    column = dataset.with_format("arrow")["label"][:]
    if column.null_count:
        raise ValueError(f"{column.null_count} of {len(column)} images have no label; label them or remove them.")
    labels = column.to_numpy()
    missing = int((labels < 0).sum())
    if missing:
        raise ValueError(
            f"{missing} of {len(labels)} images have a negative label, which stands for none; remove them."
        )
    return labels


def rank_in_class(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's place in a random order of its class (n,), from 0, and the size of its class (n,)."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank, sizes[labels]


def share(fraction: float, size: np.ndarray) -> np.ndarray:
    """How many of `size` samples a fraction > 0 is, rounded: at least one, but never all of them."""
    return np.minimum(np.maximum(np.rint(fraction * size), 1), size - 1).astype(np.int64)
