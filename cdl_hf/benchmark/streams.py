"""Time and memory, on top of the table, to build a stream over very many rows."""

import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetDict, Features, Image, load_dataset

from ..data import TaskStream
from .machine import OwnMemory

CLASSES, TASKS = 1000, 10


def measure(rows: int) -> dict[str, float]:
    """A stream of 10 tasks over `rows` images in 1000 classes, a tenth of them test images.

    Returns:
        `seconds` to build it from the memory-mapped table, and `peak_bytes_per_row` and `kept_bytes_per_row` of
        memory that belongs to the process alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        for split, count in (("train", rows - rows // 10), ("test", rows // 10)):
            _write(Path(folder) / f"{split}.parquet", count)
        files = {split: str(Path(folder) / f"{split}.parquet") for split in ("train", "test")}
        splits = load_dataset("parquet", data_files=files, cache_dir=f"{folder}/cache")
        with OwnMemory() as memory:
            began = time.perf_counter()
            stream = _build(splits)
            seconds = time.perf_counter() - began
        assert sum(stream.describe()["train"]) == rows - rows // 10
    return {
        "rows": rows,
        "seconds": seconds,
        "peak_bytes_per_row": memory.peak / rows,
        "kept_bytes_per_row": memory.kept / rows,
    }


def _build(splits: DatasetDict) -> TaskStream:
    return TaskStream(splits, num_tasks=TASKS, class_order="seeded", seed=1993)


def _write(file: Path, rows: int) -> None:
    """Labels in random order, and null images."""
    features = Features(image=Image(), label=ClassLabel(names=[f"class {label}" for label in range(CLASSES)]))
    schema = features.arrow_schema
    rng = np.random.default_rng(rows)
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, 10**6):
            count = min(10**6, rows - start)
            labels = rng.integers(0, CLASSES, count)
            images = pa.nulls(count, schema.field("image").type)
            writer.write_table(pa.table({"image": images, "label": labels}, schema=schema))
