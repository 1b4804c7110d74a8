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
    """What `dataset.select(rows)` gives, rows (n,), but in 8 bytes a row and nothing else.

    `select` makes a list of Python integers and a new list of all record batches of the table: at ten million rows,
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
    """Where each image of the column `image` is or was, (n,) texts; null where unknown. Reads no image."""
    # from the table, because a data set hands out whole rows
    paths = pc.struct_field(dataset.data.column("image"), "path")
    return paths if dataset._indices is None else paths.take(dataset._indices.column(0))


def in_files(dataset: Dataset) -> np.ndarray:
    """Whether each image of the column `image` is in a file of its own, (n,) truth values, and not in the table."""
    found = pc.is_null(pc.struct_field(dataset.data.column("image"), "bytes"))
    return (found if dataset._indices is None else found.take(dataset._indices.column(0))).to_numpy()


BLOCK = 4096  # bytes


def image_digests(dataset: Dataset) -> np.ndarray:
    """64 bits of each image of the column `image`, (n,) unsigned integers; equal files have equal digests.

    Of a file, or of the bytes that a table holds, the size and the first, middle and last [`BLOCK`] count; files of up
    to three blocks count whole. No image is decoded. A change that keeps the size and touches none of the three
    blocks of a larger file is not noticed. Of what is no local file (in an archive, on the Hub), the address counts.
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


def ordered_digest(digests: np.ndarray, columns: np.ndarray) -> str:
    """SHA-256 over images (n,) and their classes (n,): the same images in the same order, of the same classes."""
    return hashlib.sha256(digests.astype("<u8").tobytes() + columns.astype("<i4").tobytes()).hexdigest()


def unordered_digest(digests: np.ndarray, columns: np.ndarray) -> int:
    """64 bits of images (n,) and their classes (n,) in any order; that of several sets is the sum modulo 2 ** 64."""
    mixed = digests ^ columns.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
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
    except OSError:  # decoding will tell, where it can be read at all
        return _hash(-1, path.encode("utf-8", "surrogateescape"))


def _block_starts(size: int) -> tuple[int, ...] | None:
    """Where the blocks that count begin; None if all of it counts."""
    return None if size <= 3 * BLOCK else (0, size // 2, size - BLOCK)


def _hash(size: int, content: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(str(size).encode() + b":", digest_size=8)
    digest.update(content)
    return digest.digest()
