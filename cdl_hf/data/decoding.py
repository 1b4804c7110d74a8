"""Stored images as PIL images, the same for the check before training and for training."""

from io import BytesIO

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
from datasets import Image
from datasets.utils.file_utils import is_local_path


def decode(image: dict) -> PIL.Image.Image:
    """An image of a data set's rows, {"bytes", "path"}, upright, as mode RGB, or L where it is grey.

    All modes become what `convert("RGB")` makes of them, which is also what transformers' pipelines see: transparency
    is dropped, CMYK converted. The one exception are 16-bit grey images, which Pillow would clip to white: they are
    scaled, 65535 being white. To show a pipeline such a file, open it with `open_image`.

    An upright JPEG is left to be decoded when its pixels are asked for: in training, not all of them may be needed.

    Raises:
        OSError, ValueError and others that Pillow raises: the image cannot be read.
    """
    opened = _open(image)
    if opened.format == "JPEG" and opened.mode in ("L", "RGB") and _orientation(opened) in (None, 1):
        return opened
    opened.load()
    return _eight_bits(opened if _orientation(opened) is None else PIL.ImageOps.exif_transpose(opened))


def open_image(path: str) -> PIL.Image.Image:
    """An image file as training and test see it."""
    image = decode({"path": str(path), "bytes": None})
    image.load()
    return image


def _open(image: dict) -> PIL.Image.Image:
    if image["bytes"] is not None:
        return PIL.Image.open(BytesIO(image["bytes"]))
    if is_local_path(image["path"]):
        return PIL.Image.open(image["path"])
    return Image().decode_example(image)  # on the Hub, or in an archive


def _orientation(image: PIL.Image.Image) -> int | None:
    return image.getexif().get(PIL.ExifTags.Base.Orientation)


def _eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's I holds what a file of more than 8 bits held; beyond 16 bits there is no usual scale
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
