"""Which splits of a data set are trained on and tested on."""

import warnings

import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict

from .class_labels import has_labels
from .dataset_error import DatasetError
from .split_names import find_splits, of_split, split_of


def choose_train(splits: DatasetDict, name: str, given: str | None) -> str:
    """The split that is named; else the one whose name means training, else the only one.

    Raises:
        DatasetError: there is none, or more than one.
    """
    if given is not None:
        return _named(splits, name, given, "train_split")
    found = of_split(find_splits(splits), "train") or (list(splits) if len(splits) == 1 else [])
    if len(found) != 1:
        raise DatasetError(
            f"'{name}' has the splits {', '.join(splits)} but {'more than one' if found else 'no'} train; "
            "name the one to learn from with train_split."
        )
    return found[0]


def choose_test(splits: DatasetDict, name: str, train: str, given: str | None, columns: tuple[str, str]) -> str | None:
    """The split that is named; else the one whose name means test or else validation, and has labels; else None.

    Args:
        columns: of images and of classes.

    Raises:
        DatasetError: none of the candidates can be tested on, or two are alike.
    """
    if given is not None:
        test = _named(splits, name, given, "test_split")
        if test != train and (problem := _problem(splits, test, train, columns)):
            raise DatasetError(f"'{name}' {problem}.")
        return None if test == train else test
    found = find_splits(split for split in splits if split != train)
    problems = []
    for kind in ("test", "validation"):
        candidates = of_split(found, kind)
        if len(candidates) > 1:
            raise DatasetError(
                f"'{name}' has more than one split to test on ({', '.join(candidates)}); choose it with test_split."
            )
        for split in candidates:
            problem = _problem(splits, split, train, columns)
            if problem is None:
                if problems:
                    warnings.warn(f"'{name}' {problems[0]}: tested is on its {split} split.", stacklevel=3)
                return split
            problems.append(problem)
    if problems:
        raise DatasetError(
            f"'{name}' {problems[0]}; name another one with test_split, or hold out a share of the training images "
            f"with test_split={train}."
        )
    return None


def _named(splits: DatasetDict, name: str, given: str, option: str) -> str:
    kinds = find_splits(splits)
    found = [given] if given in splits else of_split(kinds, split_of(given) or given)
    if len(found) != 1:
        raise DatasetError(f"'{name}' has no split '{given}' for {option}; its splits are {', '.join(splits)}.")
    return found[0]


def _problem(splits: DatasetDict, split: str, train: str, columns: tuple[str, str]) -> str | None:
    """Why the split cannot be tested on."""
    dataset = splits[split]
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        return f"has no column {' and '.join(missing)} in its {split} split"
    if not len(dataset):
        return f"has no images in its {split} split"
    if not has_labels(dataset, columns[1]):
        return f"has no labels in its {split} split"
    if not _share_classes(dataset, splits[train], columns[1]):
        return f"has no image of a class that is trained on in its {split} split"
    return None


def _share_classes(first: Dataset, second: Dataset, label: str) -> bool:
    kinds = first.features[label], second.features[label]
    if kinds[0] != kinds[1] or isinstance(kinds[0], ClassLabel):
        return True  # what is wrong with other kinds is told later
    values = (dataset.select_columns([label]).with_format("arrow")[label][:] for dataset in (first, second))
    one, other = (set(map(str, pc.unique(each).to_pylist())) for each in values)
    return bool(one & other)
