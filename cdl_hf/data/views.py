"""Index-only views on a data set: rows, file paths and digests of its images."""

import copy
import hashlib
import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable


def select_rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Same as `dataset.select(rows)` for rows (n,), but takes only 8 bytes per row.

    `select` makes a list of Python integers and a list of all record batches of the table: with ten million rows,
    seconds and hundreds of megabytes for a stream.
    """
    indices = pa.array(rows, pa.uint64())
    if dataset._indices is not None:
        indices = dataset._indices.column(0).take(indices)
    view = copy.copy(dataset)
    view._indices = InMemoryTable(pa.table({"indices": indices}))
    view._fingerprint = Hasher.hash([dataset._fingerprint, rows])
    return view


def image_paths(dataset: Dataset) -> pa.ChunkedArray:
    """Path of each image of the column `image`, (n,) strings; null where unknown. Reads no image."""
    # from the table, because a data set returns whole rows
    paths = pc.struct_field(dataset.data.column("image"), "path")
    return paths if dataset._indices is None else paths.take(dataset._indices.column(0))


def in_files(dataset: Dataset) -> np.ndarray:
    """Whether each image of the column `image` is in a file of its own rather than in the table, (n,) booleans."""
    found = pc.is_null(pc.struct_field(dataset.data.column("image"), "bytes"))
    return (found if dataset._indices is None else found.take(dataset._indices.column(0))).to_numpy()


BLOCK = 4096  # bytes


def image_digests(dataset: Dataset) -> np.ndarray:
    """64-bit digest of each image of the column `image`, (n,) unsigned integers; equal files have equal digests.

    The digest covers the size and the first, middle and last [`BLOCK`] of a file, or of the bytes in a table; files of
    up to three blocks are covered completely. A change of a larger file outside these blocks that keeps its size is
    not noticed. Images that are not local files (in an archive, on the Hub) are identified by their address. No image
    is decoded.
    """
    stored = pc.struct_field(dataset.data.column("image"), "bytes")  # single values of it are not copied
    rows = range(len(dataset)) if dataset._indices is None else dataset._indices.column(0).to_numpy()
    paths = image_paths(dataset).to_pylist()
    digests = np.empty(len(dataset), np.uint64)
    for i, (row, path) in enumerate(zip(rows, paths, strict=True)):
        content = stored[int(row)]
        digest = _of_bytes(memoryview(content.as_buffer())) if content.is_valid else _of_file(path or "")
        digests[i] = int.from_bytes(digest)
    return digests


def ordered_digest(digests: np.ndarray, class_ids: np.ndarray) -> str:
    """SHA-256 over the digests of images (n,) and their class ids (n,), in this order."""
    return hashlib.sha256(digests.astype("<u8").tobytes() + class_ids.astype("<i4").tobytes()).hexdigest()


def unordered_digest(digests: np.ndarray, class_ids: np.ndarray) -> int:
    """64-bit digest of images (n,) and class ids (n,) in any order; digests of several sets add up modulo 2 ** 64."""
    mixed = digests ^ class_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64's finalizer
        mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
    return int((mixed ^ mixed >> np.uint64(31)).sum(dtype=np.uint64))


def _of_bytes(content: memoryview) -> bytes:
    size = len(content)
    starts = _block_starts(size)
    return _hash(size, content if starts is None else b"".join(content[s : s + BLOCK] for s in starts))


def _of_file(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            starts = _block_starts(size)
            if starts is None:
                return _hash(size, file.read())
            blocks = []
            for start in starts:
                file.seek(start)
                blocks.append(file.read(BLOCK))
            return _hash(size, b"".join(blocks))
    except OSError:  # an unreadable file is reported by the decoding
        return _hash(-1, path.encode("utf-8", "surrogateescape"))


def _block_starts(size: int) -> tuple[int, ...] | None:
    """Starts of the blocks that are hashed; None if the whole file is."""
    return None if size <= 3 * BLOCK else (0, size // 2, size - BLOCK)


def _hash(size: int, content: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(str(size).encode() + b":", digest_size=8)
    digest.update(content)
    return digest.digest()
