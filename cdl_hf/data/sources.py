"""Sources of data sets: named ones, local folders and files, and the Hub."""

import difflib
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub
from datasets import DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from .cache import is_cache_error
from .cifar100 import is_cifar100, read_cifar100
from .columns import ColumnNames
from .errors import DatasetError, listed, reason
from .image_files import check_name, image_suffixes, subfolders, walk
from .image_folder import Layout, find_layout, read_image_folder
from .splits import is_unlabelled
from .tables import (
    KINDS,
    METADATA,
    by_split,
    column_names,
    holds_image_column,
    kind_of,
    names_images,
    read_error,
    read_metadata,
    read_tables,
)


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a data set.

    Attributes:
        location: a path, or its name on the Hub.
        image_column, label_column: its columns, if their names or types do not tell.
        local: usual name of a local copy, if it is on the Hub.
        is_verified: whether all its images are known to be readable.
        is_drawings: whether its images are white lines on black; see [`sketch`].
        license: license of the images and the attribution that their publishers ask for.
    """

    location: str
    image_column: str | None = None
    label_column: str | None = None
    local: str = ""
    is_verified: bool = False
    is_drawings: bool = False
    license: str | None = None

    @property
    def hub_name(self) -> str | None:
        """Its repository on the Hub; None for a local one."""
        return None if os.path.exists(os.path.expanduser(self.location)) else self.location


# The page of CIFAR-100 asks for a citation and names no license; its repository on the Hub (uoft-cs/cifar100) is
# tagged `license: unknown`. The README of ImageNet-R names neither the rights to the pictures nor their authors; its
# copy on the Hub (axiong/imagenet-r) is tagged `mit`.
DATASETS = {
    "quickdraw100": DatasetSpec(
        str(Path(__file__).parents[1] / "assets" / "quickdraw100"),
        is_verified=True,
        is_drawings=True,
        license="drawings from [Quick, Draw!](https://github.com/googlecreativelab/quickdraw-dataset) by Google, "
        "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)",
    ),
    "cifar100": DatasetSpec(
        *("uoft-cs/cifar100", "img", "fine_label", "cifar-100-python"),
        is_verified=True,
        license="the publishers of [CIFAR-100](https://www.cs.toronto.edu/~kriz/cifar.html) name no license; they ask "
        "to cite their report (Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009)",
    ),
    "imagenet_r": DatasetSpec(
        *("axiong/imagenet-r", "image", "wnid", "imagenet-r"),
        license="the authors of [ImageNet-R](https://github.com/hendrycks/imagenet-r) name none for the pictures, "
        "which are other people's works; the [copy on the Hub](https://huggingface.co/datasets/axiong/imagenet-r) is "
        "marked MIT. They ask to cite their paper (Hendrycks et al., *The Many Faces of Robustness*, 2021)",
    ),
}


def dataset_spec(name_or_path: str) -> DatasetSpec:
    """What is known of a data set, given by its name here or on the Hub, or by the folder of a local copy."""
    folder = Path(name_or_path).name
    known = (s for s in DATASETS.values() if name_or_path == s.location or (s.local and s.local == folder))
    return DATASETS.get(name_or_path) or next(known, DatasetSpec(name_or_path))


def read_source(location: str, wanted: ColumnNames, train_split: str | None, test_split: str | None) -> DatasetDict:
    path = Path(os.path.expanduser(location)).absolute()
    check_name(str(path))
    if not location.strip():
        raise DatasetError("the data set has no name; give a folder, a file, or a name on the Hub")
    if os.path.exists(path):
        return read_local(path, wanted, train_split, test_split)
    owner, _, name = location.partition("/")
    if owner in ("", ".", "..", "~") or not name or "/" in name:
        near = difflib.get_close_matches(location, DATASETS, cutoff=0.5)
        names = f"did you mean {' or '.join(near)}?" if near else f"the named ones are {', '.join(DATASETS)};"
        raise DatasetError(
            f"{location!r} is neither a local file or folder nor a named data set; {names} "
            "a data set on the Hub is given as owner/name"
        )
    return read_hub(location)


ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def read_local(path: Path, wanted: ColumnNames, train_split: str | None, test_split: str | None) -> DatasetDict:
    """Splits of a local data set under their own names; images are not opened.

    Raises:
        DatasetError: there is no data set, or it cannot be read.
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
    """A folder written by `save_to_disk`."""
    try:
        data = load_from_disk(str(path))
    except IndexError as error:  # `datasets` can save an empty split but not load it
        raise DatasetError(f"'{path}' was saved with an empty split; save it without that split") from error
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise read_error(error, path) from error
    return data if isinstance(data, DatasetDict) else DatasetDict(train=data)


def _read_file(path: Path, wanted: ColumnNames) -> DatasetDict:
    suffix = path.suffix.lower()
    if kind_of(path) is None:
        what = "an archive; extract it and give its folder" if suffix in ARCHIVES else None
        what = what or ("a single image; give the folder of the class folders" if suffix in image_suffixes() else None)
        others = ", ".join(kind for kind in KINDS if kind != ".parquet")
        raise DatasetError(
            f"'{path}' is {what}"
            if what
            else f"'{path}' is neither a .parquet file nor one of {others}; give such a file, or a folder (extract "
            "archives)"
        )
    if (path.parent / "state.json").exists() and kind_of(path) in ("arrow", "json"):
        raise DatasetError(f"'{path}' is one file of a saved data set; give its folder, '{path.parent}'")
    return read_tables({"train": [path]}, wanted)


