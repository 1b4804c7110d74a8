"""Images as people have them: what can be read trains, what cannot is named before."""

import errno
import json
import os
import subprocess
import sys
import threading

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value
from filelock import FileLock
from tiny_data import labelled, noise

import cdl_hf.data.cache as cache
import cdl_hf.data.decoding as decoding
from cdl_hf.data import (
    DatasetError,
    TaskImages,
    TaskStream,
    eval_transform,
    image_processor_for,
    load_image_dataset,
    train_transform,
)

PROCESSOR = image_processor_for({"input_size": (3, 16, 16), "crop_pct": 0.9})
GOOD = [f"good_{number}.png" for number in range(4)]


@pytest.fixture
def folder(tmp_path):
    """Two classes of four readable images each."""
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number, file in enumerate(GOOD):
            noise(number).save(tmp_path / "images" / name / file)
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch):
    """Counts the images that the check opens."""
    count = []

    def counting(image):
        count.append(image)
        return decode(image)

    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", counting)
    return count


def grey_16(path, white=65535):
    PIL.Image.fromarray(np.linspace(0, white, 256, dtype=np.uint16).reshape(16, 16)).save(path)


def rotated(path):
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    noise(size=(40, 20), mode="RGB").save(path, exif=exif)


def animated(path):
    noise(1).save(path, save_all=True, append_images=[noise(2)])


READABLE = {
    "bilevel.png": lambda path: noise().convert("1").save(path),
    "grey.png": lambda path: noise().save(path),
    "grey_alpha.png": lambda path: noise(mode="LA").save(path),
    "palette.png": lambda path: noise(mode="RGB").quantize(9).save(path),
    "palette.gif": lambda path: noise(mode="RGB").quantize(9).save(path),
    "transparent palette.png": lambda path: noise(mode="RGB").quantize(9).save(path, transparency=b"\x00\x80"),
    "cmyk.jpg": lambda path: noise(mode="CMYK").save(path),
    "rgba.png": lambda path: noise(mode="RGBA").save(path),
    "lab.tiff": lambda path: PIL.Image.new("LAB", (8, 8)).save(path),
    "ycbcr.tiff": lambda path: noise(mode="YCbCr").save(path, compression="jpeg"),
    "grey_16.png": grey_16,
    "grey_16.tif": grey_16,
    "grey_16.pgm": grey_16,
    "la.tiff": lambda path: noise(mode="LA").save(path),
    "16-bit colors.ppm": lambda path: path.write_bytes(b"P6 1 1 65535\n" + 6 * b"\xff"),
    "rotated.jpg": rotated,
    "animated.gif": animated,
    "progressive.jpeg": lambda path: noise(mode="RGB").save(path, progressive=True),
    "upper.JPG": lambda path: noise().save(path),
    "photo.webp": lambda path: noise(mode="RGB").save(path),
    "one pixel.png": lambda path: noise(size=(1, 1)).save(path),
    "one pixel wide.png": lambda path: noise(size=(1, 300)).save(path),
    "one pixel high.png": lambda path: noise(size=(300, 1)).save(path),
    "thin.png": lambda path: noise(size=(10_000, 1)).save(path),
    "wide.png": lambda path: noise(size=(10_000, 20)).save(path),
    "wide.jpg": lambda path: noise(size=(10_000, 20), mode="RGB").save(path),
    "misnamed.jpg": lambda path: noise().save(path, "PNG"),
    "no suffix": lambda path: noise().save(path, "PNG"),
    "link.png": lambda path: path.symlink_to(path.parent / GOOD[0]),
    "снимок 猫 صورة.png": lambda path: noise().save(path),
    'odd "name"; #1 %20.png': lambda path: noise().save(path),
}


@pytest.mark.parametrize("name", READABLE)
def test_readable_images_train(folder, name):
    READABLE[name](folder / "b" / name)
    splits = load_image_dataset(str(folder), test_fraction=0.5)
    stream = TaskStream(splits, 1)
    assert len(stream[0].train) + len(stream[0].test) == 9
    for view, transform in (
        (stream[0].train, train_transform(PROCESSOR)),
        (stream[0].test, eval_transform(PROCESSOR)),
    ):
        for sample in TaskImages(view, stream.label_to_class_id, transform, seed=0):
            assert sample["pixels"].shape == (3, 16, 16) and sample["pixels"].dtype == torch.uint8


def cut(path):
    noise(size=(200, 200), mode="RGB").save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def bomb(path, side=50_000):
    """A PNG that claims to have so many pixels on each side."""
    noise(mode="RGB").save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = side.to_bytes(4) * 2
    data[29:33] = decoding.zlib.crc32(data[12:29]).to_bytes(4)
    path.write_bytes(data)


