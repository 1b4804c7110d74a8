"""What a visitor has drawn or uploaded, as the models see it, or the reason why they do not see it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..data import open_image
from ..data.decoding import DECODING_ERRORS, as_rgb, decoding_problem
from ..data.sketch import INVERTED, as_drawing, draw, looks_inverted
from ..data.transforms import EvalTransform

MAX_BYTES = 20_000_000  # of an uploaded file
SMALLEST = 8  # pixels of a side
CONTRAST = 8  # of 255, between the darkest and the brightest pixel


@dataclass(frozen=True)
class Input:
    """An image for the models; without pixels, `problem` says in a sentence why there are none.

    Args:
        pixels: uint8 (3, H, W), resized and cropped as for the models.
        warning: What makes the predictions unreliable, in a sentence.
        as_drawing: The same image inverted where it is dark on light, cropped and centered, if the models were trained
            on drawings and that changes it.
    """

    pixels: Tensor | None = None
    problem: str = ""
    warning: str = ""
    as_drawing: "Input | None" = None


def from_strokes(strokes: Sequence[Sequence[tuple[float, float]]], transform: EvalTransform) -> Input | None:
    """A drawing in the form of the bundled ones; None if nothing is drawn."""
    image = draw([list(stroke) for stroke in strokes])
    return None if image is None else Input(transform.pixels(image))


def from_file(path: str, transform: EvalTransform, takes_drawings: bool) -> Input:
    """An image file, decoded as in training: neither inverted nor cropped unless a visitor asks for it."""
    try:
        if not os.path.getsize(path):
            return Input(problem="The file is empty.")
        image = open_image(path)
    except DECODING_ERRORS as error:
        return Input(problem=f"This file cannot be opened as an image: {decoding_problem(error)}.")
    width, height = image.size
    grey = np.asarray(as_rgb(image).convert("L"))
    if min(width, height) < SMALLEST:
        return Input(problem=f"There is nothing to see on it: the image has only {width} x {height} pixels.")
    if int(grey.max()) - int(grey.min()) < CONTRAST:
        return Input(problem="There is nothing to see on it: all pixels of the image are nearly the same.")
    pixels = transform.pixels(image)
    if not takes_drawings:
        return Input(pixels)
    warning = f"This image {INVERTED}." if looks_inverted(image) else ""
    drawing = as_drawing(image)
    if drawing is None or (drawing.size == image.size and np.array_equal(np.asarray(drawing), grey)):
        return Input(pixels, warning=warning)
    return Input(pixels, warning=warning, as_drawing=Input(transform.pixels(drawing)))
