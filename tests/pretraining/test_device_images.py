import pytest
import torch
from tiny_data import labelled, noise

from cdl_hf.data import eval_transform, image_processor_for
from cdl_hf.pretraining import device_images
from cdl_hf.pretraining.device_images import DeviceImages, TrainingBatches


@pytest.fixture(scope="module")
def view():
    return labelled([0, 1, 2] * 5, ["a", "b", "c"], [noise(seed, (20, 12), "RGB") for seed in range(15)])


@pytest.fixture(scope="module")
def images(view):
    return DeviceImages(view, 16, torch.device("cpu"))


def test_pixels_are_those_of_the_eval_transform(view, images):
    transform = eval_transform(image_processor_for({"input_size": (3, 16, 16), "crop_pct": 1.0}, "none"))
    pixels, labels = (torch.cat(each) for each in zip(*images.batches(4), strict=True))
    torch.testing.assert_close(pixels, torch.stack([transform(image) for image in view["image"]]))
    assert labels.tolist() == view["label"][:]


def epoch(batches, number, seed=0):
    return [(pixels.clone(), labels.tolist()) for pixels, labels in batches.epoch(seed, number)]


def rows(images, batches):
    """Positions of the images of unchanged batches, batch by batch."""
    known = {image.numpy().tobytes(): row for row, image in enumerate(images.pixels)}
    return [[known[image.numpy().tobytes()] for image in pixels] for pixels, _ in batches]


def test_an_epoch_is_a_new_order_of_whole_batches(images):
    batches = TrainingBatches(images, lambda pixels: pixels, 4)
    first, again, second = (rows(images, epoch(batches, number)) for number in (0, 0, 1))
    assert first == again != second
    assert len(batches) == 3 and [len(batch) for batch in first] == [4, 4, 4]
    assert len(set(sum(first, []))) == 12


def test_processes_share_an_epoch(images):
    parts = [TrainingBatches(images, lambda pixels: pixels, 2, rank, 3) for rank in range(3)]
    seen = [row for part in parts for batch in rows(images, epoch(part, 5)) for row in batch]
    assert len(set(seen)) == len(seen) == 12
    shares = [row.item() for rank in range(3) for _, labels in images.batches(2, rank, 3) for row in labels]
    assert sorted(shares) == sorted(images.labels.tolist())


def test_images_augmented_together_are_mixed_over_batches(images, monkeypatch):
    sizes = []

    def augment(pixels):
        sizes.append(len(pixels))
        return torch.arange(len(pixels))

    batches = TrainingBatches(images, augment, 4)
    groups = [pixels // 4 for pixels, _ in epoch(batches, 0)]
    assert sizes == [12]
    assert any(len(group.unique()) > 1 for group in groups)
    monkeypatch.setattr(device_images, "MOST_VALUES", 1)
    sizes.clear()
    epoch(TrainingBatches(images, augment, 4), 0)
    assert sizes == [4, 4, 4]


def test_augmentation_is_the_same_in_a_resumed_epoch(images):
    batches = TrainingBatches(images, lambda pixels: pixels + torch.rand(len(pixels), 1, 1, 1), 4)
    first = epoch(batches, 3)
    torch.rand(7)
    for (pixels, labels), (other, same) in zip(first, epoch(batches, 3), strict=True):
        assert torch.equal(pixels, other) and labels == same
