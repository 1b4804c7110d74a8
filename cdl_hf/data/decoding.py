"""Stored images as PIL images, and the search for those that cannot be decoded."""

import hashlib
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
from datasets import Dataset
from datasets.utils import tqdm
from datasets.utils.file_utils import is_local_path, xopen

from ..utils import num_cores
from .cache import cache_file, one_at_a_time, write_cache
from .views import image_paths, in_files

# Raster formats that Pillow decodes by itself, at the size that it tells before. Left out are EPS, which Pillow hands
# to Ghostscript, and icons (ICO, ICNS), whose images may be of another size than their header says.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # a quarter of a GiB as RGB; Pillow's own bound, beyond which it warns
# Cameras and scanners have 10, 12 or 14 bits, which many programs store in 16 as they are. Where all values are below
# this one, an image may be a dark one or one of fewer bits.
SURELY_16_BITS = 2**14

_TIFF = PIL.ExifTags.Base
_WHITE_IS_ZERO = 0  # a photometric interpretation of TIFF
_SIGNED = 2  # a sample format of TIFF
_USUAL_WHITES = [2**bits - 1 for bits in range(8, 32)]
_REMEDY = "store it with 8 bits, or scaled to 0 ... 65,535"


class UnreadableImageError(ValueError):
    """An image that is too large to be decoded, or whose values have no certain scale."""


def decode(image: dict) -> PIL.Image.Image:
    """An image of a data set's rows, {"bytes", "path"}, upright, as mode RGB, or L where it is grey.

    The first frame, as [`as_rgb`] shows it. Beyond that, a file can state which of its values is white: TIFF by 12
    bits a value, by a tag MaxSampleValue or SMaxSampleValue of `2**bits - 1`, or as zero; PGM and PPM by any maximum
    other than 65,535, which many programs write whatever the image's bits.

    An upright JPEG is left to be decoded when its pixels are asked for: in training, not all of them may be needed.

    Raises:
        UnreadableImageError: It has more than `MAX_PIXELS` pixels, or its values have no certain scale.
        OSError, ValueError and others that Pillow raises: It is damaged, or of none of the `FORMATS`.
    """
    opened = _open(image)
    if opened.format == "JPEG" and opened.mode in ("L", "RGB") and _orientation(opened) in (None, 1):
        return opened
    arguments = _decoder_arguments(opened)  # gone once it is decoded
    white = _stated_white(opened, arguments)
    if opened.format == "TIFF":
        _check_layout(opened, arguments)
    opened.load()
    if opened.format == "PNG" and "transparency" in opened.info:
        opened.info["transparency"] = _transparency(opened, arguments)
    if opened.mode in ("RGB", "RGBA") and _had_16_bits(opened, arguments):
        _check_span(max(high for _, high in opened.getextrema()) << 8)
    if opened.mode == "I" and arguments[:1] == ("I;16B",):  # as of PGM
        opened = opened.convert("I;16")
    upright = opened if _orientation(opened) is None else PIL.ImageOps.exif_transpose(opened)
    if not _is_deep(upright):
        return as_rgb(upright)
    grey = _scale(upright, white)
    is_negative = opened.format == "TIFF" and _tag(opened, _TIFF.PhotometricInterpretation) == _WHITE_IS_ZERO
    return PIL.ImageOps.invert(grey) if is_negative else grey


def open_image(path: str) -> PIL.Image.Image:
    """An image file as training and test see it.

    Raises:
        OSError, ValueError and others: As [`decode`] raises them.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise UnreadableImageError("no regular file")
    image = decode({"path": str(path), "bytes": None})
    image.load()
    return image


def as_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image as mode RGB, or L where it is grey.

    Transparency is composited on white, be it an alpha channel or a transparent color. 16-bit values are scaled,
    65,535 being white. All other modes become what `convert("RGB")` makes of them.

    Raises:
        UnreadableImageError: Its values have no certain scale: floats, 32-bit integers, and 16-bit ones below 2**14.
    """
    if _is_deep(image):
        return _scale(image, None)
    if not image.has_transparency_data:
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    image = image.convert("LA") if image.mode == "La" else image  # Pillow converts La to nothing else
    white = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _open(image: dict) -> PIL.Image.Image:
    """The file of an image that is small enough to be decoded."""
    path, content = image["path"], image["bytes"]
    if content is None and not is_local_path(path):  # on the Hub, or in an archive
        with xopen(path, "rb") as file:
            content = file.read()
    opened = PIL.Image.open(path if content is None else BytesIO(content), formats=FORMATS)
    sizes = [opened.size]
    if opened.format == "TIFF":  # whose tiles may be larger than the image
        sizes.append((_tag(opened, _TIFF.TileWidth) or 0, _tag(opened, _TIFF.TileLength) or 0))
    for width, height in sizes:
        if width * height > MAX_PIXELS:
            raise UnreadableImageError(f"{width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read")
    return opened


def _orientation(image: PIL.Image.Image) -> int | None:
    return image.getexif().get(PIL.ExifTags.Base.Orientation)


