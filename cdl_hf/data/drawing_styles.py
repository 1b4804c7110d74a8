"""Styles of the bundled drawings, made on the fly: domains of an example that needs no further files."""

from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageFilter
import PIL.ImageOps
import pyarrow as pa
from datasets import ClassLabel, Dataset, Image

from .decoding import decode
from .domains import DOMAIN
from .labels import read_labels

STYLE = "style"  # name of the column
STYLES: dict[str, Callable[[PIL.Image.Image], PIL.Image.Image]] = {
    "drawn": lambda image: image,
    "rotated": lambda image: image.transpose(PIL.Image.Transpose.ROTATE_90),
    "thickened": lambda image: image.filter(PIL.ImageFilter.MaxFilter(3)),
    "inverted": PIL.ImageOps.invert,
}


def with_styles(dataset: Dataset) -> Dataset:
    """The drawings with a column `domain`: the images of each class take the styles in turn, in their order.

    So each drawing has one style, and there are as many images as before. They are stored as PGM, whose bytes do not
    depend on the version of an encoder, so that they have the same digests everywhere.
    """
    labels = read_labels(dataset)
    order = np.argsort(labels, kind="stable")
    firsts = np.searchsorted(labels[order], labels[order])
    styles = np.empty(len(labels), np.int64)
    styles[order] = (np.arange(len(labels)) - firsts) % len(STYLES)
    drawings = dataset.with_format("arrow", columns=["image"])["image"][:].to_pylist()
    changes = list(STYLES.values())
    files = [_pgm(changes[style](decode(image).convert("L"))) for style, image in zip(styles, drawings, strict=True)]
    images = pa.StructArray.from_arrays(
        [pa.array(files, pa.binary()), pa.nulls(len(files), pa.string())], ["bytes", "path"]
    )
    dataset = dataset.remove_columns("image").add_column("image", images, feature=Image(mode="RGB"))
    return dataset.add_column(DOMAIN, styles, feature=ClassLabel(names=list(STYLES)))


def _pgm(image: PIL.Image.Image) -> bytes:
    return b"P5 %d %d 255\n" % image.size + image.tobytes()
