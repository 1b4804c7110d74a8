"""Folders of images, `<class>/...`, or `train/<class>/...` beside `test/<class>/...`."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from .decoding import FORMATS
from .source_error import SourceError

TEST_SPLITS = ("test", "validation", "valid", "val")
NO_IMAGES = ("thumbs.db", "desktop.ini", "readme.txt", "license.txt")


def read_image_folder(path: Path) -> DatasetDict:
    """The files, unopened; a class is a folder. Hidden files are left out, and so are, with a warning, other kinds.

    Raises:
        SourceError: there are no images in folders of classes, or one whose name is no text.
    """
    folders = {child.name: child for child in path.iterdir() if child.is_dir()}
    test = next((split for split in TEST_SPLITS if split in folders), None)
    # a folder called train among others may well hold trains: only with a partner, or alone, is it a split
    if "train" in folders and (test or len(folders) == 1):
        roots = {"train": folders["train"]} | ({"test": folders[test]} if test else {})
    else:
        roots = {"train": path}
    others = Counter()
    files = {split: list(_image_files(root, others)) for split, root in roots.items()}
    names = sorted({name for rows in files.values() for name, _ in rows})
    if not names:
        raise SourceError(f"'{path}' holds no images in folders of classes; expected <class>/<image file> below it.")
    if others:
        kinds = ", ".join(f"{number} {kind}" for kind, number in others.most_common(5))
        warnings.warn(f"Left out of '{path}', as their names are not those of images: {kinds}.", stacklevel=2)
    label_of = {name: label for label, name in enumerate(names)}
    features = Features(image=Image(), label=ClassLabel(names=names))
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [file for _, file in rows], "label": [label_of[name] for name, _ in rows]}, features=features
            )
            for split, rows in files.items()
        }
    )


def _image_files(root: Path, others: Counter) -> Iterator[tuple[str, str]]:
    """(class, file) of every image, sorted; the class is the first folder below `root`. Counts other suffixes."""
    suffixes = image_suffixes()
    for name in sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")):
        for folder, subfolders, files in os.walk(root / name):
            subfolders[:] = sorted(subfolder for subfolder in subfolders if not subfolder.startswith("."))
            for file in sorted(files):
                if file.startswith(".") or file.lower() in NO_IMAGES:
                    continue
                suffix = os.path.splitext(file)[1].lower()
                if suffix and suffix not in suffixes:
                    others[suffix] += 1
                    continue
                path = os.path.join(folder, file)
                try:
                    path.encode()
                except UnicodeEncodeError as error:
                    raise SourceError(f"The file {path!r} has a name that is not UTF-8; rename it.") from error
                yield name, path


def image_suffixes() -> set[str]:
    """Of the formats that are read; a file without a suffix may be of any."""
    return {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in FORMATS}
