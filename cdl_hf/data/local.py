"""Data sets on this machine: folders of images, tables, and what `save_to_disk` leaves."""

import os
import warnings
from pathlib import Path

from datasets import DatasetDict, load_from_disk

from .cifar100 import is_cifar100, read_cifar100
from .dataset_error import DatasetError, listed
from .image_folder import Layout, find_layout, read_image_folder
from .image_search import image_suffixes, subfolders, walk
from .split_names import is_unlabelled
from .tables import (
    KINDS,
    METADATA,
    Wanted,
    by_split,
    column_names,
    explain,
    holds_image_column,
    kind_of,
    names_images,
    read_metadata,
    read_tables,
)

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def read_local(path: Path, wanted: Wanted, train_split: str | None, test_split: str | None) -> DatasetDict:
    """Whatever is there, in one or more splits under the names that they have; images are not opened.

    Raises:
        DatasetError: nothing that can be read, or nothing that can be understood.
    """
    if path.is_file():
        return _read_file(path, wanted)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _read_saved(path)
    saved = [folder for folder in subfolders(path).values() if (folder / "state.json").exists()]
    if saved:
        return DatasetDict({folder.name: _read_saved(folder)["train"] for folder in saved})
    if is_cifar100(path):
        return read_cifar100(path)
    return _read_folder(path, wanted, train_split, test_split)


def _read_saved(path: Path) -> DatasetDict:
    """What `save_to_disk` has written."""
    try:
        data = load_from_disk(str(path))
    except IndexError as error:  # which `datasets` itself saves, and does not read
        raise DatasetError(f"'{path}' was saved with a split that holds no rows; save it without that.") from error
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise explain(error, path) from error
    return data if isinstance(data, DatasetDict) else DatasetDict(train=data)


def _read_file(path: Path, wanted: Wanted) -> DatasetDict:
    suffix = path.suffix.lower()
    if kind_of(path) is None:
        what = "an archive; extract it and give the folder" if suffix in ARCHIVES else None
        what = what or ("one image; give the folder of the images' classes" if suffix in image_suffixes() else None)
        others = ", ".join(kind for kind in KINDS if kind != ".parquet")
        raise DatasetError(
            f"'{path}' is {what}."
            if what
            else f"'{path}' is a file, but not a .parquet file, nor one of {others}; give one, or a folder (extract "
            "archives)."
        )
    if (path.parent / "state.json").exists() and kind_of(path) in ("arrow", "json"):
        raise DatasetError(f"'{path}' is one file of a saved data set; give its folder, '{path.parent}'.")
    return read_tables({"train": [path]}, wanted)


def _read_folder(path: Path, wanted: Wanted, train_split: str | None, test_split: str | None) -> DatasetDict:
    """A table with the images in it; else a table that tells of each image file its class; else folders of classes."""
    files = [
        Path(folder, file)
        for folder, found in walk(path)
        for file in found
        if os.path.splitext(file)[1].lower() in (*KINDS, *ARCHIVES)
    ]
    metadata = [file for file in files if file.name.lower() in METADATA]
    tables = [file for file in files if kind_of(file) and file.name.lower() not in METADATA]
    binary = {f: holds_image_column(f, wanted) for f in tables if kind_of(f) in ("parquet", "arrow")}
    if any(binary.values()):
        _warn_of_strays([file for file, has in binary.items() if has is False], path)
        return read_tables(by_split([file for file, has in binary.items() if has is not False], path), wanted)
    if metadata:
        read = read_metadata(metadata, path, wanted)
        if read is not None:
            return read
    layout, problem = _layout(path, train_split, test_split)
    if layout is None or len(layout.classes) < 2 or {wanted.image, wanted.label} - {None, "image", "label"}:
        loose = [file for file in (*tables, *metadata) if file.parent == path and names_images(file, wanted)]
        labelled = [file for file in loose if not is_unlabelled(file.stem)]
        if labelled and len(labelled) < len(loose):
            names = listed([file.name for file in loose if file not in labelled])
            warnings.warn(f"Left out of '{path}', as their names say that they hold no labels: {names}.", stacklevel=4)
            loose = labelled
        if loose:
            return read_tables(by_split(loose, path), wanted)
    if layout is None:
        raise _no_images(path, tables, metadata, files, problem)
    _warn_of_strays([file for file in binary if file.parent == path], path)
    lists = [file.name for file in tables if kind_of(file) == "csv" and file.parent in (path, *layout.roots.values())]
    if lists:
        warnings.warn(
            f"Not read, as the classes of '{path}' are its folders: {listed(lists)}; if it tells the images' classes "
            "or splits, name its columns with image_column and label_column.",
            stacklevel=4,
        )
    if metadata:
        warnings.warn(
            f"The classes of '{path}' are its folders: {metadata[0].name} has no column file_name, or none of classes "
            f"({', '.join(column_names(metadata[0]))}); if it has, choose it with label_column.",
            stacklevel=4,
        )
    return read_image_folder(layout, path)


def _warn_of_strays(files: list[Path], path: Path) -> None:
    if files:
        names = listed([file.name for file in files])
        warnings.warn(f"Left out of '{path}', as they are no tables with a column of images: {names}.", stacklevel=5)


def _layout(path: Path, train_split: str | None, test_split: str | None) -> tuple[Layout | None, DatasetError | None]:
    try:
        return find_layout(path, train_split, test_split), None
    except DatasetError as error:
        return None, error


def _no_images(
    path: Path, tables: list[Path], metadata: list[Path], files: list[Path], problem: DatasetError
) -> DatasetError:
    """The problem, and what else might have been meant."""
    archives = [file.name for file in files if file.suffix.lower() in ARCHIVES]
    if metadata or tables:
        table = (metadata or tables)[0]
        try:
            columns = ", ".join(column_names(table))
        except DatasetError as error:
            return DatasetError(f"{problem} {error}")
        missing = (
            "no column file_name, or none of classes"
            if metadata
            else "no columns of images and of classes that can be told"
        )
        return DatasetError(
            f"{problem} '{table}' has {missing} ({columns}); choose them with image_column and label_column."
        )
    return DatasetError(f"{problem} It holds archives: extract {listed(archives)}.") if archives else problem
