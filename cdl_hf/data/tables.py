"""Tables of images: Parquet, Arrow, CSV and JSON files with images, or with the names of image files."""

import csv
import glob
import logging
import os
import warnings
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError

from . import cache
from .columns import IMAGE_COLUMNS, LABEL_COLUMNS, USUAL_IMAGE_COLUMNS, ColumnNames, usual_column
from .errors import DatasetError, listed, reason
from .image_files import check_name, find_images, split_of_path, with_whole_paths
from .splits import split_in, split_of

KINDS = {
    **dict.fromkeys((".parquet", ".parq", ".pq"), "parquet"),
    ".arrow": "arrow",
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
}
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "phase", "usage", "data set", "dataset")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # as in `ImageFolder` of `datasets`


def kind_of(path: Path) -> str | None:
    return KINDS.get(path.suffix.lower())


def column_names(path: Path) -> list[str]:
    """Names of a table's columns; of a Parquet file without reading its rows.

    Raises:
        DatasetError: the file cannot be read.
    """
    if kind_of(path) == "parquet":
        with _explained(path):
            return pq.read_schema(path).names
    return _load([path], kind_of(path), ColumnNames()).column_names


def holds_image_column(path: Path, wanted: ColumnNames) -> bool | None:
    """Whether a Parquet or Arrow file has a column of images; None if the file cannot be read."""
    try:
        schema = pq.read_schema(path) if kind_of(path) == "parquet" else _arrow_schema(path)
    except (OSError, ValueError):
        return None
    if wanted.image in schema.names or any(name in schema.names for name in USUAL_IMAGE_COLUMNS):
        return True
    return any(_is_image_type(field.type) for field in schema)


def names_images(path: Path, wanted: ColumnNames) -> bool:
    """Whether a table has a column of image file names and one of classes."""
    try:
        columns = column_names(path)
    except DatasetError:
        return False
    return None not in (_path_column(columns, wanted), _class_column(columns, wanted))


def by_split(files: list[Path], root: Path) -> dict[str, list[Path]]:
    """The files of each split, by the names of their folders or their own; `train` if no name means a split."""
    found = defaultdict(list)
    for file in files:
        parts = file.relative_to(root).parts
        split = next((split for part in parts[:-1] if (split := split_of(part))), None)
        found[split or (split_in(file.stem) or (None,))[0]].append(file)
    if None in found and len(found) > 1:
        warnings.warn(
            f"Ignored tables in '{root}' whose names mean no split: {listed([str(f.name) for f in found[None]])}.",
            stacklevel=3,
        )
        del found[None]
    for split, of_one in found.items():
        folders = sorted({str(file.parent.relative_to(root)) for file in of_one})
        if len(folders) > 1:
            warnings.warn(
                f"Tables in several folders of '{root}' are read together as {split or 'train'}: {listed(folders)}; "
                "if they are copies or versions of the same data, give one of the folders.",
                stacklevel=3,
            )
    return {split or "train": files for split, files in found.items()}


def read_tables(files: dict[str, list[Path]], wanted: ColumnNames) -> DatasetDict:
    """Tables of images by split; paths in a table are relative to its folder.

    Raises:
        DatasetError: a file cannot be read, or has no rows.
    """
    splits = {}
    for split, of_split in files.items():
        by_folder = defaultdict(list)
        for file in of_split:
            by_folder[file.parent, kind_of(file)].append(file)
        parts = []
        for (folder, kind), tables in by_folder.items():
            part = _load(tables, kind, wanted)
            parts.append(with_whole_paths(part, _path_column(part.column_names, wanted), folder, split))
        splits[split] = _together(parts, of_split)
    return _by_column(splits)


