"""Image files: found below a folder, listed in a table, or given one by one.

Links are followed. Hidden folders and those that operating systems create are skipped.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import PIL.Image
import pyarrow as pa
import torch
from datasets import Dataset, Value

from .decoding import DECODING_ERRORS, FORMATS, decoding_problem, open_image
from .errors import DatasetError
from .labels import normalized_name
from .splits import split_of

NO_IMAGES = ("thumbs.db", "desktop.ini", "readme", "readme.txt", "license", "license.txt", "makefile")
# created by macOS archives, network drives (Synology, QNAP), Windows, Linux and Python
NO_FOLDERS = (
    *("__macosx", "@eadir", "#recycle", "@recycle", "@recycle.bin", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
)


def image_suffixes() -> set[str]:
    """Suffixes of the formats that can be read."""
    return {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in FORMATS}


def is_hidden(folder: str) -> bool:
    """Whether a folder of this name is hidden or created by the operating system."""
    return folder.startswith(".") or folder.lower() in NO_FOLDERS


def subfolders(folder: Path) -> dict[str, Path]:
    """Folders in a folder by name, sorted, without the hidden ones.

    Raises:
        DatasetError: the folder cannot be listed.
    """
    try:
        children = [child for child in folder.iterdir() if not is_hidden(child.name) and child.is_dir()]
    except OSError as error:
        _refuse(error)
    return {child.name: child for child in sorted(children, key=lambda child: child.name)}


def walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, its sorted files) of `top` and all folders below it, each folder once.

    Links are followed, but not to folders that contain them.

    Raises:
        DatasetError: a folder cannot be listed.
    """
    seen = {_identity(parent) for parent in top.absolute().parents}
    for folder, folders, files in os.walk(top, followlinks=True, onerror=_refuse):
        identity = _identity(Path(folder))
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield folder, sorted(file for file in files if not file.startswith("."))


def find_images(top: Path, others: Counter | None = None, bare: bool = True) -> Iterator[str]:
    """Paths of the images below `top`, recognized by their suffixes, folder by folder.

    Args:
        others: counter to which other files are added by suffix.
        bare: whether files without a suffix count as images.
    """
    suffixes = image_suffixes()
    for folder, files in walk(top):
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if file.lower() in NO_IMAGES or not suffix and not bare:
                continue
            if not suffix or suffix in suffixes:
                yield os.path.join(folder, file)
            elif others is not None:
                others[suffix] += 1


def own_images(folder: Path) -> list[str]:
    """Names of the images in the folder itself, sorted."""
    return sorted(_own_images(folder, 0))


def has_own_images(folder: Path) -> bool:
    """Whether the folder itself contains an image."""
    return bool(_own_images(folder, 1))


def holds_images(folder: Path) -> bool:
    """Whether an image is in the folder or below it; a file without a suffix counts if it opens as an image."""
    return has_own_images(folder) or any(os.path.splitext(file)[1] or _opens(file) for file in find_images(folder))


def _own_images(folder: Path, enough: int) -> list[str]:
    """Names of the images in the folder; at most `enough` of them, or all if that is 0."""
    suffixes, found = image_suffixes(), []
    try:
        with os.scandir(folder) as files:
            for file in files:
                if os.path.splitext(file.name)[1].lower() in suffixes and not file.name.startswith("."):
                    found.append(file.name)
                    if len(found) == enough:
                        break
    except OSError as error:
        _refuse(error)
    return found


def _opens(file: str) -> bool:
    if not os.path.isfile(file):  # reading a pipe would block
        return False
    try:
        with PIL.Image.open(file, formats=FORMATS):
            return True
    except (OSError, ValueError, SyntaxError):
        return False


def _identity(folder: Path) -> tuple[int, int] | str:
    try:
        found = os.stat(folder)
    except OSError:
        return str(folder)
    return found.st_dev, found.st_ino


def _refuse(error: OSError) -> None:
    raise DatasetError(f"the folder {error.filename!r} cannot be listed: {error.strerror}") from error