def _tag(image: PIL.Image.Image, tag: PIL.ExifTags.Base) -> int | float | None:
    """The first value of a tag of a TIFF file."""
    value = image.tag_v2.get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _decoder_arguments(opened: PIL.Image.Image) -> tuple:
    """What the decoder is told, ("RGB;16B",) for instance: the only trace of how the values are stored."""
    arguments = opened.tile[0].args if opened.tile else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _is_deep(image: PIL.Image.Image) -> bool:
    """Whether Pillow holds more than 8 bits a value, as it does of grey images only."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _had_16_bits(opened: PIL.Image.Image, arguments: tuple) -> bool:
    """Whether Pillow has taken the upper 8 of 16 bits."""
    if opened.format == "TIFF":
        return _tag(opened, _TIFF.BitsPerSample) == 16
    return arguments == ("RGB", 65535) or any(isinstance(each, str) and ";16" in each for each in arguments)


def _stated_white(opened: PIL.Image.Image, arguments: tuple) -> int | None:
    """The value for white (for black where white is zero), if the file states it."""
    if opened.format == "PPM" and opened.mode == "I":
        return None if arguments[-1] == "I;16B" else 65535  # scaled by Pillow
    if opened.format != "TIFF":
        return None
    if arguments[:1] == ("I;12",):
        return 4095
    # often only the largest value of this image: what is no usual white says nothing
    stated = _tag(opened, _TIFF.MaxSampleValue) or _tag(opened, _TIFF.SMaxSampleValue)
    return stated if stated in _USUAL_WHITES or (opened.mode == "F" and stated == 1) else None


def _check_layout(tiff: PIL.Image.Image, arguments: tuple) -> None:
    """Refuses what Pillow reads, but not rightly."""
    if _tag(tiff, _TIFF.SampleFormat) == _SIGNED and tiff.mode == "L":
        raise UnreadableImageError(f"its values are signed, whose white is not certain; {_REMEDY}")
    if _tag(tiff, _TIFF.BitsPerSample) == 16 and len(arguments[0]) == 1:
        raise UnreadableImageError("a TIFF file with 16-bit colors one after the other; store it with 8 bits")


def _transparency(png: PIL.Image.Image, arguments: tuple) -> int | tuple[int, ...] | bytes:
    """The transparent color of a PNG file on the scale of Pillow's pixels; in the file it has that of the file's."""
    color = png.info["transparency"]
    if png.mode == "L" and isinstance(color, int):
        return color * {"L;2": 85, "L;4": 17}.get(arguments[0], 1)
    if png.mode == "RGB" and arguments[0] == "RGB;16B":
        return tuple(value >> 8 for value in color)
    return color


def _check_span(largest: int) -> None:
    if largest < SURELY_16_BITS:
        raise UnreadableImageError(
            f"16-bit values of at most {largest:,}, which may be those of fewer bits or a dark image; {_REMEDY}"
        )


def _scale(image: PIL.Image.Image, white: int | None) -> PIL.Image.Image:
    """An image of more than 8 bits as mode L, `white` becoming 255."""
    values = np.asarray(image)
    largest = values.max()
    if white is None:
        if image.mode in ("I", "F"):
            kind = "floats" if image.mode == "F" else "32-bit or signed integers"
            raise UnreadableImageError(f"its values are {kind}, whose white is not certain; {_REMEDY}")
        if largest:  # else it is black on any scale
            _check_span(int(largest))
        white = 65535
    if not 0 <= values.min() <= largest <= white:  # nor NaN
        raise UnreadableImageError(f"values of {values.min():,} to {largest:,}, though its white is {white:,}")
    if values.dtype.kind == "f" or white > 65535:
        grey = np.rint(values * (255 / white)).astype(np.uint8)
    else:
        grey = ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return PIL.Image.fromarray(grey)


# What Pillow is known to raise on files that are damaged, or no images at all.
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
    NotImplementedError,
    struct.error,
    zlib.error,
    PIL.Image.DecompressionBombError,
    PIL.Image.DecompressionBombWarning,  # where warnings are errors
)
MIN_FOR_PROGRESS_BAR = 500  # images that are checked too soon for a progress bar


def find_unreadable(dataset: Dataset, what: str) -> dict[int, str]:
    """The rows whose `image` cannot be decoded, each with the reason.

    Every image is decoded once, on all cores. Which ones could be is kept in the cache folder of `datasets`, by path,
    size and time of the files; of several processes one looks, and the others wait for what it finds. Those that could
    not be are tried again the next time: a missing right, say, leaves no trace in a file.

    Args:
        dataset: with a column `image`.
        what: names the data set and the column; what was read of the same `what` before is remembered.
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
    """Identities, (n,); none of a file that is not exactly what [`_as_npy`] writes."""
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
    """The wanted rows that cannot be read, each with the reason, in their order."""
    parts = [wanted[start : start + 64].tolist() for start in range(0, len(wanted), 64)]

    def reasons(part: list[int]) -> dict[int, str]:
        images = rows[part]["image"].to_pylist()
        return {row: reason for row, image in zip(part, images, strict=True) if (reason := _reason(image))}

    # Threads: Pillow releases the interpreter's lock while it decodes. Where processes are spawned, each runs the
    # user's script again; without a guard for `__main__` that would come here a second time, and wait for this one.
    pool, unreadable = ThreadPoolExecutor(num_cores()), {}
    try:
        title = "Looking for images that cannot be read"
        with tqdm(desc=title, total=len(wanted), disable=len(wanted) < MIN_FOR_PROGRESS_BAR) as progress:
            for part, found in zip(parts, pool.map(reasons, parts), strict=True):
                unreadable |= found
                progress.update(len(part))
    finally:
        pool.shutdown(cancel_futures=True)  # what has not begun is left out after an interruption
    return unreadable


def _reason(image: dict | None) -> str | None:
    """Why the image cannot be read; None if it can."""
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
    """Why an image cannot be read, from one of [`DECODING_ERRORS`]."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image, or of a kind that Pillow does not read"
    if isinstance(error, UnreadableImageError):
        return str(error)
    return (error.strerror or str(error)) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def _identities(dataset: Dataset, what: str) -> np.ndarray | None:
    """64 bits for each image that change when it does, (n,); None if it is in no file."""
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
    except OSError:  # such as a broken link: the check will tell
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _hash(*values) -> int:
    return int.from_bytes(hashlib.blake2b(repr(values).encode("utf-8", "surrogateescape"), digest_size=8).digest())
