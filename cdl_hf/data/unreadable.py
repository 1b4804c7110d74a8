"""Which images cannot be read, found before training and remembered, so that it is looked for only once."""

import hashlib
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import Dataset
from datasets.utils import tqdm

from ..utils import num_cores
from .cache import cache_file, one_at_a_time, write_cache
from .decoding import UnreadableImageError, decode
from .views import image_paths, in_files

# What Pillow is known to raise on files that are damaged, or no images at all.
FAILURES = (
    OSError,  # PIL.UnidentifiedImageError among them
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    PIL.Image.DecompressionBombError,
    PIL.Image.DecompressionBombWarning,  # where warnings are errors
)
FEW = 500  # images that are checked too soon for a progress bar


def find_unreadable(dataset: Dataset, what: str) -> dict[int, str]:
    """The rows whose `image` cannot be decoded, each with the reason.

    Every image is decoded once, on all cores. Which ones could be is kept in the cache folder of `datasets`, by path,
    size and time of the files; of several processes one looks, and the others wait for what it finds. Those that could
    not be are tried again the next time: a missing right, say, leaves no trace in a file.

    Args:
        dataset: with a column `image`.
        what: names the data set and the column; what was read of the same `what` before is remembered.
    """
    rows = dataset.select_columns(["image"]).with_format("arrow")
    identities = _identities(dataset, what)
    if identities is None:
        return _check(rows, np.arange(len(dataset)))
    file = cache_file("readable_images", f"{hashlib.sha256(what.encode()).hexdigest()[:24]}.npy")
    with one_at_a_time(file, f"check the images of {what}"):
        known = _read(file)
        new = np.flatnonzero(~np.isin(identities, known))
        unreadable = _check(rows, new)
        if len(unreadable) < len(new):
            write_cache(file, _as_npy(np.union1d(known, np.delete(identities, list(unreadable)))))
    return unreadable


def _read(file: Path) -> np.ndarray:
    """Identities, (n,); none of a file that is not exactly what [`_as_npy`] writes."""
    try:
        content = file.read_bytes()
    except OSError:
        return np.empty(0, np.uint64)
    start = len(_as_npy(np.empty(0, np.uint64)))
    identities = np.frombuffer(content[start : len(content) - (len(content) - start) % 8], np.uint64)
    return identities if _as_npy(identities) == content else np.empty(0, np.uint64)


def _as_npy(identities: np.ndarray) -> bytes:
    stream = BytesIO()
    np.save(stream, identities)
    return stream.getvalue()


def _check(rows: Dataset, wanted: np.ndarray) -> dict[int, str]:
    """The wanted rows that cannot be read, each with the reason, in their order."""
    parts = [wanted[start : start + 64].tolist() for start in range(0, len(wanted), 64)]

    def reasons(part: list[int]) -> dict[int, str]:
        images = rows[part]["image"].to_pylist()
        return {row: reason for row, image in zip(part, images, strict=True) if (reason := _reason(image))}

    # Threads: Pillow releases the interpreter's lock while it decodes. Where processes are spawned, each runs the
    # user's script again; without a guard for `__main__` that would come here a second time, and wait for this one.
    pool, unreadable = ThreadPoolExecutor(num_cores()), {}
    try:
        title = "Looking for images that cannot be read"
        with tqdm(desc=title, total=len(wanted), disable=len(wanted) < FEW) as progress:
            for part, found in zip(parts, pool.map(reasons, parts), strict=True):
                unreadable |= found
                progress.update(len(part))
    finally:
        pool.shutdown(cancel_futures=True)  # what has not begun is left out after an interruption
    return unreadable


def _reason(image: dict | None) -> str | None:
    """Why the image cannot be read; None if it can."""
    if image is None or (image["bytes"] is None and image["path"] is None):
        return "no image"
    try:
        if image["bytes"] is None:
            if not os.path.exists(image["path"]):
                return "a broken link" if os.path.islink(image["path"]) else "no such file"
            if not os.path.getsize(image["path"]):
                return "empty"
        elif not image["bytes"]:
            return "empty"
        decode(image).load()
    except FAILURES as error:
        return explain(error)
    return None


def explain(error: Exception) -> str:
    """Why an image cannot be read, from one of [`FAILURES`]."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image, or of a kind that Pillow does not read"
    if isinstance(error, UnreadableImageError):
        return str(error)
    return (error.strerror or str(error)) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def _identities(dataset: Dataset, what: str) -> np.ndarray | None:
    """64 bits for each image that change when it does, (n,); None if it is in no file."""
    in_file = in_files(dataset)
    if not in_file.all() and not dataset.cache_files:
        return None
    tables = [(file["filename"], *_size_and_time(file["filename"])) for file in dataset.cache_files]
    numbers = np.arange(len(dataset)) if dataset._indices is None else dataset._indices.column(0).to_numpy()
    identities = numbers.astype(np.uint64) + np.uint64(_hash(what, tables))  # wraps around
    rows = np.flatnonzero(in_file)
    for row, path in zip(rows, image_paths(dataset).take(rows).to_pylist(), strict=True):
        identities[row] = _hash(path, *_size_and_time(path))
    return identities


def _size_and_time(path: str | None) -> tuple[int, int]:
    try:
        found = os.stat(path or "")
    except OSError:  # such as a broken link: the check will tell
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _hash(*values) -> int:
    return int.from_bytes(hashlib.blake2b(repr(values).encode("utf-8", "surrogateescape"), digest_size=8).digest())
