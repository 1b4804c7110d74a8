"""Image files below a folder: links are followed, hidden folders and those that systems leave behind are not."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import PIL.Image

from .dataset_error import DatasetError
from .decoding import FORMATS

NO_IMAGES = ("thumbs.db", "desktop.ini", "readme", "readme.txt", "license", "license.txt", "makefile")
# of archives made on a Mac, of network drives (Synology, QNAP), of Windows, of Linux, of Python
NO_FOLDERS = (
    *("__macosx", "@eadir", "#recycle", "@recycle", "@recycle.bin", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
)


def image_suffixes() -> set[str]:
    """Of the formats that are read; a file without a suffix may be of any."""
    return {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in FORMATS}


def is_hidden(folder: str) -> bool:
    """Whether a folder of this name is none of the user's making."""
    return folder.startswith(".") or folder.lower() in NO_FOLDERS


def subfolders(folder: Path) -> dict[str, Path]:
    """The folders in a folder by their names, sorted, without the hidden ones.

    Raises:
        DatasetError: it cannot be looked into.
    """
    try:
        children = [child for child in folder.iterdir() if not is_hidden(child.name) and child.is_dir()]
    except OSError as error:
        _refuse(error)
    return {child.name: child for child in sorted(children, key=lambda child: child.name)}


def walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, its files, sorted) of `top` and all folders below, links followed, each folder once.

    What a link has above it is not below it: a link to the folder that it is in, or further up, leads nowhere new.

    Raises:
        DatasetError: a folder cannot be looked into.
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
    """Paths of the images below `top`, known by their suffixes, folder by folder.

    Args:
        others: counts the other files by their suffixes.
        bare: take files without a suffix for images.
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
    """Whether an image is in the folder itself."""
    return bool(_own_images(folder, 1))


def holds_images(folder: Path) -> bool:
    """Whether an image is in the folder or below it; a file without a suffix counts if it can be opened as one."""
    return has_own_images(folder) or any(os.path.splitext(file)[1] or _opens(file) for file in find_images(folder))


def _own_images(folder: Path, enough: int) -> list[str]:
    """Names of all the images in the folder, or of so many."""
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
    if not os.path.isfile(file):  # a pipe would be waited for
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
    raise DatasetError(f"the folder {error.filename!r} cannot be looked into: {error.strerror}") from error
