"""Class labels: reading and stratifying them, and converting label columns of all types to one ClassLabel."""

import math
import unicodedata
import warnings
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Value

from .errors import DatasetError, listed


def normalized_name(name: str) -> str:
    """A class name in Unicode's composed form (NFC); some file systems store é as two characters."""
    return unicodedata.normalize("NFC", name)


def read_labels(dataset: Dataset) -> np.ndarray:
    """Labels of a data set, (n,) 32-bit integers; reads no image.

    Raises:
        ValueError: a label is missing (null or negative).
    """
    labels = np.empty(len(dataset), dtype=np.int32)
    missing = start = 0
    # in parts, so that ten million labels are not in memory as 64-bit integers of Arrow too
    for part in dataset.select_columns("label").with_format("arrow").iter(batch_size=2**18):
        column = part["label"].fill_null(-1).to_numpy()
        missing += int((column < 0).sum())
        labels[start : start + len(column)] = column
        start += len(column)
    if missing:
        raise ValueError(f"{missing} of {len(labels)} images have no label (null, empty or negative); remove them")
    return labels


def complete_labels(dataset: Dataset, split: str) -> np.ndarray:
    """Labels of a split, (n,).

    Raises:
        ValueError: an image has no label, or a class no image.
    """
    labels, names = read_labels(dataset), dataset.features["label"].names
    sizes = np.bincount(labels, minlength=len(names))
    empty = [name for name, size in zip(names, sizes, strict=True) if not size]
    if empty:
        raise ValueError(
            f"no {split} images of {len(empty)} classes: {listed(empty)}; add some, or remove the classes "
            "(drop_empty_classes leaves out those without any images)"
        )
    return labels


