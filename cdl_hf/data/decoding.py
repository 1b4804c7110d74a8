"""Decoding of stored images to PIL images, and the check for images that cannot be decoded."""

import hashlib
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
from datasets import Dataset
from datasets.utils import tqdm
from datasets.utils.file_utils import is_local_path, xopen
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..utils import num_cores
from .cache import cache_file, one_at_a_time, write_cache
from .views import image_paths, in_files

# Raster formats that Pillow decodes itself, with a size that is known before. Excluded are EPS, which needs
# Ghostscript, and icons (ICO, ICNS), whose images may be larger than their header says.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # a quarter of a GiB as RGB; Pillow warns above this limit
# Cameras and scanners produce 10, 12 or 14 bits, which many programs store in 16 bits unscaled. If all values are
# below this one, the image may be dark or have fewer bits.
SURELY_16_BITS = 2**14

_TIFF = PIL.ExifTags.Base
_WHITE_IS_ZERO = 0  # a photometric interpretation of TIFF
_SIGNED = 2  # a sample format of TIFF
_USUAL_WHITES = [2**bits - 1 for bits in range(8, 32)]
_REMEDY = "store it with 8 bits, or scaled to 0 ... 65,535"


class UnreadableImageError(ValueError):
    """An image that is too large to be decoded, or whose values have an ambiguous scale."""


def decode(image: dict) -> PIL.Image.Image:
    """A stored image {"bytes", "path"} as an upright PIL image of mode RGB, or L if it is grayscale.

    Only the first frame is decoded; modes are converted as in [`as_rgb`]. In addition, a file can define the value of
    white: TIFF by 12 bits per value, by a tag MaxSampleValue or SMaxSampleValue of `2**bits - 1`, or as zero; PGM and
    PPM by any maximum except 65,535, which many programs write for any number of bits.

    An upright JPEG is decoded only when its pixels are read, as training may need only part of them.

    Raises:
        UnreadableImageError: it has more than `MAX_PIXELS` pixels, or its values have an ambiguous scale.
        OSError, ValueError and others that Pillow raises: it is damaged, or not in one of the `FORMATS`.
    """
    opened = _open(image)
    if opened.format == "JPEG" and opened.mode in ("L", "RGB") and _orientation(opened) in (None, 1):
        return opened
    arguments = _decoder_arguments(opened)  # not available after decoding
    white = _stated_white(opened, arguments)
    if opened.format == "TIFF":
        _check_layout(opened, arguments)
    opened.load()
    if opened.format == "PNG" and "transparency" in opened.info:
        opened.info["transparency"] = _transparency(opened, arguments)
    if opened.mode in ("RGB", "RGBA") and _had_16_bits(opened, arguments):
        extrema = cast(tuple[tuple[int, int], ...], opened.getextrema())  # of each channel
        _check_span(max(high for _, high in extrema) << 8)
    if opened.mode == "I" and arguments[:1] == ("I;16B",):  # as of PGM
        opened = opened.convert("I;16")
    upright = opened if _orientation(opened) is None else PIL.ImageOps.exif_transpose(opened)
    if not _is_deep(upright):
        return as_rgb(upright)
    grey = _scale(upright, white)
    is_negative = opened.format == "TIFF" and _tag(opened, _TIFF.PhotometricInterpretation) == _WHITE_IS_ZERO
    return PIL.ImageOps.invert(grey) if is_negative else grey


def open_image(path: str) -> PIL.Image.Image:
    """An image file, decoded as in training and evaluation.

    Raises:
        OSError, ValueError and others: as in [`decode`].
    """
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would block
        raise UnreadableImageError("not a regular file")
    image = decode({"path": str(path), "bytes": None})
    image.load()
    return image