def read_metadata(files: list[Path], root: Path, wanted: ColumnNames) -> DatasetDict | None:
    """Image files listed in metadata tables, as in `ImageFolder` of `datasets`; None if the tables have no classes.

    `file_name` is relative to the folder of its table. As in `datasets`, folders and files with the name of a split
    are that split, and image files that no table lists are left out.

    Raises:
        DatasetError: there is no column of file names, or a name is outside the folder.
    """
    tables = {file: _load([file], kind_of(file), wanted) for file in files}
    label = next((found for t in tables.values() if (found := _class_column(t.column_names, wanted))), None)
    if label is None or not any(_file_columns(table, wanted) for table in tables.values()):
        return None
    image = wanted.image or "image"
    parts, paths = defaultdict(list), []
    for file, table in tables.items():
        table = _with_images(table, file, image, wanted)
        if label not in table.column_names:  # such as a test split without labels
            feature = next(t.features[label] for t in tables.values() if label in t.column_names)
            table = table.add_column(label, pa.chunked_array([pa.nulls(len(table), feature.pa_type)]), feature=feature)
        here = table.with_format("arrow")[image][:].to_pylist()
        splits = np.array([split_of_path(path, root) or "" for path in here])
        for split in np.unique(splits):
            split_columns = [column for column in table.column_names if column.casefold() in SPLIT_COLUMNS]
            domain = [column for column in table.column_names if column == wanted.domain]
            rows = table.select_columns(list(dict.fromkeys([image, label, *domain, *split_columns])))
            parts[str(split)].append((file, rows.select(np.flatnonzero(splits == split))))
        paths += here
    _tell_of_others(root, {os.path.realpath(path) for path in paths if path})
    if "" in parts and len(parts) > 1 and "train" not in parts:
        parts["train"] = parts.pop("")
    if "" in parts and len(parts) > 1:
        warnings.warn(
            f"Ignored {sum(len(t) for _, t in parts.pop('')):,} of {len(paths):,} images in '{root}' whose folders "
            "mean no split.",
            stacklevel=4,
        )
    together = {
        split or "train": _together([table for _, table in tables], [file for file, _ in tables])
        for split, tables in sorted(parts.items())
    }
    return _by_column(together)


def _file_columns(table: Dataset, wanted: ColumnNames) -> list[str]:
    names = (wanted.image, "file_name", "file_names")
    return [c for c in table.column_names if c in names or c.endswith(("_file_name", "_file_names"))]


def _with_images(table: Dataset, file: Path, image: str, wanted: ColumnNames) -> Dataset:
    """The table with full paths in the column `image`, from `file_name` or, as in `datasets`, `<name>_file_name`."""
    names = [c for c in _file_columns(table, wanted) if c == wanted.image or not c.endswith("s")]
    given = [column for column in names if wanted.image and column in (wanted.image, f"{wanted.image}_file_name")]
    chosen = given or [column for column in names if column in ("file_name", "image_file_name")][:1] or names
    if len(chosen) != 1:
        lists = any(column.endswith("file_names") for column in table.column_names)
        what = "more than one column of file names" if names else "no column file_name"
        raise DatasetError(
            f"'{file}' has {'lists of files, not one image per row' if lists else what}; its columns are "
            f"{', '.join(table.column_names)}"
        )
    table = with_whole_paths(table, chosen[0], file.parent, inside=True)
    if chosen[0] == image:
        return table
    return table.remove_columns([c for c in (image,) if c in table.column_names]).rename_column(chosen[0], image)


def _arrow_schema(path: Path) -> pa.Schema:
    try:
        return pa.ipc.open_stream(pa.OSFile(str(path))).schema
    except ValueError:
        return pa.ipc.open_file(str(path)).schema


def _by_column(splits: dict[str, Dataset]) -> DatasetDict:
    """The splits of a single table, if one of its columns holds their names."""
    if len(splits) > 1:
        return DatasetDict(splits)
    ((_, table),) = splits.items()
    for column in table.column_names:
        feature = table.features[column]
        is_text = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
        if column.casefold() not in SPLIT_COLUMNS or not is_text:
            continue
        split_names = np.array(
            [split_of(text or "") or "" for text in table.with_format("arrow")[column][:].to_pylist()]
        )
        found = sorted(set(split_names.tolist()) - {""})
        if "train" not in found or len(found) == 1:
            continue
        if others := int((split_names == "").sum()):
            warnings.warn(f"Ignored {others:,} images whose column {column!r} means no split.", stacklevel=5)
        return DatasetDict({name: table.select(np.flatnonzero(split_names == name)) for name in found})
    return DatasetDict(splits)


