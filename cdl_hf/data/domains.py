"""Domains of images: the column `domain`, by which a stream makes its tasks."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Value

from .errors import DatasetError
from .labels import normalized_name

DOMAIN = "domain"


def with_domains(splits: dict[str, Dataset], name: str, column: str, columns: list[str]) -> dict[str, Dataset]:
    """The splits with a ClassLabel of the domains that have images as `domain`.

    The domains of a ClassLabel keep their order; others are sorted.

    Args:
        name: of the data set, for messages.
        column: name of the column that the user chose.
        columns: columns of the data set as it was stored, for messages.

    Raises:
        DatasetError: there is no such column, its values are not names, numbers or booleans, or some are missing.
    """
    if any(DOMAIN not in dataset.column_names for dataset in splits.values()):
        raise DatasetError(
            f"{name!r} has no column {column!r} for domain_column; its columns are {', '.join(columns)} (in a folder "
            "of images, domains are the folders above those of the classes)"
        )
    values = {
        split: _values(dataset, f"the domain_column {column!r} of {name!r}") for split, dataset in splits.items()
    }
    kind = splits["train"].features[DOMAIN]
    if len({each.type for each in values.values()}) > 1:
        raise DatasetError(f"the domain_column {column!r} of {name!r} has values of different types in its splits")
    found = {value for each in values.values() for value in pc.unique(each).to_pylist()}
    first = [each for each in kind.names if each in found] if isinstance(kind, ClassLabel) else []
    names = [*first, *sorted(found.difference(first))]
    feature, table = ClassLabel(names=[str(each) for each in names]), pa.array(names)
    return {
        split: dataset.remove_columns(DOMAIN).add_column(
            DOMAIN, pc.index_in(values[split], table).cast(pa.int64()), feature=feature
        )
        for split, dataset in splits.items()
    }


def read_domains(dataset: Dataset) -> np.ndarray:
    """Domain of each image, (n,) 32-bit integers; reads no image."""
    return np.asarray(dataset.select_columns([DOMAIN]).with_format("arrow")[DOMAIN][:], np.int32)


def domain_names(dataset: Dataset) -> np.ndarray | None:
    """Name of the domain of each image, (n,); None for a data set without domains."""
    if DOMAIN not in dataset.column_names:
        return None
    return np.array(dataset.features[DOMAIN].names)[read_domains(dataset)]


def _values(dataset: Dataset, what: str) -> pa.ChunkedArray:
    """Names, numbers or booleans (n,)."""
    column, kind = dataset.select_columns([DOMAIN]).with_format("arrow")[DOMAIN][:], dataset.features[DOMAIN]
    if isinstance(kind, ClassLabel):
        missing = pc.fill_null(pc.less(column, 0), True)
        names = pc.take(pa.array(kind.names), pc.if_else(missing, None, column))
    elif isinstance(kind, Value) and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        names = column
    elif isinstance(kind, Value) and kind.dtype in ("string", "large_string"):
        texts = [normalized_name(text).strip() if text else None for text in pc.unique(column).to_pylist()]
        names = pc.take(pa.array(texts, pa.string()), pc.index_in(column, pc.unique(column)))
        names = pc.if_else(pc.equal(names, ""), None, names)
    else:
        raise DatasetError(
            f"{what} has values of type {getattr(kind, 'dtype', kind)}; expected names or whole numbers"
        )
    if names.null_count:
        raise DatasetError(
            f"{what} is empty for {names.null_count:,} of {len(names):,} images: fill it, or remove them"
        )
    return names