def check_name(path: str) -> str:
    """Returns the path if it is valid Unicode.

    Raises:
        DatasetError: it is not.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise DatasetError(f"the name of the file {path!r} is not UTF-8; rename it") from error
    return path


def find_image_files(paths: Iterable[str | Path]) -> list[str]:
    """The given files, and the images in and below the given folders, recognized by suffix and sorted.

    Raises:
        DatasetError: a file or folder does not exist, or a folder has no image.
    """
    files = []
    for path in (Path(os.path.expanduser(path)) for path in paths):
        if path.is_dir():
            found = sorted(find_images(path, bare=False))
            if not found:
                raise DatasetError(f"'{path}' has no files with an image extension")
            files += found
        elif os.path.exists(path):
            files.append(str(path))
        else:
            raise DatasetError(f"there is no file or folder '{path}'")
    return files


class ImageFiles(torch.utils.data.Dataset):
    """Samples (file, tensor (3, H, W), None), or (file, None, reason) if the file cannot be read.

    Args:
        files: paths.
        transform: PIL image -> tensor.
    """

    def __init__(self, files: list[str], transform: Callable[[PIL.Image.Image], torch.Tensor]):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor | None, str | None]:
        file = self.files[index]
        try:
            image = open_image(file)
        except DECODING_ERRORS as error:
            return file, None, decoding_problem(error)
        return file, self.transform(image), None


LONGEST_NAME = 255  # of a file, on all usual systems
LONGEST_PATH = 4096


def with_whole_paths(
    table: Dataset, column: str | None, folder: Path, split: str | None = None, inside: bool = False
) -> Dataset:
    """The table with full paths of its images, if the column holds file names (as strings or numbers).

    Args:
        folder: folder that the names are relative to. A file that is not there may be further down, or be named with
            folders that do not exist here, if only one file fits, or only one in the folders of the split. The name
            may lack the suffix and have another Unicode composition.
        inside: whether to refuse files outside the folder.

    Raises:
        DatasetError: the column does not hold paths, or a file is outside the folder.
    """
    feature = table.features.get(column)
    if not isinstance(feature, Value) or "string" not in feature.dtype and "int" not in feature.dtype:
        return table
    is_text = "string" in feature.dtype
    values = table.select_columns([column]).with_format("arrow")[column][:].to_pylist()
    texts = [None if value is None else str(value) for value in values]
    if any(_is_content(text or "") for text in texts):
        raise DatasetError(
            f"the column {column!r} of a table in '{folder}' holds strings that are not paths, such as images in "
            "base64; store the bytes of the files, or their paths"
        )
    files = _Files(folder, split)
    paths = []
    for text in texts:
        if not text or "://" in text:
            paths.append(None if not text or inside else text)
            continue
        path = files.find(text)
        if inside and not Path(path).is_relative_to(folder):
            raise DatasetError(f"the table in '{folder}' lists the file {text!r}, which is not in that folder")
        paths.append(check_name(path))
    if not is_text and not any(path and os.path.exists(path) for path in paths):
        return table  # numbers with another meaning
    order = table.column_names
    changed = table.add_column(" paths", pa.chunked_array([pa.array(paths, pa.string())]))
    return changed.remove_columns(column).rename_column(" paths", column).select_columns(order)


def split_of_path(path: str | None, root: Path) -> str | None:
    """The split that the name of a folder in the path means, below `root`."""
    parts = Path(os.path.relpath(path, root)).parts[:-1] if path else ()
    return next((split for part in parts if (split := split_of(part))), None)


def _is_content(text: str) -> bool:
    """Whether a string looks like content in base64: too long for a path, or for a name without a suffix."""
    return len(text) > LONGEST_PATH or text.startswith("data:") or (len(text) > LONGEST_NAME and "." not in text)


class _Files:
    """Image files below a folder, listed only when a file is not found directly."""

    def __init__(self, folder: Path, split: str | None):
        self.folder, self.split = folder, split
        self._by_name: dict[str, list[str]] | None = None

    def find(self, text: str) -> str:
        """The file that is meant; if there is none or more than one, the path where it should be."""
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
        """Files of a name, with or without its suffix."""
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for file in find_images(self.folder):
                last = normalized_name(os.path.basename(file))
                for key in {last, os.path.splitext(last)[0]}:
                    self._by_name[key].append(file)
        return self._by_name.get(name, [])


def _parts(path: str) -> list[str]:
    return [part for part in normalized_name(path).split("/") if part not in ("", ".", "..")]


def _is_end(wanted: list[str], found: list[str]) -> bool:
    """Whether the folders of one path end with those of the other; `a/1.png` does not match `b/1.png`."""
    folders = wanted[:-1], found[:-1]
    shorter, longer = sorted(folders, key=len)
    return not shorter or longer[-len(shorter) :] == shorter
