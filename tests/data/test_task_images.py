import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from accelerate import PartialState
from datasets import Image
from tiny_data import labelled, noise
from torch.utils.data import DataLoader, default_collate

from cdl_hf.data import (
    Batches,
    TaskImages,
    TaskStream,
    eval_transform,
    image_processor_for,
    load_image_dataset,
    train_transform,
)
from cdl_hf.data.loaders import TaskLoader, image_loader

PROCESSOR = image_processor_for({"input_size": (3, 16, 16), "crop_pct": 1.0})
TRAIN = train_transform(PROCESSOR)
GPU = torch.device("cuda")  # no tensor is there in these tests


@pytest.fixture
def task(stream_data):
    data = stream_data(6, train=4)
    images = [noise(row) for row in range(24)]
    data["train"] = labelled(data["train"]["label"][:], data["train"].features["label"].names, images)
    stream = TaskStream(data, 3, class_order=[5, 4, 3, 2, 1, 0])
    return stream, stream[1]


def augmented(task, *, transform=TRAIN, seed=1, index=1, epoch=0):
    stream, one = task
    images = TaskImages(one.train, stream.label_to_class_id, transform, seed=seed, task=index)
    images.set_epoch(epoch)
    return images


def pixels(images, order=None, **loader):
    """Pixels by index, (n, 3, H, W), through a loader."""
    found = {}
    for batch in DataLoader(images, batch_size=3, sampler=order or range(len(images)), **loader):
        found |= dict(zip(batch["index"].tolist(), batch["pixels"], strict=True))
    return torch.stack([found[index] for index in range(len(images))])


def small_images(transform, size, mode="RGB", seed=3, count=6):
    view = labelled([0] * count, ["class"], [noise(number, size, mode) for number in range(count)])
    return TaskImages(view, np.zeros(1, dtype=np.int64), transform, seed=seed)


def values(images, **loader):
    """Pixel values by index as [`Batches`] has them, (n, 3, H, W)."""
    batches = Batches(DataLoader(images, batch_size=4, **loader), images)
    return torch.cat([batch["pixel_values"] for batch in batches])


def normalized(sample):
    return TRAIN.normalize(sample["pixels"])


def test_samples(task):
    stream, one = task
    images = TaskImages(one.test, stream.label_to_class_id, eval_transform(PROCESSOR))
    assert len(images) == 4 and images.labels.tolist() == [3, 2, 3, 2]
    sample = images[1]
    assert sample["labels"] == 2 and sample["index"] == 1 and one.test[1]["label"] == 3
    expected = PROCESSOR(one.test[1]["image"], return_tensors="pt")["pixel_values"][0]
    assert sample["pixels"].dtype == torch.uint8
    torch.testing.assert_close(normalized(sample), expected, rtol=0, atol=1e-6)
    batches = Batches(DataLoader(images, batch_size=4), images)
    batch = next(iter(batches))
    assert len(batches) == 1 and batch.keys() == {"pixel_values", "labels", "index"}
    torch.testing.assert_close(batch["pixel_values"][1], expected, rtol=0, atol=1e-6)
    assert batch["pixel_values"].shape == (4, 3, 16, 16) and batch["labels"].tolist() == [3, 2, 3, 2]
    assert batch["labels"].dtype == torch.int64


