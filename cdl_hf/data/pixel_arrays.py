"""Columns of pixel values as columns of images."""

from io import BytesIO

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Array2D, Array3D, Dataset, Image, LargeList, List


def is_array(feature) -> bool:
    """Whether a column holds pixel values: (height, width) or (height, width, channels) of each image."""
    return isinstance(feature, List | LargeList | Array2D | Array3D)


def encode_arrays(dataset: Dataset, column: str) -> Dataset:
    """The data set with the arrays of a column as PNG files; `datasets` itself would cut values to their lower 8 bits.

    Values are 8-bit ones if that is their type, or if those of all images are whole and from 0 to 255.

    Raises:
        ValueError: They are not, or an array has not the shape of an image.
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
