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
    """Where a named data set lives (a path or a Hub name), and which of its columns are meant.

    Attributes:
        local: the folder that people have of it, if it is from the Hub.
        is_verified: whether all its images are known to be readable.
        license: of the images: what their publishers say of it, and the attribution that they ask for.
    """

    location: str
    image_column: str | None = None
    label_column: str | None = None
    local: str = ""
    is_verified: bool = False
    license: str | None = None

    @property
    def hub_name(self) -> str | None:
        """Its repository on the Hub, if it is nothing of this machine."""
        return None if os.path.exists(os.path.expanduser(self.location)) else self.location


# Of CIFAR-100 the publishers' page has only the wish to be cited, no license, and the data set's own repository on the
# Hub (uoft-cs/cifar100) is tagged `license: unknown`. Of ImageNet-R the authors' page, the README of their repository,
# says nothing of rights to the pictures, nor who made them; the copy on the Hub (axiong/imagenet-r) is tagged `mit`.
DATASETS = {
    "quickdraw100": DatasetSpec(
        str(Path(__file__).parents[1] / "assets" / "quickdraw100"),
        is_verified=True,
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
    """What is known of a data set: of a named one also by its name on the Hub or the folder that people have of it."""
    folder = Path(name_or_path).name
    known = (s for s in DATASETS.values() if name_or_path == s.location or (s.local and s.local == folder))
    return DATASETS.get(name_or_path) or next(known, DatasetSpec(name_or_path))


def read_source(location: str, wanted: ColumnNames, train_split: str | None, test_split: str | None) -> DatasetDict:
    path = Path(os.path.expanduser(location)).absolute()
    check_name(str(path))
    if not location.strip():
        raise DatasetError("The data set has no name; give a folder, a file, or a name on the Hub.")
    if os.path.exists(path):
        return read_local(path, wanted, train_split, test_split)
    owner, _, name = location.partition("/")
    if owner in ("", ".", "..", "~") or not name or "/" in name:
        near = difflib.get_close_matches(location, DATASETS, cutoff=0.5)
        names = f"did you mean {' or '.join(near)}?" if near else f"the named ones are {', '.join(DATASETS)}."
        raise DatasetError(
            f"'{location}' is no file or folder here and no named data set; {names} "
            "A data set on the Hub is given as owner/name."
        )
    return read_hub(location)


ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def read_local(path: Path, wanted: ColumnNames, train_split: str | None, test_split: str | None) -> DatasetDict:
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
        raise read_error(error, path) from error
    return data if isinstance(data, DatasetDict) else DatasetDict(train=data)


def _read_file(path: Path, wanted: ColumnNames) -> DatasetDict:
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


def _read_folder(path: Path, wanted: ColumnNames, train_split: str | None, test_split: str | None) -> DatasetDict:
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


# No such data set is a FileNotFoundError as well.
HUB_ERRORS = (ConnectionError, FileNotFoundError, ValueError, DatasetGenerationError)


def read_hub(name: str) -> DatasetDict:
    """The data set `owner/name`.

    Raises:
        DatasetError: there is none of that name, or neither a connection nor a copy in the cache.
    """
    if not is_hub_reachable():
        with _offline():
            try:
                return _load_from_hub(name)
            except DatasetError:
                raise
            except HUB_ERRORS as error:
                raise DatasetError(
                    f"'{name}' is no folder here, the Hub cannot be reached and the cache has no copy; "
                    "load it once with a connection, or give the path of a local copy."
                ) from error
    try:
        return _load_from_hub(name)
    except DatasetError:
        raise
    except (*HUB_ERRORS, httpx.TransportError) as error:
        raise DatasetError(
            f"'{name}' is no folder here, and the Hub did not give it ({error}); "
            "check the name and the connection, or give the path of a local copy."
        ) from error


def _load_from_hub(name: str) -> DatasetDict:
    try:
        return load_dataset(name)
    except (OSError, DatasetGenerationError) as error:
        if not is_cache_error(error):
            raise
        folders = f"'{datasets.config.HF_DATASETS_CACHE}' and '{huggingface_hub.constants.HF_HUB_CACHE}'"
        raise DatasetError(
            f"'{name}' cannot be copied to the cache ({reason(error)}); make room in {folders}, or set HF_HOME to a "
            "folder that can be written to."
        ) from error


def is_hub_reachable() -> bool:
    """Asks once: without a connection, `datasets` and `transformers` would try for half a minute, telling it."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except (httpx.TransportError, OfflineModeIsEnabled):
        return False
    return True


@contextmanager
def _offline():
    """What HF_HUB_OFFLINE=1 does, for once."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