UNREADABLE = {
    "cut.jpg": (cut, "image file is truncated"),
    "cut.png": (cut, "image file is truncated"),
    "cut.webp": (cut, ""),
    "header.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), ""),
    "broken.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + 60 * b"x"), ""),
    "empty.png": (lambda path: path.touch(), "empty"),
    "text.png": (lambda path: path.write_text("no image"), "not an image, or in a format that is not supported"),
    "page.jpg": (lambda path: path.write_text("<html>404</html>"), "not an image"),
    "link to nothing.png": (lambda path: path.symlink_to("nowhere.png"), "a broken link"),
    "bomb.png": (bomb, "more pixels than the limit of 89,478,485"),
    "too large.png": (lambda path: bomb(path, 13_000), "13,000 x 13,000 pixels, more than the limit of 89,478,485"),
    "page.eps.png": (lambda path: noise(mode="RGB").save(path, "EPS"), "not an image, or in a format"),
    "float.tiff": (lambda path: noise().convert("F").save(path), "values are floats, so the value of white is ambig"),
    "32 bits.tiff": (lambda path: noise().convert("I").save(path), "values are 32-bit or signed integers, so"),
    "12 bits.png": (lambda path: grey_16(path, 4095), "16-bit values of at most 4,095: either fewer"),
}


@pytest.mark.filterwarnings("ignore:.*cannot be read", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_images_stop_the_run_or_are_left_out(folder, name):
    make, reason = UNREADABLE[name]
    make(folder / "b" / name)
    with pytest.raises(DatasetError) as error:
        load_image_dataset(str(folder))
    assert f"1 of the 9 images of '{folder}' cannot be read:\n  {folder}/b/{name}: {reason}" in str(error.value)
    assert "skip_unreadable_images" in str(error.value)
    splits = load_image_dataset(str(folder), skip_unreadable_images=True)
    assert list(splits.unreadable) == [f"{folder}/b/{name}"]
    assert sum(map(len, splits.values())) == 8 and splits["train"][3]["image"].size == (28, 28)
    assert TaskStream(splits, 1).describe()["unreadable_images_left_out"] == 1


def test_all_are_named_in_one_list(folder):
    for name, (make, _) in UNREADABLE.items():
        make(folder / "a" / name)
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        splits = load_image_dataset(str(folder), skip_unreadable_images=True)
    (message,) = [str(warning.message) for warning in caught if "cannot be read" in str(warning.message)]
    named = [line for line in message.splitlines() if line.startswith("  ")]
    assert len(named) == len(splits.unreadable) == len(UNREADABLE)
    assert "They are left out" in message
    assert json.dumps(TaskStream(splits, 1).describe())


def test_a_class_of_unreadable_images_is_an_error(folder):
    for name in GOOD:
        (folder / "b" / name).write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="4 of the 8 images"),
        pytest.raises(ValueError, match="no train images of 1 classes: b"),
    ):
        TaskStream(load_image_dataset(str(folder), skip_unreadable_images=True), 1)


def test_second_start_opens_no_image(folder, decoded):
    load_image_dataset(str(folder))
    assert len(decoded) == 8
    load_image_dataset(str(folder), seed=1)
    assert len(decoded) == 8, "all are remembered"
    noise(7, size=(9, 9)).save(folder / "a" / GOOD[0])
    noise(7).save(folder / "b" / "new.png")
    load_image_dataset(str(folder))
    assert len(decoded) == 10, "one has changed, one is new"


def test_another_division_opens_no_image(folder, decoded, tmp_path):
    load_image_dataset(str(folder))
    for listed in (GOOD[:3], GOOD[1:]):
        data = [f"{name}/{file}" for name in "ab" for file in listed]
        (tmp_path / "split.yaml").write_text(json.dumps({"data": data}))
        load_image_dataset(str(folder), split_file=str(tmp_path / "split.yaml"))
    assert len(decoded) == 8


def test_what_cannot_be_read_is_tried_again(folder, decoded):
    cut(folder / "a" / "x.jpg")
    for start in range(2):
        with pytest.raises(DatasetError, match="x.jpg: image file is truncated"):
            load_image_dataset(str(folder))
        assert len(decoded) == 9 + start
    noise().save(folder / "a" / "x.jpg")
    assert sum(map(len, load_image_dataset(str(folder)).values())) == 9 and len(decoded) == 11
    load_image_dataset(str(folder))
    assert len(decoded) == 11


def stored(images):
    features = Features(photo=Image(), label=Value("string"))
    return Dataset.from_dict({"photo": images, "label": ["x"] * len(images)}, features=features)


def parquet(data, path):
    path.mkdir()
    data.to_parquet(path / "train.parquet")


def saved(data, path):
    data.save_to_disk(path)


def saved_view(data, path):
    DatasetDict(train=data.select(range(len(data) - 1, -1, -1))).save_to_disk(path)


@pytest.mark.parametrize("write", [parquet, saved, saved_view])
def test_images_stored_in_tables(tmp_path, decoded, write):
    good = {"bytes": Image().encode_example(noise())["bytes"], "path": None}
    bad = {"bytes": good["bytes"][:100], "path": "bad.png"}
    write(stored([good, bad, good, {"bytes": b"", "path": None}, good]), tmp_path / "data")
    for opened in (4, 4 + 1):  # of the five one is empty; the second time, only the broken one
        with pytest.warns(UserWarning, match="2 of the 5 images"):
            splits = load_image_dataset(str(tmp_path / "data"), skip_unreadable_images=True, test_fraction=0.5)
        assert len(decoded) == opened
        assert sorted(splits.unreadable.values())[0] == "empty" and "bad.png" in splits.unreadable
        assert [row["image"].size for split in splits.values() for row in split] == [(28, 28)] * 3


