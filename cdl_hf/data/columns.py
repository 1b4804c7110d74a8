"""Columns of images and of classes: how they are found, and arrays of pixels as images."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Array2D, Array3D, ClassLabel, Dataset, Features, Image, LargeList, List, Value
from datasets.features.features import FeatureType

from .errors import DatasetError

USUAL_IMAGE_COLUMNS = ("image", "img")
USUAL_LABEL_COLUMNS = ("label", "labels", "fine_label", "wnid")
# The first line is tried first. Of a later line exactly one name must be present, and none of the lines before.
IMAGE_COLUMNS = (
    USUAL_IMAGE_COLUMNS,
    (
        *("file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "img_path", "image_name"),
        *("image_file", "image_filename", "images", "filenames", "filepaths"),
    ),
    ("image_id", "img_id", "imageid"),
    ("id",),
)
LABEL_COLUMNS = (
    USUAL_LABEL_COLUMNS,
    ("class", "class_name", "category", "target", "label_name", "species", "breed", "y"),
    ("class_id", "classid", "category_id", "label_id"),
)


@dataclass(frozen=True)
class ColumnNames:
    """Columns of images, of classes and of domains that the user chose."""

    image: str | None = None
    label: str | None = None
    domain: str | None = None


def find_image_column(features: Features, given: str | None, name: str) -> str:
    """The given column, else the only one of type Image, else the only one with a usual name.

    Raises:
        DatasetError: there is no such column, or more than one, or it does not hold one image per row.
    """
    column = _column(features, given, Image, IMAGE_COLUMNS, "image", name)
    if not _can_be_images(features[column]):
        raise DatasetError(
            f"{name!r} has {_kind(features[column])} in its column {column!r}; expected one image per row: "
            "the bytes of a file, its path, or an array of pixels"
        )
    return column


def find_label_column(features: Features, given: str | None, name: str) -> str:
    """The given column, else the only ClassLabel, else the only one with a usual name.

    Raises:
        DatasetError: there is no such column, or more than one.
    """
    return _column(features, given, ClassLabel, LABEL_COLUMNS, "label", name)


def usual_column(columns: list[str], given: str | None, usual: tuple[tuple[str, ...], ...]) -> str | None:
    """The given column if present, else the first with a usual name, else the only one with a less usual name.

    Args:
        usual: such as `IMAGE_COLUMNS`.
    """
    if given:
        return given if given in columns else None
    by_name = {column.strip().casefold(): column for column in columns}
    first, *others = ([by_name[name] for name in names if name in by_name] for names in usual)
    found = next(filter(None, [first[:1], *others]), [])
    return found[0] if len(found) == 1 else None


def _column(
    features: Features, given: str | None, kind: type, usual: tuple[tuple[str, ...], ...], what: str, name: str
) -> str:
    if given:
        if given not in features:
            raise DatasetError(f"{name!r} has no column {given!r}; its columns are {', '.join(features)}")
        return given
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    found = [column for column in usual[0] if column in found][:1] or found
    if not found:
        column = usual_column(list(features), None, usual)
        found = [column] if column else []
    if len(found) != 1:
        raise DatasetError(
            f"{name!r} has {'more than one' if found else 'no'} column that can be the {what} "
            f"({', '.join(found or features)}); choose it with {what}_column"
        )
    return found[0]


def _can_be_images(feature: FeatureType) -> bool:
    if isinstance(feature, Value):
        return feature.dtype in ("string", "large_string", "binary", "large_binary")
    if isinstance(feature, dict):
        return {"bytes", "path"} <= feature.keys()
    depth = 0
    while isinstance(feature, List | LargeList):
        feature, depth = feature.feature, depth + 1
    if depth:  # rows of pixels
        return depth in (2, 3) and isinstance(feature, Value) and ("int" in feature.dtype or "float" in feature.dtype)
    return isinstance(feature, Image | Array2D | Array3D)


def _kind(feature: FeatureType) -> str:
    if isinstance(feature, List | LargeList):
        inner = feature.feature
        return "lists of images" if isinstance(inner, Image) else "lists"
    return f"values of type {feature.dtype}" if isinstance(feature, Value) else f"a {type(feature).__name__}"


def is_array(feature) -> bool:
    """Whether a column holds pixel values of each image: (height, width) or (height, width, channels)."""
    return isinstance(feature, List | LargeList | Array2D | Array3D)


def encode_arrays(dataset: Dataset, column: str) -> Dataset:
    """The data set with the arrays of a column as PNG files; `datasets` itself would keep only the lower 8 bits.

    Values must be of type uint8, or integers from 0 to 255 in all images.

    Raises:
        ValueError: other values, or an array without the shape of an image.
    """
    rows = dataset.with_format("arrow")[column][:]
    chunks = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in rows.chunks]
    _check_values(chunks)
    files = pa.array((_as_png(row.as_py()) for chunk in chunks for row in chunk), pa.binary())
    images = pa.StructArray.from_arrays([files, pa.nulls(len(files), pa.string())], ["bytes", "path"])
    return dataset.remove_columns(column).add_column(column, images, feature=Image())


def _check_values(chunks: list[pa.Array]) -> None:
    flat = []
    for chunk in chunks:
        while pa.types.is_nested(chunk.type):
            chunk = chunk.flatten()
        flat.append(chunk)
    values = pa.chunked_array(flat)
    if values.type == pa.uint8():
        return
    low, high = pc.min_max(values).as_py().values()
    if not pa.types.is_integer(values.type) or low is None or low < 0 or not 1 < high <= 255:
        raise ValueError(f"arrays of {values.type} with values of {low} to {high}; store them as uint8, 255 for white")


def _as_png(row: list | None) -> bytes | None:
    if row is None:
        return None
    pixels = np.array(row, np.uint8)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if not pixels.size or (pixels.ndim, *pixels.shape[2:]) not in ((2,), (3, 3), (3, 4)):
        raise ValueError(f"an array of shape {pixels.shape}; expected (height, width) with 1, 3 or 4 channels last")
    stream = BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
