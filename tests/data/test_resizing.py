"""Resizing on a device: the same bits as torchvision's, which loader processes use."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cdl_hf.data.resizing import FILTERS, resize_and_crop_center, resize_crops

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]
SIZES = [(32, 32), (28, 28), (64, 48), (1, 1), (2, 7), (1, 50), (33, 224)]


def batch(size, kind="noise", count=3):
    """uint8 (count, 3, h, w); black and white pixels drive bicubic sums beyond bytes."""
    values = np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    values = np.where(values > 127, 255, 0).astype(np.uint8) if kind == "black and white" else values
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def all_crops(size, count):
    """Random crops (count, 5), among them the whole image and a single pixel."""
    generator = np.random.default_rng(1)
    crops = [[0, 0, *size, 0], [size[0] - 1, size[1] - 1, 1, 1, 1]]
    while len(crops) < count:
        height, width = generator.integers(1, size[0] + 1), generator.integers(1, size[1] + 1)
        corner = generator.integers(0, size[0] - height + 1), generator.integers(0, size[1] - width + 1)
        crops.append([*corner, height, width, generator.integers(2)])
    return torch.tensor(np.array(crops, dtype=np.int64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("interpolation", list(FILTERS))
@pytest.mark.parametrize("kind", ["noise", "black and white"])
@pytest.mark.parametrize("size", SIZES)
def test_crops_have_torchvisions_bits(size, kind, interpolation, device):
    images, crops = batch(size, kind, 40), all_crops(size, 40)
    # as a training step has it on a GPU: products in fewer bits would show
    torch.backends.cuda.matmul.allow_tf32, before = True, torch.backends.cuda.matmul.allow_tf32
    try:
        with torch.autocast(device, dtype=torch.bfloat16):
            found = resize_crops(images.to(device), crops.to(device), (224, 224), interpolation).cpu()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert found.dtype == torch.float32
    for image, crop, ours in zip(images, crops.tolist(), found, strict=True):
        theirs = F.resized_crop(image, *crop[:4], size=[224, 224], interpolation=interpolation, antialias=True)
        assert torch.equal(ours, (theirs.flip(-1) if crop[4] else theirs).float()), crop


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("interpolation", list(FILTERS))
@pytest.mark.parametrize("resized", [(224, 224), (248, 255), (251, 300)])
def test_centers_have_torchvisions_bits(resized, interpolation, device):
    for size in SIZES:
        images = batch(size, "black and white")
        found = resize_and_crop_center(images.to(device), resized, (224, 200), interpolation).cpu()
        whole = torch.stack([F.resize(image, list(resized), interpolation, antialias=True) for image in images])
        top, left = (resized[0] - 224) // 2, (resized[1] - 200) // 2
        assert torch.equal(found, whole[:, :, top : top + 224, left : left + 200].float()), size


def test_what_the_resized_image_does_not_reach_is_black():
    image = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    found = resize_and_crop_center(image, (5, 8), (8, 8), InterpolationMode.BICUBIC)
    assert found[0, 0, :, 0].tolist() == [0, 200, 200, 200, 200, 200, 0, 0]


@pytest.mark.parametrize("interpolation", list(FILTERS))
def test_smaller_results_have_torchvisions_bits(interpolation):
    """An antialiased image has more pixels under the filter than an enlarged one."""
    image = batch((64, 60))
    found = resize_and_crop_center(image, (32, 40), (32, 40), interpolation)
    assert torch.equal(found, F.resize(image, [32, 40], interpolation, antialias=True).float())
