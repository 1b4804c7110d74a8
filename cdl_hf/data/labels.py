"""Class labels: reading them, drawing from each class, and label columns of all kinds as one ClassLabel."""

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


def stratified_sizes(fraction: float, sizes: np.ndarray) -> np.ndarray:
    """How many of each class's `sizes` samples a fraction > 0 is, rounded: at least one, but never all of them."""
    return np.minimum(np.maximum(np.rint(fraction * sizes), 1), sizes - 1)


Class = bool | int | str
EXPECTED = "expected a ClassLabel, strings or integers (truth values and whole numbers will do)"


def has_labels(dataset: Dataset, column: str) -> bool:
    """Whether any image has a label: a class's number or name, not null, NaN, an empty text or -1."""
    feature = dataset.features[column]
    if not isinstance(feature, ClassLabel | Value):
        return True  # which is refused later
    values = _column(dataset, column)
    if isinstance(feature, ClassLabel):
        return bool((pc.max(values).as_py() or 0) >= 0) and values.null_count < len(values)
    try:
        return any(_class_of(value) is not None for value in pc.unique(values).to_pylist())
    except ValueError:
        return True


def with_class_labels(splits: dict[str, Dataset], name: str) -> dict[str, Dataset]:
    """The same ClassLabel as `label` in every split, of sorted names, numbers or truth values if there is none.

    Whole floats are numbers (pandas makes them of integers where one is missing). Null, NaN, empty texts and negative
    numbers are missing labels. Names that differ only in how Unicode composes them are one.

    Raises:
        DatasetError: other kinds of values; different kinds or numberings in the splits.
    """
    kinds = {split: dataset.features["label"] for split, dataset in splits.items()}
    named = [kind for kind in kinds.values() if isinstance(kind, ClassLabel)]
    if len(named) == len(kinds):
        if any(kind.names != named[0].names for kind in named):
            raise DatasetError(
                f"'{name}' numbers its classes differently in train and test; save them with one ClassLabel."
            )
        for split, dataset in splits.items():
            highest = pc.max(_column(dataset, "label")).as_py()
            if highest is not None and highest >= named[0].num_classes:
                raise DatasetError(
                    f"'{name}' has the label {highest} in its {split} split, but names for 0 to "
                    f"{named[0].num_classes - 1} only; name all classes."
                )
        return splits
    if named:
        raise _mixed(name, {split: _kind(kind) for split, kind in kinds.items()})
    strange = next((kind for kind in kinds.values() if not isinstance(kind, Value)), None)
    if strange is not None:
        raise DatasetError(f"'{name}' has labels of type {strange}; {EXPECTED}, one an image.")
    columns = {
        split: pc.dictionary_encode(_column(dataset, "label")).combine_chunks() for split, dataset in splits.items()
    }
    classes = {split: _classes(column, split, kinds[split], name) for split, column in columns.items()}
    of_kind = {split: {type(value) for value in found if value is not None} for split, found in classes.items()}
    if len(set.union(*of_kind.values())) > 1:
        raise _mixed(name, {split: _kind(kind) for split, kind in kinds.items()})
    values = sorted({value for found in classes.values() for value in found if value is not None})
    if not values:
        raise DatasetError(f"'{name}' has no labels: its column of them holds nothing but missing values.")
    _warn_of_twins([value for value in values if isinstance(value, str)], name)
    feature = ClassLabel(names=[str(value) for value in values])
    return {
        split: with_labels(splits[split], _numbered(columns[split], classes[split], values), feature)
        for split in splits
    }


def with_labels(dataset: Dataset, labels: pa.ChunkedArray, feature: ClassLabel) -> Dataset:
    """Other labels, (n,); `cast_column` would write the whole table anew, images and all."""
    return dataset.remove_columns("label").add_column("label", labels, feature=feature)


def without_empty_classes(splits: dict[str, Dataset]) -> tuple[dict[str, Dataset], np.ndarray]:
    """The splits with a ClassLabel of the classes that have images in them, and these classes' former labels."""
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
    """A value of a label column as a class; None where it stands for a missing one.

    Raises:
        ValueError: It can be none.
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
            f"'{name}' has labels of type {kind.dtype}, such as {error.args[0]!r} in its {split} split; {EXPECTED}."
        ) from error


def _numbered(column: pa.DictionaryArray, classes: list[Class | None], values: list[Class]) -> pa.ChunkedArray:
    """The label of each row; null where it is missing."""
    label_of = {value: label for label, value in enumerate(values)}
    labels = np.array([-1 if each is None else label_of[each] for each in classes] + [-1], np.int64)
    rows = labels[column.indices.fill_null(len(classes)).to_numpy(zero_copy_only=False)]
    return pa.chunked_array([pa.array(rows, mask=rows < 0)])


def _mixed(name: str, kinds: dict[str, str]) -> DatasetError:
    told = " and ".join(f"{kind} in {split}" for split, kind in kinds.items())
    return DatasetError(f"'{name}' has labels of different kinds: {told}; save them as one kind.")


def _kind(feature: object) -> str:
    return "a ClassLabel" if isinstance(feature, ClassLabel) else getattr(feature, "dtype", None) or str(feature)


def _warn_of_twins(names: list[str], name: str) -> None:
    alike = defaultdict(list)
    for each in names:
        alike[" ".join(each.casefold().split())].append(each)
    twins = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    if twins:
        warnings.warn(
            f"Classes of '{name}' that differ only in spaces or in capitals are different ones: {listed(twins)}.",
            stacklevel=4,
        )