def _read_folder(path: Path, wanted: ColumnNames, train_split: str | None, test_split: str | None) -> DatasetDict:
    """A table that holds images; else a table of image files and their classes; else folders of classes."""
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
    layout = _layout(path, train_split, test_split, wanted.domain)
    names_columns = bool({wanted.image, wanted.label} - {None, "image", "label"})
    if isinstance(layout, DatasetError) or len(layout.classes) < 2 or names_columns:
        loose = [file for file in (*tables, *metadata) if file.parent == path and names_images(file, wanted)]
        labelled = [file for file in loose if not is_unlabelled(file.stem)]
        if labelled and len(labelled) < len(loose):
            names = listed([file.name for file in loose if file not in labelled])
            warnings.warn(
                f"Ignored tables in '{path}' whose names say that they hold no labels: {names}.", stacklevel=4
            )
            loose = labelled
        if loose:
            return read_tables(by_split(loose, path), wanted)
    if isinstance(layout, DatasetError):
        raise _no_images(path, tables, metadata, files, layout)
    _warn_of_strays([file for file in binary if file.parent == path], path)
    lists = [file.name for file in tables if kind_of(file) == "csv" and file.parent in (path, *layout.roots.values())]
    if lists:
        warnings.warn(
            f"Ignored {listed(lists)}: the classes of '{path}' are its folders. If a table lists the classes or "
            "splits of the images, choose its columns with image_column and label_column.",
            stacklevel=4,
        )
    if metadata:
        warnings.warn(
            f"The classes of '{path}' are its folders: {metadata[0].name} has no column file_name, or no column of "
            f"classes ({', '.join(column_names(metadata[0]))}). If it has one, choose it with label_column.",
            stacklevel=4,
        )
    return read_image_folder(layout, path)


def _warn_of_strays(files: list[Path], path: Path) -> None:
    if files:
        names = listed([file.name for file in files])
        warnings.warn(f"Ignored tables in '{path}' without a column of images: {names}.", stacklevel=5)


def _layout(
    path: Path, train_split: str | None, test_split: str | None, domain_column: str | None
) -> Layout | DatasetError:
    """The folders of classes, or why there are none."""
    try:
        return find_layout(path, train_split, test_split, domain_column)
    except DatasetError as error:
        return error


def _no_images(
    path: Path, tables: list[Path], metadata: list[Path], files: list[Path], problem: DatasetError
) -> DatasetError:
    """The problem, and which table or archive may have been meant."""
    archives = [file.name for file in files if file.suffix.lower() in ARCHIVES]
    if metadata or tables:
        table = (metadata or tables)[0]
        try:
            columns = ", ".join(column_names(table))
        except DatasetError as error:
            return DatasetError(f"{problem}; {error}")
        missing = (
            "no column file_name, or no column of classes"
            if metadata
            else "no columns that can be recognized as those of images and classes"
        )
        return DatasetError(
            f"{problem}; '{table}' has {missing} ({columns}): choose them with image_column and label_column"
        )
    return DatasetError(f"{problem}; it holds archives: extract {listed(archives)}") if archives else problem


# FileNotFoundError includes a data set that does not exist.
HUB_ERRORS = (ConnectionError, FileNotFoundError, ValueError, DatasetGenerationError)


def read_hub(name: str) -> DatasetDict:
    """The data set `owner/name` from the Hub, or from the cache without a connection.

    Raises:
        DatasetError: it does not exist, or there is neither a connection nor a copy in the cache.
    """
    if not is_hub_reachable():
        with _offline():
            try:
                return _load_from_hub(name)
            except DatasetError:
                raise
            except HUB_ERRORS as error:
                raise DatasetError(
                    f"{name!r} is not a local folder, the Hub cannot be reached and the cache has no copy; "
                    "load it once with a connection, or give the path of a local copy"
                ) from error
    try:
        return _load_from_hub(name)
    except DatasetError:
        raise
    except (*HUB_ERRORS, httpx.TransportError) as error:
        raise DatasetError(
            f"{name!r} is not a local folder and could not be downloaded from the Hub ({error}); "
            "check the name and the connection, or give the path of a local copy"
        ) from error


def _load_from_hub(name: str) -> DatasetDict:
    try:
        return load_dataset(name)
    except (OSError, DatasetGenerationError) as error:
        if not is_cache_error(error):
            raise
        folders = f"'{datasets.config.HF_DATASETS_CACHE}' and '{huggingface_hub.constants.HF_HUB_CACHE}'"
        raise DatasetError(
            f"{name!r} cannot be copied to the cache ({reason(error)}); make room in {folders}, or set HF_HOME to a "
            "writable folder"
        ) from error


def is_hub_reachable() -> bool:
    """Whether the Hub answers one request; `datasets` and `transformers` would retry for half a minute."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except (httpx.TransportError, OfflineModeIsEnabled):
        return False
    return True


@contextmanager
def _offline():
    """Same effect as HF_HUB_OFFLINE=1 within the context."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
