"""CIFAR-100 from the folder `cifar-100-python`, as its authors publish it."""

import hashlib
import pickle
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from datasets.table import InMemoryTable

from ..utils import verify
from .cache import cache_file, one_at_a_time, write_cache
from .errors import DatasetError

# Name -> size and MD5 of the file as published
FILES = {
    "train": (155_249_918, "16019d7e3df5f24257cddd939b257f8d"),
    "test": (31_049_908, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    "meta": (1_049, "7973b15100ade9c7d40fb424638fde48"),
}
HEADER = b"P6 32 32 255\n"  # of a PPM file, which stores pixels uncompressed

# The only classes in these files, apart from strings, numbers, lists and dictionaries.
_KNOWN = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


def is_cifar100(path: Path) -> bool:
    return all((path / name).is_file() for name in FILES)


def read_cifar100(path: Path) -> DatasetDict:
    """Splits with columns `image` and `label` (fine labels), memory-mapped from the cache of `datasets`.

    Without a writable cache they are in memory.

    Raises:
        DatasetError: a file is damaged, has other content, or is made to run code.
    """
    names = _entry(path / "meta", _load(path / "meta"), "fine_label_names")
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise DatasetError(f"'{path / 'meta'}' does not name the classes of CIFAR-100; download it again")
    names = [name.decode() if isinstance(name, bytes) else name for name in names]
    return DatasetDict({split: _read_split(path / split, names) for split in ("train", "test")})


def _read_split(file: Path, names: list[str]) -> Dataset:
    stat = file.stat()
    identity = repr((str(file), stat.st_size, stat.st_mtime_ns, names)).encode()
    cached = cache_file("cifar100", f"{hashlib.sha256(identity).hexdigest()[:24]}.arrow")
    with one_at_a_time(cached, f"read '{file}'"):
        with suppress(OSError, pa.ArrowInvalid):  # missing or damaged
            verify(cached)
            return Dataset.from_file(str(cached))
        table = _table(*_images_and_labels(file, len(names)), names)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
        if write_cache(cached, memoryview(sink.getvalue()), checksum=True):
            return Dataset.from_file(str(cached))
    return Dataset(InMemoryTable(table))


def _images_and_labels(file: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) uint8, and labels (n,)."""
    content = _load(file)
    pixels, labels = _entry(file, content, "data"), _entry(file, content, "fine_labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise DatasetError(f"'{file}' does not hold an array of images (n, 3072) as CIFAR-100 does; download it again")
    numbered = isinstance(labels, list) and all(label in range(classes) for label in labels)
    if not numbered or len(labels) != len(pixels):
        raise DatasetError(f"'{file}' does not have a label from 0 to {classes - 1} for each image; download it again")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels)


def _table(images: np.ndarray, labels: np.ndarray, names: list[str]) -> pa.Table:
    files = np.empty((len(images), len(HEADER) + 3072), np.uint8)
    files[:, : len(HEADER)] = np.frombuffer(HEADER, np.uint8)
    files[:, len(HEADER) :] = images.reshape(-1, 3072)
    starts = np.arange(len(files) + 1, dtype=np.int32) * files.shape[1]
    column = pa.BinaryArray.from_buffers(pa.binary(), len(files), [None, pa.py_buffer(starts), pa.py_buffer(files)])
    image = pa.StructArray.from_arrays([column, pa.nulls(len(files), pa.string())], ["bytes", "path"])
    features = Features(image=Image(), label=ClassLabel(names=names))
    return pa.table({"image": image, "label": labels}).cast(features.arrow_schema)


def _md5():
    return hashlib.md5(usedforsecurity=False)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if module in _MODULES and name in _KNOWN:
            return _KNOWN[name]
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _load(file: Path) -> dict:
    """A dictionary that was pickled in Python 2; creates nothing but arrays and runs no code."""
    size, md5 = FILES[file.name]
    try:
        with file.open("rb") as stream:
            if file.stat().st_size == size and hashlib.file_digest(stream, _md5).hexdigest() != md5:
                warnings.warn(
                    f"'{file}' has the size of the published file but not its checksum (MD5 {md5}): unless it was "
                    "changed on purpose, it is damaged; download it again",
                    stacklevel=2,
                )
            stream.seek(0)
            return _Unpickler(stream, encoding="latin1").load()
    except _BROKEN as error:
        raise DatasetError(f"'{file}' is not a file of CIFAR-100: {error or 'it ends too early'}") from error


def _entry(file: Path, content: dict, name: str):
    """The entry under a name, which is a string or, in files written by other tools, bytes."""
    if isinstance(content, dict):
        for key in (name, name.encode()):
            if key in content:
                return content[key]
    raise DatasetError(f"'{file}' has no entry {name!r} as the files of CIFAR-100 have; download it again")
