"""CIFAR-100 in the forms in which people have it, made from the bundled drawings."""

import errno
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from io import BytesIO

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from cdl_hf.data import (
    DatasetError,
    TaskImages,
    TaskStream,
    cifar100,
    eval_transform,
    image_processor_for,
    load_image_dataset,
)

NAMES = [f"class {label}" for label in range(100)]


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2 did, in which the files of CIFAR-100 were made: one kind of string, numpy's old module."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        data = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string

    def save_global(self, value, name=None):
        if value.__name__ != "_reconstruct":
            return super().save_global(value, name)
        self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
        self.memoize(value)

    dispatch[type(np.empty(0).__reduce__()[0])] = save_global


def python2(content):
    stream = BytesIO()
    Python2Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def python3_with_bytes(content):
    return pickle.dumps({key.encode(): value for key, value in content.items()})


def write_cifar(path, images, labels, dumps=python2):
    """A folder like cifar-100-python; images (n, 32, 32, 3), the same for training and for the test."""
    path.mkdir()
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    for split in ("train", "test"):
        names = [f"image_{row}.png" for row in range(len(images))]
        coarse = [label // 5 for label in labels]
        content = {"filenames": names, "batch_label": split, "fine_labels": labels, "coarse_labels": coarse}
        (path / split).write_bytes(dumps(content | {"data": pixels}))
    (path / "meta").write_bytes(dumps({"fine_label_names": NAMES, "coarse_label_names": NAMES[:20]}))
    return path


@pytest.fixture(scope="module")
def images(quickdraw_images):
    """(100, 32, 32, 3), no two the same."""
    pixels = np.stack(
        [np.asarray(quickdraw_images[label % 20].resize((32, 32)).convert("RGB")) for label in range(100)]
    )
    pixels[:, 0, 0, 1] = np.arange(100)
    return pixels


def shown(dataset):
    return np.stack([np.asarray(image) for image in dataset["image"]])


@pytest.mark.parametrize("dumps", [python2, python3_with_bytes])
def test_original_folder(tmp_path, images, dumps):
    labels = list(range(99, -1, -1))
    path = write_cifar(tmp_path / "cifar-100-python", images, labels, dumps)
    for _ in range(2):  # from the files, then from the cache
        splits = load_image_dataset(str(path))
        for dataset in splits.values():
            assert dataset.features["label"].names == NAMES and dataset["label"][:] == labels
            assert np.array_equal(shown(dataset), images)
    assert splits["train"].cache_files, "memory-mapped, shared by processes"
    assert TaskStream(splits).classes_per_task == [10] * 10 and splits.split_list() is None


def test_folder_that_changed_is_read_again(tmp_path, images):
    path = write_cifar(tmp_path / "cifar", images, list(range(100)))
    load_image_dataset(str(path))
    (path / "train").write_bytes(python2({"fine_labels": [7], "data": images[:1].reshape(1, 3072)}))
    assert load_image_dataset(str(path))["train"]["label"][:] == [7]


@pytest.fixture
def copies(tmp_path, images, monkeypatch):
    """A folder as published, and the copies of it in a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write_cifar(tmp_path / "cifar", images, list(range(100)))
    before = os.umask(0o027)
    load_image_dataset(str(path))
    os.umask(before)
    return path, sorted((tmp_path / "cache" / "cifar100").glob("*.arrow"))


def test_copies_have_the_rights_of_new_files_and_nothing_is_left_beside_them(copies):
    _, files = copies
    assert [file.stat().st_mode & 0o777 for file in files] == [0o640] * 2
    suffixes = {file.suffix for file in files[0].parent.iterdir()}
    assert suffixes <= {".arrow", ".sha256", ".lock"}


@pytest.mark.parametrize("damage", [lambda c: c[:-40_000], lambda c: c[:200_000] + b"x" + c[200_001:], lambda c: b""])
def test_damaged_copies_are_made_again(copies, images, damage):
    path, files = copies
    for file in files:
        content = file.read_bytes()
        file.unlink()  # else a data set that is still in memory would change, too
        file.write_bytes(damage(content))
    for dataset in load_image_dataset(str(path)).values():
        assert np.array_equal(shown(dataset), images)
    assert [len(file.read_bytes()) > 300_000 for file in files] == [True] * 2


def test_without_a_copy_the_images_are_in_memory(copies, images, tmp_path, monkeypatch):
    path, _ = copies
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", path / "train")
    splits = load_image_dataset(str(path))
    assert not splits["train"].cache_files and splits["train"].features["label"].names == NAMES
    for dataset in splits.values():
        assert np.array_equal(shown(dataset), images) and dataset["label"][:] == list(range(100))
    assert len(TaskStream(splits)) == 10


def test_a_copy_that_fails_leaves_nothing(copies, images, monkeypatch):
    path, files = copies
    for file in files[0].parent.iterdir():
        file.unlink()
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    assert np.array_equal(shown(load_image_dataset(str(path))["test"]), images)
    assert {file.suffix for file in files[0].parent.iterdir()} == {".lock"}


def test_a_published_file_that_was_damaged_is_noticed(tmp_path, images, monkeypatch, recwarn):
    path = write_cifar(tmp_path / "cifar", images, list(range(100)))
    content = (path / "test").read_bytes()
    published = {"test": (len(content), hashlib.md5(content).hexdigest())}
    monkeypatch.setattr(cifar100, "FILES", cifar100.FILES | published)
    load_image_dataset(str(path))
    assert not [warning for warning in recwarn if "checksum" in str(warning.message)]
    start = content.index(images[50].transpose(2, 0, 1).tobytes())
    (path / "test").write_bytes(content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :])
    with pytest.warns(UserWarning, match="test' has the size of the published file but not its checksum"):
        load_image_dataset(str(path))


def as_on_the_hub(images):
    names = ClassLabel(names=NAMES)
    features = Features(img=Image(), fine_label=names, coarse_label=ClassLabel(names=NAMES[:20]))
    rows = {"img": [PIL.Image.fromarray(image) for image in images], "fine_label": range(100)}
    data = Dataset.from_dict(rows | {"coarse_label": [label // 5 for label in range(100)]}, features=features)
    return DatasetDict(train=data, test=data)


def parquet(data, path):
    path.mkdir()
    for split, rows in data.items():
        rows.to_parquet(path / f"{split}-00000-of-00001.parquet")


def saved(data, path):
    data.save_to_disk(path)


@pytest.mark.parametrize("write", [parquet, saved])
def test_parquet_folder_and_saved_to_disk(tmp_path, images, write):
    write(as_on_the_hub(images), tmp_path / "cifar100")
    splits = load_image_dataset(str(tmp_path / "cifar100"))
    for dataset in splits.values():
        assert dataset.features["label"].names == NAMES and dataset["label"][:] == list(range(100))
        assert np.array_equal(shown(dataset), images)


class Runs:
    """Pickled, this is a request to run a command."""

    def __init__(self, command, *args):
        self.command = command, args

    def __reduce__(self):
        return self.command


@pytest.mark.parametrize("where", ["meta", "train"])
@pytest.mark.parametrize("hide", [lambda it: it, lambda it: {"data": it}, lambda it: np.array([it], object)])
def test_a_pickle_that_runs_code_is_not_run(tmp_path, images, where, hide):
    path = write_cifar(tmp_path / "cifar", images, list(range(100)))
    harm = tmp_path / "harm"
    for attack in (Runs(os.mkdir, str(harm)), Runs(eval, f"open({str(harm)!r}, 'w')"), Runs(np.save, str(harm), [1])):
        (path / where).write_bytes(pickle.dumps(hide(attack)))
        with pytest.raises(DatasetError, match=f"{where}' is not a file of CIFAR-100: it refers to"):
            load_image_dataset(str(path))
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a file of CIFAR-100: Ran out of input"),
        (python2({"fine_labels": [0]})[:-10], "is not a file of CIFAR-100"),
        (b"PK\x03\x04 an archive", "is not a file of CIFAR-100"),
        (python2([1, 2]), "has no entry 'data'"),
        (python2({"data": np.zeros((2, 3072), np.uint8)}), "has no entry 'fine_labels'"),
        (python2({"data": np.zeros((2, 784), np.uint8), "fine_labels": [0, 1]}), "does not hold an array of images"),
        (python2({"data": np.zeros((2, 3072)), "fine_labels": [0, 1]}), "does not hold an array of images"),
        (python2({"data": [1], "fine_labels": [0]}), "does not hold an array of images"),
        (
            python2({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]}),
            "does not have a label from 0 to 99",
        ),
        (python2({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 100]}), "does not have a label"),
        (python2({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [[0], [1]]}), "does not have a label"),
    ],
)
def test_damaged_files_are_named(tmp_path, images, content, message):
    path = write_cifar(tmp_path / "cifar", images, list(range(100)))
    (path / "train").write_bytes(content)
    with pytest.raises(DatasetError) as error:
        load_image_dataset(str(path))
    assert f"{path}/train' {message}" in str(error.value)


@pytest.mark.slow
def test_real_images(tmp_path):
    """The first 20 test images of CIFAR-100, which the package foolbox carries: one train and test image a class."""
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", tmp_path, "foolbox==3.3.4"]
    try:
        subprocess.run(download, check=True, capture_output=True, text=True, timeout=120)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"foolbox 3.3.4 cannot be downloaded: {error}")
    images, labels = [], []
    with zipfile.ZipFile(next(tmp_path.glob("foolbox-*.whl"))) as wheel:
        for name in sorted(name for name in wheel.namelist() if "/data/cifar100_" in name):
            images.append(np.asarray(PIL.Image.open(BytesIO(wheel.read(name))).convert("RGB")))
            labels.append(int(name.removesuffix(".png").rsplit("_", 1)[1]))
    assert len(images) == 20 and labels[:5] == [49, 33, 72, 51, 71]
    path = write_cifar(tmp_path / "cifar-100-python", np.stack(images), labels)
    splits = load_image_dataset(str(path))
    assert splits["test"]["label"][:] == labels and np.array_equal(shown(splits["test"]), images)
    processor = image_processor_for({"input_size": (3, 224, 224), "crop_pct": 1.0})
    samples = TaskImages(splits["test"], np.arange(100), eval_transform(processor))
    expected = processor([PIL.Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    found = samples.transform.normalize(
        torch.stack([sample["pixels"] for sample in samples.__getitems__(list(range(20)))])
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