def as_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in mode RGB, or L if it is grayscale.

    Transparency (an alpha channel or a transparent color) is composited on white. 16-bit values are scaled with 65,535
    as white. All other modes are converted with `convert("RGB")`.

    Raises:
        UnreadableImageError: the scale of its values is ambiguous: floats, 32-bit integers, or 16-bit integers that
            are all below 2**14.
    """
    if _is_deep(image):
        return _scale(image, None)
    if not image.has_transparency_data:
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    image = image.convert("LA") if image.mode == "La" else image  # the only conversion of La in Pillow
    white = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _open(image: dict) -> PIL.Image.Image:
    """Opens an image and checks that it is not too large to be decoded."""
    path, content = image["path"], image["bytes"]
    if content is None and not is_local_path(path):  # on the Hub, or in an archive
        with xopen(path, "rb") as file:
            content = file.read()
    opened = PIL.Image.open(path if content is None else BytesIO(content), formats=FORMATS)
    sizes = [opened.size]
    if opened.format == "TIFF":  # its tiles may be larger than the image
        sizes.append((int(_tag(opened, _TIFF.TileWidth) or 0), int(_tag(opened, _TIFF.TileLength) or 0)))
    for width, height in sizes:
        if width * height > MAX_PIXELS:
            raise UnreadableImageError(f"{width:,} x {height:,} pixels, more than the limit of {MAX_PIXELS:,}")
    return opened


def _orientation(image: PIL.Image.Image) -> int | None:
    return image.getexif().get(PIL.ExifTags.Base.Orientation)


def _tag(image: PIL.Image.Image, tag: PIL.ExifTags.Base) -> int | float | None:
    """The first value of a tag of a TIFF file."""
    value: Any = cast(TiffImageFile, image).tag_v2.get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _decoder_arguments(opened: PIL.Image.Image) -> tuple:
    """Arguments of the decoder, such as ("RGB;16B",): the only record of how the values are stored."""
    tiles = cast(ImageFile, opened).tile
    arguments = tiles[0].args if tiles else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _is_deep(image: PIL.Image.Image) -> bool:
    """Whether Pillow holds more than 8 bits per value, which it does only for grayscale images."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _had_16_bits(opened: PIL.Image.Image, arguments: tuple) -> bool:
    """Whether Pillow has kept the upper 8 of 16 bits."""
    if opened.format == "TIFF":
        return _tag(opened, _TIFF.BitsPerSample) == 16
    return arguments == ("RGB", 65535) or any(isinstance(each, str) and ";16" in each for each in arguments)


def _stated_white(opened: PIL.Image.Image, arguments: tuple) -> float | None:
    """The value of white (of black if white is zero), if the file defines it."""
    if opened.format == "PPM" and opened.mode == "I":
        return None if arguments[-1] == "I;16B" else 65535  # scaled by Pillow
    if opened.format != "TIFF":
        return None
    if arguments[:1] == ("I;12",):
        return 4095
    # often only the largest value of this image, so only usual white values count
    stated = _tag(opened, _TIFF.MaxSampleValue) or _tag(opened, _TIFF.SMaxSampleValue)
    return stated if stated in _USUAL_WHITES or (opened.mode == "F" and stated == 1) else None


def _check_layout(tiff: PIL.Image.Image, arguments: tuple) -> None:
    """Refuses files that Pillow decodes incorrectly."""
    if _tag(tiff, _TIFF.SampleFormat) == _SIGNED and tiff.mode == "L":
        raise UnreadableImageError(f"signed values, so the value of white is ambiguous; {_REMEDY}")
    if _tag(tiff, _TIFF.BitsPerSample) == 16 and len(arguments[0]) == 1:
        raise UnreadableImageError("a TIFF file with 16-bit colors in separate planes; store it with 8 bits")


def _transparency(png: PIL.Image.Image, arguments: tuple) -> int | tuple[int, ...] | bytes:
    """The transparent color of a PNG file, converted from the scale of the file to that of Pillow's pixels."""
    color = png.info["transparency"]
    if png.mode == "L" and isinstance(color, int):
        return color * {"L;2": 85, "L;4": 17}.get(arguments[0], 1)
    if png.mode == "RGB" and arguments[0] == "RGB;16B":
        return tuple(value >> 8 for value in color)
    return color


def _check_span(largest: int) -> None:
    if largest < SURELY_16_BITS:
        raise UnreadableImageError(
            f"16-bit values of at most {largest:,}: either fewer bits or a dark image; {_REMEDY}"
        )


def _scale(image: PIL.Image.Image, white: float | None) -> PIL.Image.Image:
    """An image of more than 8 bits in mode L, with `white` scaled to 255."""
    values = np.asarray(image)
    largest = values.max()
    if white is None:
        if image.mode in ("I", "F"):
            kind = "floats" if image.mode == "F" else "32-bit or signed integers"
            raise UnreadableImageError(f"values are {kind}, so the value of white is ambiguous; {_REMEDY}")
        if largest:  # otherwise it is black on any scale
            _check_span(int(largest))
        white = 65535
    if not 0 <= values.min() <= largest <= white:  # nor NaN
        raise UnreadableImageError(f"values from {values.min():,} to {largest:,}, but white is {white:,}")
    if values.dtype.kind == "f" or white > 65535:
        grey = np.rint(values * (255 / white)).astype(np.uint8)
    else:
        grey = ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return PIL.Image.fromarray(grey)


# Errors that Pillow raises for files that are damaged or not images.
DECODING_ERRORS = (
    OSError,  # PIL.UnidentifiedImageError among them
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    NotImplementedError,  # Pillow's, for a format's feature that it cannot read
    struct.error,
    zlib.error,
    PIL.Image.DecompressionBombError,
    PIL.Image.DecompressionBombWarning,  # if warnings are errors
)
MIN_FOR_PROGRESS_BAR = 500  # number of images to check


