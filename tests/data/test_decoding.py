import numpy as np
import PIL.Image
import pytest
import torch
from transformers.image_utils import load_image

from cdl_hf.data import image_processor_for, open_image, test_transform

from .conftest import noise

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
    expected = processor(load_image(str(path)), return_tensors="pt")["pixel_values"][0]
    for found in (processor(open_image(path), return_tensors="pt")["pixel_values"][0],):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(test_transform(processor)(open_image(path)), expected, rtol=0, atol=1e-6)
