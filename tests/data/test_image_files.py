"""Image files without labels."""

import numpy as np
import PIL.Image
import pytest

from cdl_hf.data import DatasetError
from cdl_hf.data.image_files import ImageFiles, find_image_files


def save(path, value=100, mode=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((4, 4), value, mode)).save(path)
    return str(path)


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path):
    images = [save(tmp_path / name) for name in ("a/b/1.PNG", "a/2.jpg")]
    for hidden in ("a/.3.png", "a/.cache/4.png"):
        save(tmp_path / hidden)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    named = tmp_path / "drawing"
    named.write_bytes((tmp_path / "a/2.jpg").read_bytes())
    assert find_image_files([tmp_path / "a"]) == sorted(images)
    assert find_image_files([named, tmp_path / "a"]) == [str(named), *sorted(images)]


def test_links_are_followed_and_end(tmp_path):
    real = save(tmp_path / "real" / "1.png")
    save(tmp_path / "photos" / "__MACOSX" / "1.png")
    save(tmp_path / "photos" / "@eaDir" / "1.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "photos" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "round").symlink_to(tmp_path / "photos")
    assert find_image_files([tmp_path / "photos"]) == [str(tmp_path / "photos" / "linked" / "1.png")]
    assert real not in find_image_files([tmp_path / "photos"])


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(DatasetError, match="no file or folder '.*nowhere'"):
        find_image_files([tmp_path / "nowhere"])
    with pytest.raises(DatasetError, match="no files with an image extension"):
        find_image_files([tmp_path])


def test_a_file_that_cannot_be_read_comes_with_the_reason(tmp_path):
    good, deep = save(tmp_path / "good.png"), save(tmp_path / "deep.png", 128 * 257, np.uint16)
    text = tmp_path / "text.png"
    text.write_text("no image")
    half = tmp_path / "half.png"
    half.write_bytes((tmp_path / "good.png").read_bytes()[:40])
    images = ImageFiles(
        [good, deep, str(text), str(half), str(tmp_path / "gone.png")], lambda image: image.getpixel((0, 0))
    )
    told = [images[i] for i in range(len(images))]
    assert told[:2] == [(good, 100, None), (deep, 128, None)]  # 16 bits are scaled, not clipped
    assert told[2] == (str(text), None, "not an image, or in a format that is not supported")
    assert told[3][1] is None and told[3][2]
    assert told[4][2] == "No such file or directory"
