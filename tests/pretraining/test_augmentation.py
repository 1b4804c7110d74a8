import pytest
import torch
import torchvision

from cdl_hf.pretraining.augmentation import PhotographAugmentation, augment_drawings

MEAN = (0.5, 0.4, 0.3)


def test_drawings():
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(augment_drawings(images, 0.0), images, atol=1e-4, rtol=0)
    changed = augment_drawings(images, 1.0)
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    assert not torch.allclose(changed, images, atol=0.1)


def smooth(count: int, size: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 4)
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (255 * images).round().to(torch.uint8)


def test_photographs_without_strength_are_resized():
    pixels = smooth(4, 24)
    small = PhotographAugmentation(16, MEAN, 0.0)(pixels)
    expected = torch.nn.functional.interpolate(pixels.float() / 255, size=(16, 16), mode="bilinear", antialias=True)
    assert (small - expected).abs().max() < 0.02


def test_photographs_differ_and_stay_in_range():
    pixels = smooth(1, 24).expand(40, -1, -1, -1)
    images = PhotographAugmentation(16, MEAN)(pixels)
    assert images.shape == (40, 3, 16, 16) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert len({image.numpy().tobytes() for image in images}) == 40


def test_crops_are_distributed_as_torchvision_draws_them():
    """Seen in an image of its own coordinates: the corners of a crop are its smallest and largest values."""
    size, count = 64, 2000
    line = (torch.arange(size) + 0.5) / size
    image = torch.stack([line.expand(size, size), line[:, None].expand(size, size), torch.zeros(size, size)])
    crops = PhotographAugmentation(32, MEAN).crop(image.expand(count, -1, -1, -1))
    x, y = crops[:, 0].flatten(1), crops[:, 1].flatten(1)
    width, height = (each.amax(1) - each.amin(1) for each in (x, y))
    theirs = torchvision.transforms.RandomResizedCrop(32, scale=(0.25, 1.0))
    draws = torch.tensor([theirs.get_params(image, theirs.scale, theirs.ratio)[2:] for _ in range(count)]) / size
    for ours, expected in ((width, draws[:, 1]), (height, draws[:, 0]), (width * height, draws.prod(1))):
        assert ours.mean().item() * 32 / 31 == pytest.approx(expected.mean().item(), abs=0.025)
        assert ours.std().item() == pytest.approx(expected.std().item(), abs=0.02)
    mirrored = x[:, 0] > x[:, -1]
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.04)
