"""Lists of training images, in the form in which the split of ImageNet-R is published.

A YAML file with `data`, paths, and `targets`, numbers of classes. Paths are relative to anything: their last two parts
count, the folder of the class and the file. An image's folder says its class; the
targets say in which order the classes may come, where [`class_order`] is asked for it. Only where folders of
classes have folders in them with files of the same names do the paths start at the folder of the data set.
"""

import json
import os
from collections import Counter
from typing import Any

import numpy as np
import yaml
from datasets import Dataset, concatenate_datasets

from .dataset_error import DatasetError
from .labels import one_name, read_labels
from .views import image_paths


def keys(dataset: Dataset, folders: list[str]) -> list[str] | None:
    """What each image of the whole data set is called in lists, relative to its folder, wherever that is.

    `folder/file`, the folder being that of the image's label where only the file's name is stored; with all folders
    up to those that the images have in common, where two images would be called the same.

    None where some image has no name.
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
    """Whether each image of the data set is in the list, (n,) truth values.

    Raises:
        DatasetError: no such list, or it names images that are not there, or all, or cannot tell two apart.
    """
    found = keys(dataset, folders)
    if found is None:
        raise DatasetError(f"'{name}' stores images without file names; split_file cannot tell them apart.")
    by_last_two = Counter("/".join(_parts(key)[-2:]) for key in found)
    of_last_two = {"/".join(_parts(key)[-2:]): key for key in found}
    listed, known = set(), set(found)
    for path in _read(file):
        parts = _parts(path)
        # the longest end of the path that is an image's key, else its last two parts
        key = next((key for i in range(len(parts)) if (key := "/".join(parts[i:])) in known), None)
        last_two = "/".join(parts[-2:])
        if key is None and by_last_two[last_two] > 1:
            raise DatasetError(
                f"'{name}' has {by_last_two[last_two]} images of one folder and file name ({last_two}); split_file "
                "cannot tell them apart: list them with all folders."
            )
        listed.add(key or of_last_two.get(last_two, last_two))
    missing = sorted(listed.difference(found))
    if missing:
        raise DatasetError(
            f"'{file}' lists {len(missing)} images that '{name}' does not have ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); is it the list of this data set?"
        )
    if len(known) < len(found):
        raise DatasetError(f"'{name}' has images of one folder and file name; split_file cannot tell them apart.")
    in_list = np.fromiter((key in listed for key in found), bool, len(found))
    if in_list.all() or not in_list.any():
        raise DatasetError(
            f"'{file}' lists {'all' if in_list.any() else 'none'} of the images; expected a part of them."
        )
    return in_list


def class_order(file: str, folders: list[str]) -> list[int]:
    """The labels of the classes in the order of a list's `targets`, the numbers that it gives to them.

    Args:
        folders: folder of each class, by label.

    Raises:
        DatasetError: no such list, or its targets do not number these classes.
    """
    paths, targets = _read(file), _content(file).get("targets")
    if not isinstance(targets, list) or len(targets) != len(paths) or not all(type(t) is int for t in targets):
        raise DatasetError(f"split_file '{file}' has no list of whole numbers under 'targets', one for each path")
    label_of = {one_name(folder): label for label, folder in enumerate(folders)}
    target_of: dict[int, int] = {}
    for path, target in zip(paths, targets, strict=True):
        label = next((label_of[part] for part in reversed(_parts(path)[:-1]) if part in label_of), None)
        if label is None:
            raise DatasetError(f"split_file '{file}' lists '{path}', which lies in the folder of no class")
        if target_of.setdefault(label, target) != target:
            raise DatasetError(
                f"split_file '{file}' gives the class '{folders[label]}' the targets {target_of[label]} and {target}"
            )
    missing = [folder for label, folder in enumerate(folders) if label not in target_of]
    if missing:
        raise DatasetError(
            f"split_file '{file}' has no images of {len(missing)} classes ({', '.join(missing[:3])}), whose place in "
            "the order is not known"
        )
    if len(set(target_of.values())) < len(target_of):
        raise DatasetError(f"split_file '{file}' gives one target to several classes")
    return sorted(target_of, key=target_of.__getitem__)


def split_list(train: Dataset, test: Dataset, folders: list[str], label_to_target: np.ndarray) -> str | None:
    """The file that lists the first images, which `read_split_list` takes; None where some have no names.

    Args:
        label_to_target: number of each class in the list, (C,).
    """
    found = keys(concatenate_datasets([train, test]), folders)
    if found is None:
        return None
    found = found[: len(train)]
    # texts in JSON are texts in YAML, and a hundred times faster to write
    data = "".join(f"- {json.dumps(key, ensure_ascii=False)}\n" for key in found)
    targets = "".join(f"- {label}\n" for label in label_to_target[read_labels(train)].tolist())
    return f"data:\n{data}targets:\n{targets}"


def _read(file: str) -> list[str]:
    """The paths that are listed."""
    content = _content(file)
    paths = content.get("data") if isinstance(content, dict) else None
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise DatasetError(f"split_file '{file}' has no list of paths under 'data'.")
    return paths


def _content(file: str) -> Any:
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    try:
        with open(os.path.expanduser(file), encoding="utf-8") as stream:
            return yaml.load(stream, loader)
    except OSError as error:
        raise DatasetError(f"split_file '{file}' cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"split_file '{file}' is not a plain YAML file ({' '.join(str(error).split())})."
        ) from error


def _parts(path: str) -> list[str]:
    return one_name(path).replace("\\", "/").split("/")
