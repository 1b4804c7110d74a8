"""Augmentation of drawings and of photographs, in batches on their device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.transforms import InterpolationMode, v2

GROUPS = 64  # of the photographs that are augmented at once; each shares its operations
TRIES = 10  # to draw a part that fits into the image, as in torchvision


def augment_drawings(images: Tensor, strength: float) -> Tensor:
    """Random affine map, distortion, mirroring, thickening and erasing of images (B, 3, S, S) in [0, 1].

    One bicubic resampling rotates, scales, stretches, shears, shifts, mirrors and smoothly distorts them. Afterwards
    strokes may be thickened and parts erased. Each image has its own random numbers.
    """
    n, size, device = len(images), images.shape[-1], images.device

    def uniform(low, high, *shape):
        return torch.rand(n, *shape, device=device) * (high - low) + low

    angle, shear = strength * uniform(-0.26, 0.26), strength * uniform(-0.2, 0.2)  # 15 degrees
    width = torch.exp(strength * uniform(-0.1, 0.3))  # above 1 shrinks
    height = width * torch.exp(strength * uniform(-0.2, 0.2))
    mirror = 1 - 2 * (torch.rand(n, device=device) < 0.5).float() * (strength > 0)
    cos, sin, shift = angle.cos(), angle.sin(), strength * uniform(-0.12, 0.12, 2)
    rows = [width * (cos + shear * sin) * mirror, width * (shear * cos - sin), shift[:, 0]]
    rows += [height * sin * mirror, height * cos, shift[:, 1]]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(images.shape), align_corners=False)
    bumps = strength * 0.04 * torch.randn(n, 2, 5, 5, device=device)
    bumps = F.interpolate(bumps, size=(size, size), mode="bicubic", align_corners=True)
    images = F.grid_sample(images, grid + bumps.permute(0, 2, 3, 1), mode="bicubic", align_corners=False).clamp(0, 1)

    thicker = uniform(0, 1, 1, 1, 1) * (torch.rand(n, 1, 1, 1, device=device) < 0.25 * strength)
    images = images + thicker * (F.max_pool2d(images, 3, 1, 1) - images)

    position = torch.arange(size, device=device) / size
    far = [(position - uniform(0, 1, 1)).abs() > uniform(0.07, 0.22, 1) for _ in range(2)]
    kept = torch.rand(n, device=device) > 0.25 * strength
    return images * (far[0][:, None, :, None] | far[1][:, None, None, :] | kept[:, None, None, None])


class PhotographAugmentation:
    """A random resized crop and flip of each image, then RandAugment and random erasing.

    torchvision's RandAugment and RandomErasing draw once for all images that they get. They get groups, [`GROUPS`] of
    them in each call: far fewer kernels than an image at a time, at the price of images with equal operations, which
    [`TrainingBatches`] spreads over several batches.

    Args:
        size: Side s of the result, in pixels.
        mean: Of the pixels in each channel; fills what an operation moves in or erases.
        strength: 1 for crops of at least a quarter of the image, RandAugment's usual magnitude 9, and erasing in a
            quarter of the groups; 0 for the whole images.
    """

    def __init__(self, size: int, mean: tuple[float, ...], strength: float = 1.0):
        self.size, self.strength = size, strength
        self.smallest = max(1 - 0.75 * strength, 0.05)  # share of the image
        fill = list(mean)
        magnitude = min(round(9 * strength), 30)
        operations = [v2.RandAugment(magnitude=magnitude, interpolation=InterpolationMode.BILINEAR, fill=fill)]
        operations += [v2.RandomErasing(min(0.25 * strength, 1.0), value=fill)]
        self.operations = v2.Compose(operations)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (n, 3, S, S) -> float (n, 3, s, s) in [0, 1]."""
        images = self.crop(pixels.float() / 255)
        if not self.strength:
            return images
        groups = images.split(math.ceil(len(images) / GROUPS))
        return torch.cat([self.operations(group) for group in groups]).clamp_(0, 1)

    def crop(self, images: Tensor) -> Tensor:
        """A random part of each image (n, 3, S, S), of random area and ratio, resized to s and perhaps mirrored.

        The parts are distributed as those of torchvision's RandomResizedCrop; each output pixel averages four bilinear
        samples (`roi_align`).
        """
        n, side, device = len(images), images.shape[-1], images.device
        tries = torch.rand(2, TRIES, n, device=device)
        area = self.smallest + (1 - self.smallest) * tries[0]
        ratio = torch.exp((2 * tries[1] - 1) * math.log(4 / 3) * min(self.strength, 1.0))
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()])
        first = (sides <= 1).all(0).int().argmax(0)  # that fits into the image
        width, height = sides.gather(1, first.expand(2, 1, n))[:, 0].clamp(max=1)
        draws = torch.rand(3, n, device=device)
        left, top = draws[0] * (1 - width), draws[1] * (1 - height)
        corners = torch.stack([left, top, left + width, top + height], 1) * side
        boxes = torch.cat([torch.arange(n, device=device)[:, None], corners], 1)
        parts = roi_align(images, boxes, self.size, sampling_ratio=2, aligned=True)
        mirrored = (draws[2] < 0.5 * (self.strength > 0))[:, None, None, None]
        return torch.where(mirrored, parts.flip(-1), parts)
