"""What becomes of the values and the transparency of stored images, and what is refused before it is decoded."""

import struct
import zlib
from io import BytesIO

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from tiny_data import noise
from transformers.image_utils import load_image

from cdl_hf.data import eval_transform, image_processor_for, open_image, train_transform
from cdl_hf.data.decoding import MAX_PIXELS, UnreadableImageError, decode

RAMP = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_not_clipped(tmp_path, suffix):
    PIL.Image.fromarray(RAMP).save(tmp_path / f"ramp.{suffix}")
    image = open_image(tmp_path / f"ramp.{suffix}")
    assert image.mode == "L" and np.asarray(image).ravel().tolist() == list(range(256))
    assert (np.asarray(load_image(str(tmp_path / f"ramp.{suffix}"))) == 255).mean() > 0.9, "what Pillow makes of it"


def test_big_endian_16_bits(tmp_path):
    PIL.Image.frombytes("I;16B", (16, 16), RAMP.astype(">u2").tobytes()).save(tmp_path / "ramp.tif")
    assert np.asarray(open_image(tmp_path / "ramp.tif")).ravel().tolist() == list(range(256))


def test_16_bits_with_an_orientation(tmp_path):
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    PIL.Image.fromarray(RAMP).save(tmp_path / "ramp.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "ramp.png")), np.rot90(np.arange(256).reshape(16, 16), -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_an_opened_image_is_what_the_processor_is_given(tmp_path, mode):
    path = tmp_path / f"image.{'jpg' if mode == 'CMYK' else 'png'}"
    noise(2, (30, 20), "RGBA").convert(mode).save(path)
    processor = image_processor_for({"input_size": (3, 16, 16)})
    expected = processor(PIL.Image.open(path), return_tensors="pt")["pixel_values"][0]
    found = processor(open_image(path), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(eval_transform(processor)(open_image(path)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_what_has_no_transparency_is_what_pillow_makes_of_it(tmp_path, mode):
    """Models that were trained before transparency lay on white saw the same bytes."""
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    noise(3, (30, 20), "RGB").convert(mode).save(path)
    assert np.array_equal(np.asarray(open_image(path).convert("RGB")), np.asarray(load_image(str(path))))


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(bits, color, width, row, transparent=None):
    """A PNG file of one row of bytes."""
    header = struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0)
    middle = b"" if transparent is None else chunk(b"tRNS", transparent)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + middle
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )


def tiff(values, **tags):
    """A TIFF file of one row of values, (1, n) or (1, n, 3), with further tags by their number."""
    bits = 8 * values.itemsize
    entries = {256: values.shape[1], 257: 1, 258: bits, 259: 1, 262: 1, 277: 1, 278: 1, 279: values.nbytes}
    entries |= {273: 8 + 12 * 32} | {int(name[1:]): value for name, value in tags.items()}
    written = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + written + bytes(4)
    return head.ljust(8 + 12 * 32, b"\0") + values.tobytes()


def pixels(content):
    """Of the image that a file's bytes become, as (W,) or (W, 3) of its one row."""
    return np.asarray(decode({"bytes": content, "path": None}))[0].tolist()


def file_of(image, kind="PNG", **options):
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


RED_AND_CLEAR = np.array([[(255, 0, 0, 255), (0, 0, 255, 0), (0, 0, 0, 128)]], np.uint8)
PALETTE = PIL.Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
PALETTE.putpalette([255, 0, 0, 0, 0, 255, 0, 0, 0])
TRANSPARENT = {
    "RGBA": (file_of(PIL.Image.fromarray(RED_AND_CLEAR)), [[255, 0, 0], [255, 255, 255], [127, 127, 127]]),
    "RGBA in TIFF": (file_of(PIL.Image.fromarray(RED_AND_CLEAR), "TIFF"), [[255, 0, 0], [255] * 3, [127] * 3]),
    "LA": (png(8, 4, 2, bytes([9, 255, 9, 0])), [[9, 9, 9], [255, 255, 255]]),
    "LA of 16 bits": (png(16, 4, 2, struct.pack(">4H", 9 << 8, 65535, 9 << 8, 0)), [[9, 9, 9], [255, 255, 255]]),
    "premultiplied grey": (
        tiff(np.array([[9, 255, 0, 0]], np.uint8), t256=2, t277=2, t338=1),
        [[9, 9, 9], [255, 255, 255]],
    ),
    "palette with an entry": (file_of(PALETTE, transparency=1), [[255, 0, 0], [255, 255, 255], [0, 0, 0]]),
    "palette with shares": (file_of(PALETTE, transparency=b"\xff\0\x80"), [[255, 0, 0], [255] * 3, [127] * 3]),
    "GIF": (file_of(PALETTE, "GIF", transparency=1), [[255, 0, 0], [255, 255, 255], [0, 0, 0]]),
    "a color": (png(8, 2, 2, bytes([1, 2, 3, 3, 2, 1]), struct.pack(">3H", 1, 2, 3)), [[255, 255, 255], [3, 2, 1]]),
    "a 16-bit color": (
        png(16, 2, 2, struct.pack(">6H", 1 << 8, 2 << 8, 3 << 8, 65535, 0, 0), struct.pack(">3H", 256, 512, 768)),
        [[255, 255, 255], [255, 0, 0]],
    ),
    "a grey": (png(8, 0, 2, bytes([7, 8]), struct.pack(">H", 7)), [[255, 255, 255], [8, 8, 8]]),
    "a grey of 4 bits": (png(4, 0, 2, bytes([0x5A]), struct.pack(">H", 5)), [[255, 255, 255], [170, 170, 170]]),
    "a grey of 2 bits": (png(2, 0, 2, bytes([0b01100000]), struct.pack(">H", 1)), [[255, 255, 255], [170] * 3]),
    "black of 1 bit": (png(1, 0, 2, bytes([0b01000000]), struct.pack(">H", 0)), [[255, 255, 255], [255] * 3]),
    "a grey of 16 bits": (png(16, 0, 2, struct.pack(">2H", 257, 65535), struct.pack(">H", 257)), [255, 255]),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_lies_on_white(name):
    if name == "premultiplied grey" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow reads such files from 13 on")
    content, expected = TRANSPARENT[name]
    assert pixels(content) == expected


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "RGBa", "La"])
def test_transforms_put_transparent_images_on_white(mode):
    processor = image_processor_for({"input_size": (3, 4, 4)}, "none")
    clear = PIL.Image.new(mode, (6, 6))
    for transform in (eval_transform(processor), train_transform(processor)):
        assert transform(clear).unique().tolist() == [1.0]


FULL, TWELVE = np.array([[0, 32768, 65535]], np.uint16), np.array([[0, 2048, 4095]], np.uint16)
SCALED = {
    "full range": (file_of(PIL.Image.fromarray(FULL)), [0, 128, 255]),
    "black": (file_of(PIL.Image.fromarray(0 * FULL)), [0, 0, 0]),
    "full range where zero is white": (tiff(FULL, t262=0), [255, 127, 0]),
    "12 bits packed": (tiff(np.array([[0, 8, 0, 255, 240]], np.uint8), t256=3, t258=12), [0, 128, 255]),
    "12 bits by MaxSampleValue": (tiff(TWELVE, t281=4095), [0, 128, 255]),
    "a dark image by MaxSampleValue": (tiff(TWELVE, t281=65535), [0, 8, 16]),
    "32 bits by MaxSampleValue": (tiff(np.array([[0, 128, 255]], np.uint32), t281=255), [0, 128, 255]),
    "floats by SMaxSampleValue": (tiff(np.array([[0, 0.25, 1]], np.float32), t339=3, t341=1), [0, 64, 255]),
    "PGM of 12 bits": (b"P5 2 1 4095\n" + struct.pack(">2H", 2048, 4095), [128, 255]),
    "plain PGM of 12 bits": (b"P2 2 1 4095\n2048 4095\n", [128, 255]),
    "PPM of 10 bits": (b"P6 1 1 1023\n" + struct.pack(">3H", 1, 2, 8), [[0, 0, 2]]),
    "16-bit colors": (png(16, 2, 1, struct.pack(">3H", 65535, 512, 0)), [[255, 2, 0]]),
}
NOT_SCALED = {
    "12 bits": file_of(PIL.Image.fromarray(TWELVE)),
    "12 bits in TIFF": file_of(PIL.Image.fromarray(TWELVE), "TIFF"),
    "12 bits in PGM": file_of(PIL.Image.fromarray(TWELVE), "PPM"),
    "12 bits in JPEG 2000": file_of(PIL.Image.fromarray(TWELVE), "JPEG2000"),
    "12 bits, big endian": file_of(PIL.Image.frombytes("I;16B", (3, 1), TWELVE.astype(">u2").tobytes()), "TIFF"),
    "14 bits": file_of(PIL.Image.fromarray(4 * TWELVE)),
    "8 bits in 16": file_of(PIL.Image.fromarray(TWELVE // 16)),
    "a largest value that is no white": tiff(TWELVE, t281=4000),
    "beyond its own white": tiff(FULL, t281=4095),
    "12-bit colors": png(16, 2, 1, struct.pack(">3H", 4095, 0, 99)),
    "8-bit colors in 16": png(16, 2, 1, struct.pack(">3H", 255, 0, 99)),
    "12-bit colors in PPM": b"P6 1 1 65535\n" + struct.pack(">3H", 4095, 0, 99),
    "floats": tiff(np.array([[0, 0.25, 1]], np.float32), t339=3),
    "whole floats": file_of(noise().convert("F"), "TIFF"),
    "not a number": tiff(np.array([[np.nan, 0, 1]], np.float32), t339=3, t341=1),
    "PFM": b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0.5, 1),
    "32 bits": file_of(noise().convert("I"), "TIFF"),
    "full range of 32 bits": tiff(np.array([[0, 2**32 - 1]], np.uint32)),
    "signed 16 bits": tiff(FULL.astype(np.int16), t339=2),
    "signed 8 bits": tiff(np.array([[-1, 1]], np.int8), t339=2),
    "an array of floats": datasets.Image().encode_example(np.linspace(0, 1, 12).reshape(3, 4))["bytes"],
    "an array of integers": datasets.Image().encode_example(np.arange(12, dtype=np.int32).reshape(3, 4))["bytes"],
}


@pytest.mark.parametrize("name", SCALED)
def test_values_of_a_certain_scale_are_scaled(name):
    content, expected = SCALED[name]
    assert pixels(content) == expected


@pytest.mark.parametrize("name", NOT_SCALED)
def test_values_of_no_certain_scale_are_refused(name):
    with pytest.raises(UnreadableImageError, match="white|fewer bits"):
        pixels(NOT_SCALED[name])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_transforms_refuse_values_of_no_certain_scale(mode):
    processor = image_processor_for({"input_size": (3, 4, 4)})
    for transform in (eval_transform(processor), train_transform(processor)):
        with pytest.raises(UnreadableImageError, match="white is ambiguous"):
            transform(PIL.Image.new(mode, (6, 6)))


def test_16_bit_colors_in_planes_which_pillow_reads_as_8_bits():
    content = tiff(np.full((1, 3), 65535, np.uint16), t256=1, t262=2, t277=3, t284=2)
    with pytest.raises(UnreadableImageError, match="separate planes"):
        pixels(content)


def test_no_file_is_handed_to_another_program(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments, **_: called.append(arguments))
    for name in ("page.eps", "page.png"):
        noise(mode="RGB").save(tmp_path / name, "EPS")
        with pytest.raises(PIL.UnidentifiedImageError):
            open_image(tmp_path / name)
    assert not called


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP", "tiles"])
def test_too_many_pixels_are_refused_before_they_are_decoded(kind, monkeypatch):
    decoded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: decoded.append(image))
    side = 13_000
    large = {
        "PNG": png(8, 0, side, b"").replace(struct.pack(">II", side, 1), struct.pack(">II", side, side)),
        "GIF": file_of(noise(), "GIF").replace(struct.pack("<HH", 28, 28), struct.pack("<HH", side, side)),
        "TIFF": tiff(np.zeros((1, 1), np.uint8), t256=side, t257=side),
        "BMP": file_of(noise(), "BMP").replace(struct.pack("<II", 28, 28), struct.pack("<II", side, side)),
        "tiles": tiff(np.zeros((1, 1), np.uint8), t322=side, t323=side),
    }[kind]
    large = large[:29] + struct.pack(">I", zlib.crc32(large[12:29])) + large[33:] if kind == "PNG" else large
    with pytest.raises(UnreadableImageError, match=f"13,000 x 13,000 pixels, more than the limit of {MAX_PIXELS:,}"):
        pixels(large)
    assert not decoded


def test_files_in_archives_have_the_same_limits(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("page.png", file_of(noise(mode="RGB"), "EPS"))
        archive.writestr("clear.png", file_of(PIL.Image.new("RGBA", (2, 2))))
    in_archive = {"bytes": None, "path": f"zip://clear.png::{tmp_path}/images.zip"}
    assert np.asarray(decode(in_archive)).min() == 255
    with pytest.raises(PIL.UnidentifiedImageError):
        decode(in_archive | {"path": in_archive["path"].replace("clear", "page")})
