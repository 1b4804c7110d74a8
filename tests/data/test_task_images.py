import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from datasets import Image
from tiny_data import labelled, noise
from torch.utils.data import DataLoader

from cdl_hf.data import (
    Batches,
    TaskImages,
    TaskStream,
    eval_transform,
    image_processor_for,
    load_image_dataset,
    train_transform,
)

PROCESSOR = image_processor_for({"input_size": (3, 16, 16), "crop_pct": 1.0})
TRAIN = train_transform(PROCESSOR)


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
