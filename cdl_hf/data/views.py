"""Index-only views on a data set."""

import copy

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
