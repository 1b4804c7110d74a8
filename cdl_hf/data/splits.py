"""Splits of a data set: their names, the choice of training and test splits, and lists of training images.

The lists have the form in which the split of ImageNet-R is published: a YAML file with `data`, paths, and `targets`,
class numbers. Paths may be relative to any folder: only their last two parts count, the folder of the class and the
file. The class of an image is its folder; the targets give the order of the classes, see [`class_order`]. Only where
two images agree in these two parts do the paths start at the folder of the data set.
"""

import json
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets

from .errors import DatasetError
from .labels import has_labels, normalized_name, read_labels
from .views import image_paths

_WORDS = {
    "train": ("train", "training", "trn", "trains", "trainval"),
    "validation": ("validation", "valid", "val", "dev", "devel", "development", "holdout", "heldout"),
    "test": ("test", "testing", "tst", "tests", "eval", "evaluation"),
}
# words beside them: seg_train, train_set, TrainImages, images-train, testdata
_BESIDE = (
    *("set", "sets", "data", "dataset", "split", "folder", "dir", "seg", "part", "partition", "sample", "samples"),
    *("image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "jpg", "jpeg", "png"),
)
_UNLABELLED = (
    "pred",
    "preds",
    "predict",
    "prediction",
    "predictions",
    "unlabeled",
    "unlabelled",
    "extra",
    "inference",
    "submission",
    "submissions",
)
_BESIDE_PATTERN = f"(?:{'|'.join(_BESIDE)})*"
_PATTERNS = {
    split: re.compile(f"{_BESIDE_PATTERN}(?:{'|'.join(words)}){_BESIDE_PATTERN}") for split, words in _WORDS.items()
}


def split_of(name: str) -> str | None:
    """`train`, `validation` or `test` if the name means only that: Train, val2017, seg_test."""
    found = split_in(name)
    return found[0] if found and not found[1] else None


def split_in(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The split in a name and the other words of the name: ("train", ("station",)) for train_station."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    splits, rest = [], []
    for word in re.findall(r"[^\W\d_]+", spaced.casefold()):
        split = next((split for split, pattern in _PATTERNS.items() if pattern.fullmatch(word)), None)
        if split:
            splits.append(split)
        elif word not in _BESIDE:
            rest.append(word)
    if not splits or {"train", "test"} <= set(splits):
        return None
    # train_val is a training split, as trainval of VOC
    return next(split for split in ("train", "test", "validation") if split in splits), tuple(rest)


def is_neutral(name: str) -> bool:
    """Whether the name says nothing about the content: images, data_set."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    return bool(words) and all(word in _BESIDE for word in words)


def is_unlabelled(name: str) -> bool:
    """Whether the name means images without labels: seg_pred, extra, sample_submission."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    return any(word in _UNLABELLED for word in words) and all(word in (*_UNLABELLED, *_BESIDE) for word in words)


def find_splits(names: Iterable[str]) -> dict[str, str]:
    """The names that mean a split, and which one.

    Names such as birds_train and birds_test count if all names differ only in their split.
    """
    names = list(names)
    found = {name: split for name in names if (split := split_of(name))}
    if "train" in found.values():
        return found
    parts = {name: part for name in names if (part := split_in(name))}
    if len(parts) == len(names) and len({rest for _, rest in parts.values()}) == 1:
        return {name: split for name, (split, _) in parts.items()}
    return found


def of_split(names: dict[str, str], wanted: str) -> list[str]:
    """The names of one split from `find_splits`; only the plain one, such as `train`, if it is among them."""
    found = [name for name, split in names.items() if split == wanted]
    plain = [name for name in found if name.casefold() == wanted]
    return plain if len(plain) == 1 else found


def choose_train(splits: DatasetDict, name: str, given: str | None) -> str:
    """The given training split; else the only one whose name means training, else the only split.

    Raises:
        DatasetError: there is no such split, or more than one.
    """
    if given is not None:
        return _named(splits, name, given, "train_split")
    found = of_split(find_splits(splits), "train") or (list(splits) if len(splits) == 1 else [])
    if len(found) != 1:
        raise DatasetError(
            f"{name!r} has {'more than one' if found else 'no'} training split among {', '.join(splits)}; "
            "choose one with train_split"
        )
    return found[0]


def choose_test(splits: DatasetDict, name: str, train: str, given: str | None, columns: tuple[str, str]) -> str | None:
    """The given test split; else the one whose name means test, or else validation, and has labels; else None.

    Args:
        columns: columns of images and of classes.

    Raises:
        DatasetError: no candidate can be used for testing, or there are two.
    """
    if given is not None:
        test = _named(splits, name, given, "test_split")
        if test != train and (problem := _problem(splits, test, train, columns)):
            raise DatasetError(f"{name!r} {problem}; choose another one with test_split")
        return None if test == train else test
    found = find_splits(split for split in splits if split != train)
    problems: list[str] = []
    for kind in ("test", "validation"):
        candidates = of_split(found, kind)
        if len(candidates) > 1:
            raise DatasetError(
                f"{name!r} has more than one split to test on ({', '.join(candidates)}); choose one with test_split"
            )
        for split in candidates:
            problem = _problem(splits, split, train, columns)
            if problem is None:
                if problems:
                    warnings.warn(f"{name!r} {problems[0]}; the {split} split is used for testing.", stacklevel=3)
                return split
            problems.append(problem)
    if problems:
        raise DatasetError(
            f"{name!r} {problems[0]}; choose another one with test_split, or hold out part of the training images "
            f"with test_split={train}"
        )
    return None


def _named(splits: DatasetDict, name: str, given: str, option: str) -> str:
    kinds = find_splits(splits)
    found = [given] if given in splits else of_split(kinds, split_of(given) or given)
    if len(found) != 1:
        raise DatasetError(f"{name!r} has no split {given!r} for {option}; its splits are {', '.join(splits)}")
    return found[0]


def _problem(splits: DatasetDict, split: str, train: str, columns: tuple[str, str]) -> str | None:
    """Why the split cannot be used for testing; None if it can."""
    dataset = splits[split]
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        return f"has no column {' and '.join(missing)} in its {split} split"
    if not len(dataset):
        return f"has no images in its {split} split"
    if not has_labels(dataset, columns[1]):
        return f"has no labels in its {split} split"
    if not _share_classes(dataset, splits[train], columns[1]):
        return f"has no image of a training class in its {split} split"
    return None


def _share_classes(first: Dataset, second: Dataset, label: str) -> bool:
    kinds = first.features[label], second.features[label]
    if kinds[0] != kinds[1] or isinstance(kinds[0], ClassLabel):
        return True  # other types are checked later
    values = (dataset.select_columns([label]).with_format("arrow")[label][:] for dataset in (first, second))
    one, other = (set(map(str, pc.unique(each).to_pylist())) for each in values)
    return bool(one & other)


def _image_keys(dataset: Dataset, folders: list[str]) -> list[str] | None:
    """The name of each image in lists of training images; None if an image has no file name.

    The name is `folder/file`; if only the file name is stored, the folder is that of the image's class. If two images
    would have the same name, it has all folders below those that all images have in common.
    """
    paths = image_paths(dataset)
    if paths.null_count:
        return None
    parts = [_parts(path) for path in paths.to_pylist()]
    labels = read_labels(dataset)
    short = ["/".join(p[-2:] if len(p) > 1 else (folders[label], *p)) for p, label in zip(parts, labels, strict=True)]
    if len(set(short)) == len(short):
        return short
    shared = len(os.path.commonprefix([p[:-1] for p in parts]))
    return ["/".join(p[shared:]) if len(p) - shared > 1 else key for p, key in zip(parts, short, strict=True)]


def read_split_list(file: str, dataset: Dataset, folders: list[str], name: str) -> np.ndarray:
    """Whether each image of the data set is in the list, (n,) booleans.

    Raises:
        DatasetError: the list cannot be read, names unknown images, all images or none, or is ambiguous.
    """
    found = _image_keys(dataset, folders)
    if found is None:
        raise DatasetError(f"{name!r} stores images without file names, so split_file cannot be used")
    by_last_two = Counter("/".join(_parts(key)[-2:]) for key in found)
    of_last_two = {"/".join(_parts(key)[-2:]): key for key in found}
    listed, known = set(), set(found)
    for path in _listed_paths(file):
        parts = _parts(path)
        # the longest end of the path that names an image, else its last two parts
        key = next((key for i in range(len(parts)) if (key := "/".join(parts[i:])) in known), None)
        last_two = "/".join(parts[-2:])
        if key is None and by_last_two[last_two] > 1:
            raise DatasetError(
                f"{name!r} has {by_last_two[last_two]} images with the same folder and file name ({last_two}); "
                "list them with all their folders in split_file"
            )
        listed.add(key or of_last_two.get(last_two, last_two))
    missing = sorted(listed.difference(found))
    if missing:
        raise DatasetError(
            f"{file!r} lists {len(missing)} images that {name!r} does not have ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); is it the list of this data set?"
        )
    if len(known) < len(found):
        raise DatasetError(f"{name!r} has images with the same folder and file name, so split_file cannot be used")
    in_list = np.fromiter((key in listed for key in found), bool, len(found))
    if in_list.all() or not in_list.any():
        raise DatasetError(f"{file!r} lists {'all' if in_list.any() else 'none'} of the images; expected some of them")
    return in_list


def class_order(file: str, folders: list[str]) -> list[int]:
    """Labels of the classes, ordered by the targets that a list gives them.

    Args:
        folders: folder of each class, by label.

    Raises:
        DatasetError: the list cannot be read, or its targets do not number these classes.
    """
    paths, targets = _listed_paths(file), _read_yaml(file).get("targets")
    if not isinstance(targets, list) or len(targets) != len(paths) or not all(type(t) is int for t in targets):
        raise DatasetError(f"split_file {file!r} has no list of integers under 'targets', one for each path")
    label_of = {normalized_name(folder): label for label, folder in enumerate(folders)}
    target_of: dict[int, int] = {}
    for path, target in zip(paths, targets, strict=True):
        label = next((label_of[part] for part in reversed(_parts(path)[:-1]) if part in label_of), None)
        if label is None:
            raise DatasetError(f"split_file {file!r} lists {path!r}, which is not in the folder of a class")
        if target_of.setdefault(label, target) != target:
            raise DatasetError(
                f"split_file {file!r} gives the class {folders[label]!r} the targets {target_of[label]} and {target}"
            )
    missing = [folder for label, folder in enumerate(folders) if label not in target_of]
    if missing:
        raise DatasetError(
            f"split_file {file!r} lists no images of {len(missing)} classes ({', '.join(missing[:3])}), so their "
            "place in the order is unknown"
        )
    if len(set(target_of.values())) < len(target_of):
        raise DatasetError(f"split_file {file!r} gives several classes the same target")
    return sorted(target_of, key=target_of.__getitem__)


def _format_split_list(train: Dataset, test: Dataset, folders: list[str], label_to_target: np.ndarray) -> str | None:
    """Content of a file that lists the training images for `read_split_list`; None if an image has no file name.

    Args:
        label_to_target: target of each class in the list, (C,).
    """
    found = _image_keys(concatenate_datasets([train, test]), folders)
    if found is None:
        return None
    found = found[: len(train)]
    # a JSON string is a YAML string, and a hundred times faster to write
    data = "".join(f"- {json.dumps(key, ensure_ascii=False)}\n" for key in found)
    targets = "".join(f"- {label}\n" for label in label_to_target[read_labels(train)].tolist())
    return f"data:\n{data}targets:\n{targets}"


def _listed_paths(file: str) -> list[str]:
    """The paths in a list."""
    content = _read_yaml(file)
    paths = content.get("data") if isinstance(content, dict) else None
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise DatasetError(f"split_file {file!r} has no list of paths under 'data'")
    return paths


def _read_yaml(file: str) -> Any:
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    try:
        with open(os.path.expanduser(file), encoding="utf-8") as stream:
            return yaml.load(stream, loader)
    except OSError as error:
        raise DatasetError(f"split_file {file!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"split_file {file!r} is not a plain YAML file ({' '.join(str(error).split())})") from error


def _parts(path: str) -> list[str]:
    return normalized_name(path).replace("\\", "/").split("/")


class Splits(DatasetDict):
    """The splits `train` and `test` with columns `image` and `label`, and how they came about.

    Args:
        splits: the two.
        unreadable: the images that were left out because they cannot be read, each with the reason.
        folders: folder of each class, if the images came in one split, which was divided here.
        arguments: what `load_image_dataset` was called with, by the names of its command-line arguments.
    """

    def __init__(
        self,
        splits: dict[str, Dataset],
        *,
        unreadable: dict[str, str],
        folders: list[str] | None,
        arguments: dict[str, Any],
    ):
        super().__init__(splits)
        self.arguments = arguments
        self.unreadable = unreadable
        self.folders = folders

    def split_list(self, label_to_target: np.ndarray | None = None) -> str | None:
        """Content of a `split_file` that divides the images in the same way.

        None if the data set has a test split of its own, or an image has no file name.

        Args:
            label_to_target: position of each class in the class order, (C,); by default that of its label.
        """
        if self.folders is None:
            return None
        targets = np.arange(len(self.folders)) if label_to_target is None else label_to_target
        return _format_split_list(self["train"], self["test"], self.folders, targets)
