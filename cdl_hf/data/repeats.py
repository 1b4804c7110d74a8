"""Image files that a table names more than once."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from .dataset_error import DatasetError
from .views import image_paths, in_files, select_rows


def without_repeats(splits: dict[str, Dataset], name: str) -> dict[str, Dataset]:
    """The splits with each file once, and with no file for the test that is trained on; warnings count the others.

    Raises:
        DatasetError: a file of two classes, or no other ones for the test.
    """
    paths = {split: pc.if_else(pa.array(in_files(d)), image_paths(d), None) for split, d in splits.items()}
    everything = pa.chunked_array([chunk for each in paths.values() for chunk in each.chunks], pa.string())
    if pc.count_distinct(everything).as_py() == len(everything) - everything.null_count:
        return splits
    class_of: dict[str, int | None] = {}
    kept = {}
    for split in sorted(splits, reverse=True):  # train, test
        before, here = set(class_of), set()
        names = splits[split].features["label"].names
        labels = splits[split].select_columns(["label"]).with_format("arrow")["label"][:].to_pylist()
        rows = []
        for row, (path, label) in enumerate(zip(paths[split].to_pylist(), labels, strict=True)):
            if path is not None and class_of.setdefault(path, label) != label:
                told = " and ".join(repr(None if each is None else names[each]) for each in (class_of[path], label))
                raise DatasetError(f"'{name}' gives the file '{path}' more than one class ({told}); give it one.")
            if path is None or path not in before and path not in here:
                rows.append(row)
            here.add(path)
        kept[split] = rows
        _tell(name, split, len(labels) - len(rows), len(before & here))
        if not rows:
            raise DatasetError(f"'{name}' has no image in its {split} split that is not trained on.")
    return {split: select_rows(dataset, np.array(kept[split])) for split, dataset in splits.items()}


def _tell(name: str, split: str, dropped: int, trained: int) -> None:
    if trained:
        warnings.warn(f"Left out of the test of '{name}', as they are trained on: {trained:,} images.", stacklevel=4)
    if dropped > trained:
        warnings.warn(
            f"'{name}' names {dropped - trained:,} images of its {split} split more than once; each is taken once.",
            stacklevel=4,
        )
