"""Lists of training images, in the form in which the split of ImageNet-R is published.

A YAML file with `data`, paths, and `targets`, numbers of classes. Paths are relative to anything: their last two parts
count, the folder of the class and the file. An image's folder says its class, not its target.
"""

import json

import numpy as np
import yaml
from datasets import Dataset

from .labels import read_labels
from .source_error import SourceError
from .views import image_paths


def keys(dataset: Dataset, folders: list[str]) -> list[str] | None:
    """`folder/file` of each image, the folder being that of its label where only the file's name is stored.

    None where some image has no name.
    """
    paths = image_paths(dataset)
    if paths.null_count:
        return None
    parts = (_last_two(path) for path in paths.to_pylist())
    labels = read_labels(dataset)
    return ["/".join(p if len(p) == 2 else (folders[label], *p)) for p, label in zip(parts, labels, strict=True)]


def read_split_list(file: str, dataset: Dataset, folders: list[str], name: str) -> np.ndarray:
    """Whether each image of the data set is in the list, (n,) truth values.

    Raises:
        SourceError: no such list, or it names images that are not there, or all, or cannot tell two apart.
    """
    listed = {"/".join(_last_two(path)) for path in _read(file)}
    found = keys(dataset, folders)
    if found is None:
        raise SourceError(f"'{name}' stores images without file names; split_file cannot tell them apart.")
    missing = sorted(listed.difference(found))
    if missing:
        raise SourceError(
            f"'{file}' lists {len(missing)} images that '{name}' does not have ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); is it the list of this data set?"
        )
    if len(set(found)) < len(found):
        raise SourceError(f"'{name}' has images of one folder and file name; split_file cannot tell them apart.")
    in_list = np.fromiter((key in listed for key in found), bool, len(found))
    if in_list.all() or not in_list.any():
        raise SourceError(
            f"'{file}' lists {'all' if in_list.any() else 'none'} of the images; expected a part of them."
        )
    return in_list


def split_list(dataset: Dataset, folders: list[str]) -> str | None:
    """The file that lists these images, which `read_split_list` takes; None where they have no names."""
    found = keys(dataset, folders)
    if found is None:
        return None
    # texts in JSON are texts in YAML, and a hundred times faster to write
    data = "".join(f"- {json.dumps(key, ensure_ascii=False)}\n" for key in found)
    targets = "".join(f"- {label}\n" for label in read_labels(dataset).tolist())
    return f"data:\n{data}targets:\n{targets}"


def _read(file: str) -> list[str]:
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    try:
        with open(file, encoding="utf-8") as stream:
            content = yaml.load(stream, loader)
    except OSError as error:
        raise SourceError(f"split_file '{file}' cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SourceError(f"split_file '{file}' is not a plain YAML file ({' '.join(str(error).split())}).") from error
    paths = content.get("data") if isinstance(content, dict) else None
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise SourceError(f"split_file '{file}' has no list of paths under 'data'.")
    return paths


def _last_two(path: str) -> tuple[str, ...]:
    return tuple(path.replace("\\", "/").split("/")[-2:])
