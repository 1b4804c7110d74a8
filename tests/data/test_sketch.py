"""Drawings become images like those of the bundled data set."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from cdl_hf.data import load_image_dataset
from cdl_hf.data.sketch import as_drawing, draw

HOUSE = [[(10, 100), (10, 200), (110, 200), (110, 100), (10, 100)], [(10, 100), (60, 40), (110, 100)]]


def pixels(image):
    assert image.mode == "L" and image.size == (28, 28)
    return np.asarray(image).astype(int)


def extent(image):
    """First and last row and column with ink."""
    rows, columns = np.nonzero(pixels(image))
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_place_and_size_do_not_matter():
    moved = [[(3 * x + 50, 3 * y - 7) for x, y in stroke] for stroke in HOUSE]
    np.testing.assert_array_equal(pixels(draw(moved)), pixels(draw(HOUSE)))


def test_the_longer_side_fills_the_square_and_the_rest_is_in_the_middle():
    top, bottom, left, right = extent(draw(HOUSE))
    assert (top, bottom) == (0, 27)
    assert right - left in (17, 18) and abs(left - (27 - right)) <= 1  # 100 of 160


@pytest.mark.parametrize("swap", [False, True])
def test_a_line_is_one_pixel_wide(swap):
    line = [(0, 0), (300, 40)]
    image = pixels(draw([[point[::-1] for point in line] if swap else line]))
    widths = image.sum(1 if swap else 0)
    assert (abs(widths - 255) <= 1).all() and len(widths) == 28
    assert (np.count_nonzero(image, axis=1 if swap else 0) <= 2).all()


def test_the_many_points_of_a_mouse_change_nothing():
    points = [np.linspace(start, end, 50) for start, end in zip(HOUSE[1][:-1], HOUSE[1][1:], strict=True)]
    wobbly = np.concatenate(points) + np.random.default_rng(0).uniform(-0.2, 0.2, (100, 2))
    difference = abs(pixels(draw([HOUSE[0], wobbly.tolist()])) - pixels(draw(HOUSE)))
    assert difference.mean() < 2 < pixels(draw(HOUSE)).mean()


def test_a_dot_and_nothing():
    assert np.count_nonzero(pixels(draw([[(5, 5)]]))) == 1
    assert np.count_nonzero(pixels(draw([[(5, 5), (5, 5)]]))) == 1
    assert draw([]) is None and draw([[]]) is None


def test_so_are_the_lines_of_the_data_set():
    test = load_image_dataset("quickdraw100")["test"]
    label = test.features["label"].str2int("line")
    lines = [
        np.asarray(image.convert("L")).astype(int)
        for image in test.filter(lambda x: x == label, input_columns="label")["image"]
    ]
    flat = [image for image in lines if np.count_nonzero(image.any(0)) == 28 and np.count_nonzero(image) <= 2 * 28]
    assert len(flat) > 3
    assert all(abs(np.median(image.sum(0)) - 255) <= 1 for image in flat)


def test_dark_on_light_and_light_on_dark():
    paper = PIL.Image.new("L", (300, 200), 250)
    PIL.ImageDraw.Draw(paper).rectangle((40, 60, 240, 160), outline=20, width=8)
    light = as_drawing(paper)
    assert extent(light) == (7, 20, 0, 27)  # a hundred of two hundred, in the middle
    inverse = PIL.Image.fromarray(255 - np.asarray(paper))
    assert abs(pixels(as_drawing(inverse.convert("RGB"))) - pixels(light)).max() <= 1
    assert pixels(light).max() == 255


def test_images_of_the_data_set_stay_as_they_are():
    for image in load_image_dataset("quickdraw100")["test"].select(range(0, 2000, 100))["image"]:
        np.testing.assert_array_equal(pixels(as_drawing(image)), np.asarray(image.convert("L")))


@pytest.mark.parametrize("brightness", [0, 128, 255])
def test_an_empty_page_is_nothing(brightness):
    assert as_drawing(PIL.Image.new("RGB", (50, 60), (brightness,) * 3)) is None