def _tell_of_others(root: Path, named: set[str]) -> None:
    others = [file for file in find_images(root, bare=False) if os.path.realpath(file) not in named]
    if others:
        warnings.warn(
            f"Ignored {len(others):,} images in '{root}' that its table does not list, such as {others[0]}.",
            stacklevel=4,
        )


def _path_column(columns: list[str], wanted: ColumnNames) -> str | None:
    return usual_column(columns, wanted.image, IMAGE_COLUMNS)


def _class_column(columns: list[str], wanted: ColumnNames) -> str | None:
    return usual_column(columns, wanted.label, LABEL_COLUMNS)


def _is_image_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {field.name for field in kind}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or isinstance(kind, pa.BaseExtensionType)


def _together(parts: list[Dataset], files: list[Path]) -> Dataset:
    try:
        return concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    except ValueError as error:
        raise DatasetError(f"The tables {listed([str(f) for f in files], 3)} differ: {reason(error)}") from error


def _load(files: list[Path], kind: str | None, wanted: ColumnNames) -> Dataset:
    """The files as `datasets` reads them, or from its cache."""
    for file in files:
        check_name(str(file))
        if not os.path.exists(file):
            raise DatasetError(f"'{file}' is a broken link")
        if not os.path.getsize(file):
            raise DatasetError(f"'{file}' is empty (0 bytes)")
    options = _csv_options(files[0], wanted) if kind == "csv" else {}
    if kind == "parquet" and not sum(_rows(file) for file in files):
        raise DatasetError(f"'{files[0]}' has no rows")
    options["data_files"] = {"train": [glob.escape(str(file)) for file in files]}
    with _explained(files[0] if len(files) == 1 else files[0].parent):
        try:
            return load_dataset(kind, split="train", **options)
        except FileNotFoundError as error:
            if str(datasets.config.HF_DATASETS_CACHE) not in str(error):
                raise
            # part of the cached copy is missing
            return load_dataset(kind, split="train", download_mode="force_redownload", **options)


def _rows(file: Path) -> int:
    with _explained(file):
        return pq.read_metadata(file).num_rows


def _csv_options(file: Path, wanted: ColumnNames) -> dict:
    """Options for reading a CSV file.

    Only an empty cell is missing, as `NA` and `None` may be class names. Names of images are strings, as 007 and 7 are
    different files.
    """
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        header, rows = stream.readline(), stream.readline()
    comma = "\t" if file.suffix.lower() == ".tsv" else max(",;\t|", key=header.count)
    if not rows.strip():
        raise DatasetError(f"'{file}' has no rows")
    columns = next(csv.reader([header], delimiter=comma, skipinitialspace=True), [])
    column = _path_column(columns, wanted)
    options = {"sep": comma, "keep_default_na": False, "na_values": [""], "skipinitialspace": True}
    return options | ({"converters": {column: str}} if column else {})


@contextmanager
def _explained(file: Path):
    """Raises a DatasetError with the cause of a failure, which `datasets` only logs."""
    log = logging.getLogger("datasets")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    # what readers of damaged tables raise; NotImplementedError is pyarrow's, for a type that it cannot read
    except (OSError, ValueError, TypeError, NotImplementedError, KeyError, DatasetGenerationError) as error:
        raise read_error(error, file) from error
    finally:
        log.setLevel(level)


def read_error(error: BaseException, file: Path | str) -> DatasetError:
    """The error for a file that `datasets` or Arrow cannot read, because of its content or of the cache."""
    if cache.is_cache_error(error):
        folder = datasets.config.HF_DATASETS_CACHE
        return DatasetError(
            f"'{file}' cannot be copied to the cache folder '{folder}' ({reason(error)}); "
            "make room there, or set HF_DATASETS_CACHE to a writable folder"
        )
    if isinstance(error, UnicodeDecodeError) or isinstance(error.__cause__, UnicodeDecodeError):
        return DatasetError(f"'{file}' is not encoded in UTF-8; save it in UTF-8")
    if "corresponds to no data" in str(error):  # message of `datasets`
        return DatasetError(f"'{file}' has no rows")
    return DatasetError(f"'{file}' is damaged or incomplete: {reason(error)}")