def test_every_row_shows_its_own_image(task):
    stream, one = task
    images = TaskImages(one.train, stream.label_to_class_id, eval_transform(PROCESSOR))
    for position in (5, 0, 3):
        row = [row for row, label in enumerate(list(range(6)) * 4) if label in (2, 3)][position]
        expected = PROCESSOR(noise(row), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(normalized(images[position]), expected, rtol=0, atol=1e-6)


def test_augmentation_depends_on_seed_task_epoch_and_index_alone(task):
    reference = pixels(augmented(task))
    torch.rand(17)
    assert torch.equal(pixels(augmented(task)), reference), "randomness used before"
    assert torch.equal(pixels(augmented(task), order=[7, 2, 5, 0, 1, 4, 3, 6]), reference), "order"
    assert torch.equal(pixels(augmented(task), num_workers=2), reference), "workers"
    assert torch.equal(pixels(augmented(task), num_workers=2, order=[7, 2, 5, 0, 1, 4, 3, 6]), reference), "both"
    shard = augmented(task)
    assert torch.equal(torch.stack([shard[index]["pixels"] for index in (6, 1)]), reference[[6, 1]]), "process"
    for change in ({"seed": 2}, {"index": 2}, {"epoch": 1}):
        other = pixels(augmented(task, **change))
        assert not any(torch.equal(a, b) for a, b in zip(other, reference, strict=True)), change


def test_augmentations_of_equal_images_differ(stream_data):
    stream = TaskStream(stream_data(2, train=20), 1)
    found = pixels(augmented((stream, stream[0])))
    assert len({values.numpy().tobytes() for values in found}) == 40


def test_epochs_reach_workers_that_stay(task):
    expected = []
    for epoch in range(2):
        expected.append(pixels(augmented(task, epoch=epoch)))
    images = augmented(task)
    loader = DataLoader(images, batch_size=8, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        images.set_epoch(epoch)
        assert torch.equal(next(iter(loader))["pixels"], expected[epoch])
    # a loader of a GPU has a copy of the data set; the epoch of the original reaches its workers, too
    expected = []
    small = small_images(TRAIN, (14, 14), count=8)
    for epoch in range(2):
        small.set_epoch(epoch)
        expected.append(values(small))
    batches = Batches(DataLoader(small.for_device(GPU), batch_size=8, num_workers=1, persistent_workers=True), small)
    for epoch in range(2):
        small.set_epoch(epoch)
        assert torch.equal(next(iter(batches))["pixel_values"], expected[epoch])


def test_global_generator_is_left_alone(task):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    images = augmented(task)
    images[0], images[1]
    assert torch.equal(torch.rand(3), expected)

    def fails(image):
        torch.rand(4)
        raise RuntimeError("a transform")

    failing = train_transform(PROCESSOR)
    failing.pixels = fails
    torch.manual_seed(5)
    with pytest.raises(RuntimeError, match="a transform"):
        augmented(task, transform=failing)[0]
    assert torch.equal(torch.rand(3), expected)


def test_without_seed_a_random_transform_is_random(task):
    images = augmented(task, seed=None)
    assert not torch.equal(images[0]["pixels"], images[0]["pixels"])


def test_pickles_for_workers_that_are_spawned(task):
    images = augmented(task, epoch=3)
    assert torch.equal(pixels(pickle.loads(pickle.dumps(images))), pixels(images))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_are_opened_as_the_processor_takes_them(tmp_path, mode):
    """Training images equal what the processor makes of opened files: every mode, transparency and orientation."""
    suffix = {"CMYK": "jpg"}.get(mode, "png")
    image = noise(4, (40, 30), "RGBA").convert(mode)
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / f"0.{suffix}", exif=exif)
    image.save(tmp_path / "a" / f"1.{suffix}", **({"transparency": 5} if mode in ("L", "P") else {}))
    data = load_image_dataset(str(tmp_path))
    for split in data.values():
        images = TaskImages(split, np.arange(1), eval_transform(PROCESSOR))
        file = split.cast_column("image", Image(decode=False))[0]["image"]["path"]
        opened = PIL.ImageOps.exif_transpose(PIL.Image.open(file))
        expected = PROCESSOR(opened, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(normalized(images[0]), expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux shows them")
@pytest.mark.filterwarnings("ignore:10 of 10 tasks have only one class")
def test_images_of_a_test_open_no_file(stream_data):
    """A stream of a thousand tasks must not need a thousand open files, of which a process may have 1,024."""
    stream = TaskStream(stream_data(10), 10)
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [TaskImages(task.test, stream.label_to_class_id, eval_transform(PROCESSOR)) for task in stream]
    assert len(list(Path("/proc/self/fd").iterdir())) == before and len(kept) == 10


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("input_size", "size"), [((3, 56, 56), (32, 32)), ((3, 48, 64), (31, 20))])
def test_small_images_are_cropped_on_a_gpu_to_the_same_bits(mode, interpolation, input_size, size):
    """The same crops and flips for the same (seed, task, epoch, index), and the same pixels."""
    processor = image_processor_for({"input_size": input_size, "interpolation": interpolation})
    images = small_images(train_transform(processor), size, mode, count=30)
    whole = images.for_device(GPU)
    seen = []
    for epoch in range(3):
        images.set_epoch(epoch)
        expected = values(images)
        assert torch.equal(values(whole), expected)
        assert torch.equal(values(whole, num_workers=2), expected)
        seen.append(expected)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("size", [(32, 32), (31, 20), (3, 77), (80, 80)])
@pytest.mark.parametrize(
    "more",
    [
        {"crop_pct": 0.9},
        {"crop_pct": 0.95, "interpolation": "bilinear"},
        {"crop_pct": 1.0, "input_size": (3, 160, 165)},
        {"crop_pct": 0.9, "crop_mode": "squash"},
        {"crop_pct": 1.2},  # a black border
    ],
)
def test_small_images_are_resized_on_a_gpu_to_the_same_bits_in_evaluation(size, more):
    images = small_images(eval_transform(image_processor_for({"input_size": (3, 160, 160), **more})), size, seed=None)
    whole = images.for_device(GPU)
    assert whole.__getitems__([0, 1])[0].keys() == {"whole", "labels", "index"}
    assert torch.equal(values(whole), values(images))


def test_a_batch_of_cifar_is_small():
    images = small_images(train_transform(image_processor_for({"input_size": (3, 224, 224)})), (32, 32))
    samples = images.for_device(GPU).__getitems__([0, 1, 2, 3])
    batch = default_collate(samples)
    assert batch.keys() == {"whole", "crop", "labels", "index"}
    assert batch["whole"].dtype == torch.uint8 and batch["whole"].shape == (4, 3, 32, 32)
    assert sum(tensor.nbytes for tensor in batch.values()) / 4 < 3200


@pytest.mark.parametrize("transform", [TRAIN, eval_transform(PROCESSOR)])
def test_other_images_arrive_as_pixels(transform):
    """Above half the size in one dimension, of different sizes, after small ones in a batch, or alone in it."""
    sizes = [(8, 8), (8, 8), (8, 9), (40, 30), (8, 7)]
    view = labelled([0] * 5, ["class"], [noise(number, size) for number, size in enumerate(sizes)])
    images = TaskImages(view, np.zeros(1, dtype=np.int64), transform, seed=3)
    for_gpu = images.for_device(GPU)
    assert all("whole" in sample for sample in for_gpu.__getitems__([0, 1]))
    for indices in ([0], [0, 1, 2, 3], [3, 0], [0, 4], [4, 3, 2, 1, 0]):
        found = for_gpu.__getitems__(indices)
        assert [sample["index"] for sample in found] == indices
        for sample, expected in zip(found, images.__getitems__(indices), strict=True):
            assert torch.equal(sample["pixels"], expected["pixels"])
    nearest = train_transform(image_processor_for({"input_size": (3, 16, 16), "interpolation": "nearest"}))
    assert "pixels" in small_images(nearest, (8, 8)).for_device(GPU).__getitems__([0, 1])[0]


def test_many_small_jpegs_are_not_open_together(tmp_path):
    resource = pytest.importorskip("resource", reason="limits open files as Unix does")
    for number in range(120):
        (tmp_path / "a").mkdir(exist_ok=True)
        noise(number, (8, 8), "RGB").save(tmp_path / "a" / f"{number}.jpg")
    images = TaskImages(load_image_dataset(str(tmp_path))["train"], np.arange(1), TRAIN, seed=0)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limit[1]))
    try:
        assert len(images.for_device(GPU).__getitems__(list(range(len(images))))) > 64
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@pytest.mark.parametrize(("device", "key"), [("cuda", "whole"), ("cpu", "pixels")])
def test_loaders_of_a_gpu_alone_leave_images_small(device, key):
    PartialState(cpu=True)
    accelerator = SimpleNamespace(device=torch.device(device), split_batches=True, process_index=0, num_processes=1)
    images = small_images(TRAIN, (8, 8))
    assert key in image_loader(accelerator, images, 2, 0).dataset.__getitems__([0, 1])[0]
    tasks = TaskLoader(accelerator, [images, images], 2, 0)
    assert key in tasks._batches.loader.dataset.__getitems__([(1, 0), (1, 1)])[0] and tasks.tasks == [images, images]