def rank_in_class(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Position of each sample in a random order of its class, (n,) 32-bit integers from 0."""
    shuffled = rng.permutation(np.arange(len(labels), dtype=np.int32))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    firsts = np.repeat((np.cumsum(sizes) - sizes).astype(np.int32), sizes)
    rank = np.empty(len(labels), dtype=np.int32)
    rank[by_class] = np.arange(len(labels), dtype=np.int32) - firsts
    return rank


def stratified_sizes(fraction: float, sizes: np.ndarray) -> np.ndarray:
    """Rounded number of samples that a fraction > 0 of each class is: at least one, but never all of its `sizes`."""
    return np.minimum(np.maximum(np.rint(fraction * sizes), 1), sizes - 1)


Class = bool | int | str
EXPECTED = "expected a ClassLabel, strings, integers, booleans or whole floats"


def has_labels(dataset: Dataset, column: str) -> bool:
    """Whether any image has a label: a class number or name, not null, NaN, an empty string or -1."""
    feature = dataset.features[column]
    if not isinstance(feature, ClassLabel | Value):
        return True  # refused later
    values = _column(dataset, column)
    if isinstance(feature, ClassLabel):
        return bool((pc.max(values).as_py() or 0) >= 0) and values.null_count < len(values)
    try:
        return any(_class_of(value) is not None for value in pc.unique(values).to_pylist())
    except ValueError:
        return True


def with_class_labels(splits: dict[str, Dataset], name: str) -> dict[str, Dataset]:
    """The splits with one ClassLabel as `label`, made from sorted names, numbers or booleans if they have none.

    Whole floats are numbers (pandas converts integers to floats if one is missing). Null, NaN, empty strings and
    negative numbers are missing labels. Names that differ only in their Unicode composition are one class.

    Raises:
        DatasetError: other types of values, or different types or numberings in the splits.
    """
    kinds = {split: dataset.features["label"] for split, dataset in splits.items()}
    named = [kind for kind in kinds.values() if isinstance(kind, ClassLabel)]
    if len(named) == len(kinds):
        if any(kind.names != named[0].names for kind in named):
            raise DatasetError(
                f"{name!r} numbers its classes differently in train and test; save them with one ClassLabel"
            )
        for split, dataset in splits.items():
            highest = pc.max(_column(dataset, "label")).as_py()
            if highest is not None and highest >= named[0].num_classes:
                raise DatasetError(
                    f"{name!r} has the label {highest} in its {split} split, but names only for 0 to "
                    f"{named[0].num_classes - 1}; name all classes"
                )
        return splits
    if named:
        raise _mixed(name, {split: _kind(kind) for split, kind in kinds.items()})
    strange = next((kind for kind in kinds.values() if not isinstance(kind, Value)), None)
    if strange is not None:
        raise DatasetError(f"{name!r} has labels of type {strange}; {EXPECTED}, one per image")
    columns = {
        split: pc.dictionary_encode(_column(dataset, "label")).combine_chunks() for split, dataset in splits.items()
    }
    classes = {split: _classes(column, split, kinds[split], name) for split, column in columns.items()}
    of_kind = {split: {type(value) for value in found if value is not None} for split, found in classes.items()}
    if len(set.union(*of_kind.values())) > 1:
        raise _mixed(name, {split: _kind(kind) for split, kind in kinds.items()})
    values = sorted({value for found in classes.values() for value in found if value is not None})
    if not values:
        raise DatasetError(f"{name!r} has no labels: all values of their column are missing")
    _warn_of_twins([value for value in values if isinstance(value, str)], name)
    feature = ClassLabel(names=[str(value) for value in values])
    return {
        split: with_labels(splits[split], _numbered(columns[split], classes[split], values), feature)
        for split in splits
    }


def with_labels(dataset: Dataset, labels: pa.ChunkedArray, feature: ClassLabel) -> Dataset:
    """The data set with other labels, (n,); `cast_column` would copy the whole table with its images."""
    return dataset.remove_columns("label").add_column("label", labels, feature=feature)


def without_empty_classes(splits: dict[str, Dataset]) -> tuple[dict[str, Dataset], np.ndarray]:
    """The splits with a ClassLabel of only the classes that have images, and the former labels of these classes."""
    columns = {split: _column(dataset, "label") for split, dataset in splits.items()}
    names = next(iter(splits.values())).features["label"].names
    found = {label for column in columns.values() for label in pc.unique(column).to_pylist()}
    kept = np.array(sorted(label for label in found if label is not None and label >= 0))
    if len(kept) == len(names):
        return splits, kept
    feature = ClassLabel(names=[names[label] for label in kept])
    table = pa.array(kept)
    return {
        split: with_labels(splits[split], pc.index_in(column, table), feature) for split, column in columns.items()
    }, kept


def _column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    return dataset.select_columns([name]).with_format("arrow")[name][:]


def _class_of(value) -> Class | None:
    """The class that a value of a label column means; None if the label is missing.

    Raises:
        ValueError: the value cannot be a class.
    """
    if value is None or isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, str):
        return normalized_name(value) if value.strip() else None
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return value if value >= 0 else None
    raise ValueError(value)


def _classes(column: pa.DictionaryArray, split: str, kind: Value, name: str) -> list[Class | None]:
    try:
        return [_class_of(value) for value in column.dictionary.to_pylist()]
    except ValueError as error:
        raise DatasetError(
            f"{name!r} has labels of type {kind.dtype}, such as {error.args[0]!r} in its {split} split; {EXPECTED}"
        ) from error


def _numbered(column: pa.DictionaryArray, classes: list[Class | None], values: list[Class]) -> pa.ChunkedArray:
    """Label of each row; null where it is missing."""
    label_of = {value: label for label, value in enumerate(values)}
    labels = np.array([-1 if each is None else label_of[each] for each in classes] + [-1], np.int64)
    rows = labels[column.indices.fill_null(len(classes)).to_numpy(zero_copy_only=False)]
    return pa.chunked_array([pa.array(rows, mask=rows < 0)])


def _mixed(name: str, kinds: dict[str, str]) -> DatasetError:
    found = " and ".join(f"{kind} in {split}" for split, kind in kinds.items())
    return DatasetError(f"{name!r} has labels of different types: {found}; save them as one type")


def _kind(feature: object) -> str:
    return "a ClassLabel" if isinstance(feature, ClassLabel) else getattr(feature, "dtype", None) or str(feature)


def _warn_of_twins(names: list[str], name: str) -> None:
    alike = defaultdict(list)
    for each in names:
        alike[" ".join(each.casefold().split())].append(each)
    twins = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    if twins:
        warnings.warn(
            f"Classes of {name!r} that differ only in spaces or capitals are kept apart: {listed(twins)}.",
            stacklevel=4,
        )