def find_unreadable(dataset: Dataset, what: str) -> dict[int, str]:
    """Rows whose `image` cannot be decoded, each with the reason.

    Every image is decoded once, on all cores. Readable images are recorded in the cache folder of `datasets` by path,
    size and time of their files. One process checks, and the others wait for its result. Unreadable images are checked
    again at the next start, as the cause may be outside the file, such as a missing permission.

    Args:
        dataset: data set with a column `image`.
        what: name of the data set and the column, under which readable images are recorded.
    """
    rows = dataset.select_columns(["image"]).with_format("arrow")
    identities = _identities(dataset, what)
    if identities is None:
        return _check(rows, np.arange(len(dataset)))
    file = cache_file("readable_images", f"{hashlib.sha256(what.encode()).hexdigest()[:24]}.npy")
    with one_at_a_time(file, f"check the images of {what}"):
        known = _read(file)
        new = np.flatnonzero(~np.isin(identities, known))
        unreadable = _check(rows, new)
        if len(unreadable) < len(new):
            write_cache(file, _as_npy(np.union1d(known, np.delete(identities, list(unreadable)))))
    return unreadable


def _read(file: Path) -> np.ndarray:
    """Identities, (n,); none if the file is not exactly as [`_as_npy`] writes it."""
    try:
        content = file.read_bytes()
    except OSError:
        return np.empty(0, np.uint64)
    start = len(_as_npy(np.empty(0, np.uint64)))
    identities = np.frombuffer(content[start : len(content) - (len(content) - start) % 8], np.uint64)
    return identities if _as_npy(identities) == content else np.empty(0, np.uint64)


def _as_npy(identities: np.ndarray) -> bytes:
    stream = BytesIO()
    np.save(stream, identities)
    return stream.getvalue()


def _check(rows: Dataset, wanted: np.ndarray) -> dict[int, str]:
    """Those of the `wanted` rows that cannot be read, in order, each with the reason."""
    parts = [wanted[start : start + 64].tolist() for start in range(0, len(wanted), 64)]

    def reasons(part: list[int]) -> dict[int, str]:
        images = rows[part]["image"].to_pylist()
        return {row: reason for row, image in zip(part, images, strict=True) if (reason := _reason(image))}

    # Threads are enough: Pillow releases the GIL while it decodes. Spawned processes would run the user's script
    # again, and without a guard for `__main__` they would come here too and wait for this process.
    pool, unreadable = ThreadPoolExecutor(num_cores()), dict[int, str]()
    try:
        title = "Checking that images can be read"
        with tqdm(desc=title, total=len(wanted), disable=len(wanted) < MIN_FOR_PROGRESS_BAR) as progress:
            for part, found in zip(parts, pool.map(reasons, parts), strict=True):
                unreadable |= found
                progress.update(len(part))
    finally:
        pool.shutdown(cancel_futures=True)  # after an interruption, parts that have not started are dropped
    return unreadable


def _reason(image: dict | None) -> str | None:
    """Why an image cannot be read; None if it can."""
    if image is None or (image["bytes"] is None and image["path"] is None):
        return "no image"
    try:
        if image["bytes"] is None:
            if not os.path.exists(image["path"]):
                return "a broken link" if os.path.islink(image["path"]) else "no such file"
            if not os.path.getsize(image["path"]):
                return "empty"
        elif not image["bytes"]:
            return "empty"
        decode(image).load()
    except DECODING_ERRORS as error:
        return decoding_problem(error)
    return None


def decoding_problem(error: Exception) -> str:
    """Reason that an image cannot be read, from one of [`DECODING_ERRORS`]."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image, or in a format that is not supported"
    if isinstance(error, PIL.Image.DecompressionBombError):
        return f"more pixels than the limit of {MAX_PIXELS:,}"
    if isinstance(error, UnreadableImageError):
        return str(error)
    return (error.strerror or str(error)) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def _identities(dataset: Dataset, what: str) -> np.ndarray | None:
    """64-bit identity of each image, (n,), which changes with its file; None if the images are not in files."""
    in_file = in_files(dataset)
    if not in_file.all() and not dataset.cache_files:
        return None
    tables = [(file["filename"], *_size_and_time(file["filename"])) for file in dataset.cache_files]
    numbers = np.arange(len(dataset)) if dataset._indices is None else dataset._indices.column(0).to_numpy()
    identities = numbers.astype(np.uint64) + np.uint64(_hash(what, tables))  # wraps around
    rows = np.flatnonzero(in_file)
    for row, path in zip(rows, image_paths(dataset).take(rows).to_pylist(), strict=True):
        identities[row] = _hash(path, *_size_and_time(path))
    return identities


def _size_and_time(path: str | None) -> tuple[int, int]:
    try:
        found = os.stat(path or "")
    except OSError:  # such as a broken link, which the check reports
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _hash(*values) -> int:
    return int.from_bytes(hashlib.blake2b(repr(values).encode("utf-8", "surrogateescape"), digest_size=8).digest())
