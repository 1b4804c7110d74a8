"""Stored images as PIL images, the same for the check before training and for training."""

import numpy as np
import PIL.Image
from datasets import Image

_AS_STORED = Image()


def decode(image: dict) -> PIL.Image.Image:
    """An image of a data set's rows, {"bytes", "path"}, upright, as mode RGB, or L where it is grey.

    All modes become what `convert("RGB")` makes of them, which is also what transformers' pipelines see: transparency
    is dropped, CMYK converted. The one exception are 16-bit grey images, which Pillow would clip to white: they are
    scaled, 65535 being white. To show a pipeline such a file, open it with `open_image`.

    Raises:
        OSError, ValueError and others that Pillow raises: the image cannot be read.
    """
    return _eight_bits(_AS_STORED.decode_example(image))


def open_image(path: str) -> PIL.Image.Image:
    """An image file as training and test see it."""
    return decode({"path": str(path), "bytes": None})


def _eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's I holds what a file of more than 8 bits held; beyond 16 bits there is no usual scale
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
