"""What is drawn or uploaded is seen as in training, or a sentence says why it is not seen."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from transformers import CLIPImageProcessor

from cdl_hf.data import eval_transform, open_image
from cdl_hf.data.sketch import as_drawing
from cdl_hf.demo.inputs import from_file, from_strokes

TRANSFORM = eval_transform(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32))


def circle(mode="L", paper=255, ink=0):
    image = PIL.Image.new(mode, (200, 200), paper)
    PIL.ImageDraw.Draw(image).ellipse((20, 40, 120, 140), outline=ink, width=9)
    return image


def saved(image, tmp_path):
    image.save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "The file is empty."),
        (b"text", "cannot be opened as an image: not an image"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "cannot be opened as an image: not an image"),
        ((8, 200, 200), "There is nothing to see on it: all pixels"),
        ((3, 2, 0), "There is nothing to see on it: the image has only 3 x 2 pixels."),
        ((20000, 20000, 0), "more pixels than the limit of 89,478,485"),
    ],
    ids=["empty", "text", "HEIC", "blank", "tiny", "huge"],
)
def test_what_cannot_be_seen_has_a_reason(tmp_path, content, problem):
    path = tmp_path / "image.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        PIL.Image.new("1" if content[0] == 20000 else "L", content[:2], content[2]).save(path)
    seen = from_file(str(path), TRANSFORM, True)
    assert seen.pixels is None and problem in seen.problem and seen.problem.endswith(".")
    assert str(tmp_path) not in seen.problem


def test_an_image_is_not_inverted_unless_asked_for(tmp_path):
    path = saved(circle(), tmp_path)
    seen = from_file(path, TRANSFORM, True)
    np.testing.assert_array_equal(seen.pixels, TRANSFORM.pixels(open_image(path)))
    assert "looks inverted" in seen.warning
    np.testing.assert_array_equal(seen.as_drawing.pixels, TRANSFORM.pixels(as_drawing(circle())))
    assert not from_file(path, TRANSFORM, False).warning  # photos are often bright


def test_light_on_dark_needs_no_warning(tmp_path, quickdraw_images):
    other = from_file(saved(circle(paper=0, ink=255), tmp_path), TRANSFORM, True)
    assert not other.warning and other.as_drawing is not None  # it could be centered
    own = from_file(saved(quickdraw_images[0], tmp_path), TRANSFORM, True)
    assert not own.warning and own.as_drawing is None


def test_transparency_is_white(tmp_path):
    seen = from_file(saved(circle("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)), tmp_path), TRANSFORM, True)
    expected = from_file(saved(circle(), tmp_path), TRANSFORM, True)
    np.testing.assert_array_equal(seen.pixels, expected.pixels)
    assert seen.warning


def test_16_bits_are_scaled(tmp_path):
    values = np.linspace(0, 65535, 32 * 32, dtype=np.uint16).reshape(32, 32)
    seen = from_file(saved(PIL.Image.fromarray(values), tmp_path), TRANSFORM, False)
    assert seen.pixels[0].flatten().tolist() == [(int(v) * 255 + 32767) // 65535 for v in values.ravel()]


def test_strokes_and_none():
    assert from_strokes([], TRANSFORM) is None
    assert from_strokes([[(0, 0), (9, 9)]], TRANSFORM).pixels.max() == 255