def test_an_image_that_is_missing_from_a_table(tmp_path):
    good = {"bytes": Image().encode_example(noise())["bytes"], "path": None}
    saved(stored([good, None, good]), tmp_path / "data")
    with pytest.raises(DatasetError, match="1 of the 3 images .*\n  train, row 1: no image"):
        load_image_dataset(str(tmp_path / "data"))


@pytest.fixture
def many(tmp_path):
    """As many images as make a progress bar worthwhile, and the last of them is none."""
    (tmp_path / "many" / "a").mkdir(parents=True)
    content = Image().encode_example(noise(size=(2, 2)))["bytes"]
    for number in range(decoding.MIN_FOR_PROGRESS_BAR):
        (tmp_path / "many" / "a" / f"{number:04}.png").write_bytes(content)
    (tmp_path / "many" / "a" / "last.png").touch()
    return tmp_path / "many"


def test_many_are_checked_without_processes_and_leave_randomness_alone(many, monkeypatch):
    """Where processes are spawned, each would run a script without guard anew, up to here."""
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", lambda process: pytest.fail("a process starts"))
    before = torch.get_rng_state()
    with pytest.raises(DatasetError, match="1 of the 501 images .*\n.*last.png: empty"):
        load_image_dataset(str(many))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_cores_need_not_be_told(many, monkeypatch):
    """As on macOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    with pytest.raises(DatasetError, match="last.png: empty"):
        load_image_dataset(str(many))


@pytest.mark.slow
def test_a_script_without_guard_ends_where_processes_are_spawned(many, tmp_path):
    (many / "a" / "last.png").unlink()
    script = tmp_path / "script.py"
    script.write_text(
        "import torch.multiprocessing as mp\n"
        "mp.set_start_method('spawn', force=True)\n"
        "from cdl_hf import load_image_dataset\n"
        f"print(len(load_image_dataset({str(many)!r})['train']))\n"
    )
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "400\n"


def test_bundled_drawings_are_known_to_be_sound(decoded):
    load_image_dataset("quickdraw100")
    assert not decoded


def test_data_in_memory_alone_is_checked_each_time(decoded):
    data = labelled([0, 0], ["x"]).cast_column("image", Image())
    assert decoding.find_unreadable(data, "it") == {} and len(decoded) == 2


@pytest.fixture
def cached(folder, tmp_path, monkeypatch):
    """The file that remembers the folder's images, in a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load_image_dataset(str(folder))
    (file,) = (tmp_path / "cache" / "readable_images").glob("*.npy")
    return file


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"PK\x03\x04 an archive",
        lambda content: b"\x80\x04 a pickle",
        lambda content: content[:-3],
        lambda content: content + b"more",
        lambda content: content.replace(b"<u8", b"|O8"),
        lambda content: content[:20] + b"(((" + content[23:],
    ],
)
def test_a_damaged_cache_is_made_again(folder, cached, decoded, damage):
    content = cached.read_bytes()
    cached.write_bytes(damage(content))
    load_image_dataset(str(folder))
    assert len(decoded) == 8 and cached.read_bytes() == content


def test_a_cache_that_cannot_be_used_only_costs_time(folder, tmp_path, monkeypatch, decoded, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    for start in (1, 2):
        assert sum(map(len, load_image_dataset(str(folder)).values())) == 8 and len(decoded) == 8 * start
    assert "cannot be written (Not a directory)" in caplog.text and "set HF_DATASETS_CACHE" in caplog.text


def test_a_full_disk_only_costs_time(folder, cached, decoded, monkeypatch, caplog):
    def full(path, **_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cdl_hf.data.cache.atomic_write", full)
    noise(7).save(folder / "b" / "new.png")
    before = cached.read_bytes()
    load_image_dataset(str(folder))
    assert len(decoded) == 1 and cached.read_bytes() == before and "No space left on device" in caplog.text


@pytest.mark.parametrize("what", ["lock", "file"])
def test_what_another_user_holds_only_costs_time(folder, cached, decoded, what):
    """Folders stand for files that this process has no right to, which the superuser would have."""
    theirs = cached if what == "file" else cached.with_name(f"{cached.name}.lock")
    theirs.unlink()
    theirs.mkdir()
    (theirs / "full").touch()
    load_image_dataset(str(folder))
    assert len(decoded) == (8 if what == "file" else 0)


def test_one_says_what_one_waits_for(folder, cached, monkeypatch):
    """The other lets go as soon as this one has said that it waits."""
    monkeypatch.setattr(cache, "SILENT_WAIT", 0)
    held, said, told = threading.Event(), threading.Event(), []

    def hold():
        with FileLock(f"{cached}.lock"):
            held.set()
            assert said.wait(60)

    monkeypatch.setattr(cache.logger, "warning", lambda text, *values: (told.append(text % values), said.set()))
    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(60)
    load_image_dataset(str(folder))
    other.join()
    assert len(told) == 1 and f"Waiting for another process to check the images of {folder}" in told[0]
