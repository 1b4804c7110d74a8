"""Drawings in the form of the bundled data set: centered white lines on black, one pixel wide, 28x28."""

import numpy as np
import PIL.Image

from .decoding import as_rgb

SIDE = 28
INVERTED = "looks inverted: dark on light, but the model was trained on white lines on black"
TOLERANCE = 2 / 255  # of the drawing's longer side, as Quick, Draw! simplified its strokes


def draw(strokes: list[list[tuple[float, float]]]) -> PIL.Image.Image | None:
    """The image (28x28, mode L) of a drawing of any position and size; None if nothing is drawn.

    As in Quick, Draw!, the longer side of the drawing is scaled to fill the square, and the strokes are simplified
    (Ramer-Douglas-Peucker); then they are drawn with anti-aliased lines (Wu).

    Args:
        strokes: points (x, y) of each stroke, y downwards.
    """
    lines = [np.array(stroke, np.float64).reshape(-1, 2) for stroke in strokes if len(stroke)]
    if not lines:
        return None
    points = np.concatenate(lines)
    low, extent = points.min(0), np.ptp(points, axis=0).max() or 1.0
    canvas = np.zeros((SIDE, SIDE))
    for line in lines:
        corners = _simplify((line - low) / extent) * (SIDE - 1)
        for start, end in zip(corners[:-1], corners[1:], strict=True):
            _line(canvas, start, end)
        for x, y in np.rint(corners[1:-1] if len(corners) > 2 else corners[:1]).astype(int):
            canvas[y, x] = 1
    return PIL.Image.fromarray(np.rint(255 * centre(canvas)).astype(np.uint8))


def as_drawing(image: PIL.Image.Image) -> PIL.Image.Image | None:
    """The drawing (28x28, mode L) in an image, dark on light or light on dark; None if the image is blank.

    Pixels that differ clearly from the brightness of the border are ink. Lines keep their width.
    """
    grey = np.asarray(as_rgb(image).convert("L"))
    border = _border(grey)
    levels = np.arange(256.0)  # a table by level: floats for each pixel of a large image would take gigabytes
    ink_of = border - levels if border > 127 else levels - border
    inked = (ink_of > 0.25 * 255)[grey]
    if not inked.any():
        return None
    rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
    ink_of = ink_of.clip(0).astype(np.float32)
    if grey.shape == (SIDE, SIDE):
        ink = ink_of[grey]
    else:
        ink = ink_of[grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]]
        scale = SIDE / max(ink.shape)
        size = [max(round(scale * side), 1) for side in reversed(ink.shape)]
        part = PIL.Image.fromarray(ink).resize(size, PIL.Image.Resampling.BOX)
        ink = np.zeros((SIDE, SIDE))
        ink[: part.height, : part.width] = np.asarray(part)
        ink = centre(ink) * 255 / ink.max()
    return PIL.Image.fromarray(np.rint(ink.clip(0, 255)).astype(np.uint8))


def looks_inverted(image: PIL.Image.Image) -> bool:
    """Whether the background of a drawing is light, unlike that of the bundled drawings.

    Nothing is inverted without being asked for: a pipeline could not do the same.
    """
    return bool(_border(np.asarray(as_rgb(image).convert("L"))) > 127)


def _border(grey: np.ndarray) -> float:
    """Median brightness along the border of an image (H, W)."""
    return float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))


def centre(drawing: np.ndarray) -> np.ndarray:
    """Moves the bounding box of the ink to the middle of the square, by whole pixels."""
    centred = drawing
    for axis in (0, 1):
        inked = np.flatnonzero(drawing.any(axis=1 - axis))
        if inked.size:
            centred = np.roll(centred, (drawing.shape[axis] - 1 - inked[-1] - inked[0]) // 2, axis)
    return centred


def _simplify(line: np.ndarray) -> np.ndarray:
    """The points (n, 2) of a line that are needed to keep it within the tolerance."""
    if len(line) < 3:
        return line
    direction = line[-1] - line[0]
    length, offset = np.hypot(*direction), line - line[0]
    if length:
        distance = np.abs(direction[0] * offset[:, 1] - direction[1] * offset[:, 0]) / length
    else:
        distance = np.hypot(*offset.T)
    far = int(distance.argmax())
    if distance[far] <= TOLERANCE:
        return line[[0, -1]]
    return np.concatenate([_simplify(line[: far + 1])[:-1], _simplify(line[far:])])


def _line(canvas: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
    """Draws a line with full coverage at every step along its longer axis; the brighter of two lines prevails."""
    steep = abs(end[1] - start[1]) > abs(end[0] - start[0])
    pixels = canvas if steep else canvas.T  # [along, across]
    (from_along, from_across), (to_along, to_across) = (p[::-1] if steep else p for p in (start, end))
    first, last = sorted((round(from_along), round(to_along)))
    for along in range(first, last + 1):
        share = (along - from_along) / (to_along - from_along) if to_along != from_along else 0.0
        across = np.clip(from_across + min(max(share, 0), 1) * (to_across - from_across), 0, SIDE - 1)
        low = int(across)
        rest = across - low
        pixels[along, low] = max(pixels[along, low], 1 - rest)
        if rest:
            pixels[along, low + 1] = max(pixels[along, low + 1], rest)
