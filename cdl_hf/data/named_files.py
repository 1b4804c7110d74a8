"""The image files that a table names, wherever the process is."""

import os
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Value

from .dataset_error import DatasetError
from .image_folder import check_name
from .image_search import find_images
from .labels import one_name
from .split_names import split_of

LONGEST_NAME = 255  # of a file, on all usual systems
LONGEST_PATH = 4096


def with_whole_paths(
    table: Dataset, column: str | None, folder: Path, split: str | None = None, inside: bool = False
) -> Dataset:
    """The table with whole paths of its images, if the column holds names of files, be they numbers.

    Args:
        folder: what they are relative to; a file that is not there may be further down, or be named with folders that
            are not here, if there is only one such file, or only one in the folders of the split. Its name may lack
            the suffix, and be composed in another way of Unicode.
        inside: refuse what is not in the folder.

    Raises:
        DatasetError: no paths at all.
    """
    feature = table.features.get(column)
    if not isinstance(feature, Value) or "string" not in feature.dtype and "int" not in feature.dtype:
        return table
    is_text = "string" in feature.dtype
    values = table.select_columns([column]).with_format("arrow")[column][:].to_pylist()
    texts = [None if value is None else str(value) for value in values]
    if any(_is_content(text or "") for text in texts):
        raise DatasetError(
            f"The column '{column}' of a table in '{folder}' holds texts that are no paths, such as images in base64; "
            "store the files' bytes, or their paths."
        )
    files = _Files(folder, split)
    paths = []
    for text in texts:
        if not text or "://" in text:
            paths.append(None if not text or inside else text)
            continue
        path = files.find(text)
        if inside and not Path(path).is_relative_to(folder):
            raise DatasetError(f"The table in '{folder}' names the file {text!r}, which is not in that folder.")
        paths.append(check_name(path))
    if not is_text and not any(path and os.path.exists(path) for path in paths):
        return table  # numbers of something else
    order = table.column_names
    changed = table.add_column(" paths", pa.chunked_array([pa.array(paths, pa.string())]))
    return changed.remove_columns(column).rename_column(" paths", column).select_columns(order)


def split_of_path(path: str | None, root: Path) -> str | None:
    """The split that a folder of the path tells, below `root`."""
    parts = Path(os.path.relpath(path, root)).parts[:-1] if path else ()
    return next((split for part in parts if (split := split_of(part))), None)


def _is_content(text: str) -> bool:
    """Whether it is too long for a path, or for one without a suffix, as base64 is."""
    return len(text) > LONGEST_PATH or text.startswith("data:") or (len(text) > LONGEST_NAME and "." not in text)


class _Files:
    """Image files below a folder, looked for only where one is not found directly."""

    def __init__(self, folder: Path, split: str | None):
        self.folder, self.split = folder, split
        self._by_name: dict[str, list[str]] | None = None

    def find(self, text: str) -> str:
        """The file that is meant; where there is none or more than one, the path that should be it."""
        portable = text.replace("\\", "/") if os.sep == "/" else text
        path = os.path.normpath(self.folder / portable)
        if os.path.exists(path):
            return path
        if os.path.exists(self.folder / text):
            return str(self.folder / text)  # a backslash in the name itself
        wanted = _parts(portable)
        alike = [
            file for file in self._named(wanted[-1]) if _is_end(wanted, _parts(os.path.relpath(file, self.folder)))
        ]
        if len(alike) > 1:
            alike = [file for file in alike if split_of_path(file, self.folder) == self.split]
        return alike[0] if len(alike) == 1 else path

    def _named(self, name: str) -> list[str]:
        """The files of a name, with or without its suffix."""
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for file in find_images(self.folder):
                last = one_name(os.path.basename(file))
                for key in {last, os.path.splitext(last)[0]}:
                    self._by_name[key].append(file)
        return self._by_name.get(name, [])


def _parts(path: str) -> list[str]:
    return [part for part in one_name(path).split("/") if part not in ("", ".", "..")]


def _is_end(wanted: list[str], found: list[str]) -> bool:
    """Whether the folders of one are the last ones of the other; so `a/1.png` is not taken for `b/1.png`."""
    folders = wanted[:-1], found[:-1]
    shorter, longer = sorted(folders, key=len)
    return not shorter or longer[-len(shorter) :] == shorter
