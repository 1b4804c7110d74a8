"""Resizing of batches on their device, to the same bits to which torchvision resizes bytes on a CPU."""

import functools

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode

from ..models.precision import in_full_precision


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - distance, 0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -1/2, as torch and Pillow have it with antialias."""
    a, x = -0.5, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


# Interpolation -> weight of a pixel by its distance, and the distance from which it is 0
FILTERS = {InterpolationMode.BILINEAR: (_triangle, 1.0), InterpolationMode.BICUBIC: (_cubic, 2.0)}


def resize_crops(images: Tensor, crops: Tensor, size: tuple[int, int], interpolation: InterpolationMode) -> Tensor:
    """A part of each image, resized and perhaps flipped.

    Args:
        images: uint8 (B, C, h, w), at most as high and wide as the result.
        crops: int64 (B, 5): top, left, height, width, and 1 to flip or 0.
        size: H, W.
        interpolation: One of `FILTERS`.

    Returns:
        Whole numbers from 0 to 255 in float32, (B, C, H, W).
    """
    top, left, height, width, flip = crops[:, :, None].unbind(1)  # each (B, 1)
    h, w = images.shape[2:]
    # the part at the upper left; what lies below and beside it has the weight 0
    y = (top + torch.arange(h, device=crops.device)).clamp(max=h - 1)
    x = (left + torch.arange(w, device=crops.device)).clamp(max=w - 1)
    parts = images.take_along_dim(y[:, None, :, None], 2).take_along_dim(x[:, None, None, :], 3)
    rows = _matrices(h, size[0], interpolation, images.device)[height[:, 0]]
    columns = _matrices(w, size[1], interpolation, images.device)[width[:, 0]]
    columns = torch.where(flip[:, :, None] > 0, columns.flip(1), columns)
    return _resample(parts, rows[:, None], columns[:, None])


def resize_and_crop_center(
    images: Tensor, resized: tuple[int, int], size: tuple[int, int], interpolation: InterpolationMode
) -> Tensor:
    """The middle of each image, resized; black where the resized image does not reach.

    Args:
        images: uint8 (B, C, h, w).
        resized: Height and width of the whole image once resized.
        size: H, W, the part of it that is kept.
        interpolation: One of `FILTERS`.

    Returns:
        Whole numbers from 0 to 255 in float32, (B, C, H, W).
    """
    rows, columns = (
        _middle_matrix(length, whole, kept, interpolation, images.device)
        for length, whole, kept in zip(images.shape[2:], resized, size, strict=True)
    )
    return _resample(images, rows, columns)


def resize_matrix(length: int, size: int, interpolation: InterpolationMode) -> Tensor:
    """Weights (size, length) with which torch resizes a line of `length` bytes to `size`, with antialias.

    torch rounds them to 16 bits, of which one power of two is the unit, and every line of the result to bytes, first
    across, then down. With such weights and bytes float32 has no rounding of its own where images do not shrink: sums
    have less than 24 bits in any order.
    """
    weight_at, reach = FILTERS[interpolation]
    scale = length / size
    stretch = max(scale, 1.0)  # an image that shrinks is averaged over more pixels
    center = scale * (np.arange(size)[:, None] + 0.5)
    pixel = np.arange(length)[None]
    first = np.maximum((center - reach * stretch + 0.5).astype(int), 0)
    end = np.minimum((center + reach * stretch + 0.5).astype(int), length)
    weights = weight_at(np.abs((pixel - center + 0.5) * (1 / stretch)))
    weights = np.where((first <= pixel) & (pixel < end), weights, 0)
    weights /= weights.sum(1, keepdims=True)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**15:
        bits += 1
    units = np.trunc(weights * 2**bits + np.where(weights < 0, -0.5, 0.5))
    return torch.from_numpy(units / 2**bits).float()


@functools.lru_cache(maxsize=8)
def _matrices(longest: int, size: int, interpolation: InterpolationMode, device: torch.device) -> Tensor:
    """The weights for each length up to the longest, (longest + 1, size, longest); none for length 0."""
    matrices = torch.zeros(longest + 1, size, longest)
    for length in range(1, longest + 1):
        matrices[length, :, :length] = resize_matrix(length, size, interpolation)
    return matrices.to(device)


@functools.lru_cache(maxsize=8)
def _middle_matrix(
    length: int, resized: int, size: int, interpolation: InterpolationMode, device: torch.device
) -> Tensor:
    """The weights of the middle `size` of `resized` pixels, (size, length); 0 for those outside."""
    start = int((resized - size) / 2)  # rounds as the processor does, which leaves a larger image more at the end
    kept = torch.zeros(size, length)
    inside = resize_matrix(length, resized, interpolation)[max(start, 0) : max(start, 0) + size]
    kept[max(-start, 0) : max(-start, 0) + len(inside)] = inside
    return kept.to(device)


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 (B, C, h, w) by weights (..., H, h) and (..., W, w) -> whole numbers (B, C, H, W) in float32."""
    with in_full_precision(images):  # TF32 has fewer bits than the weights
        across = _to_bytes(images.float() @ columns.mT)
        return _to_bytes(rows @ across)


def _to_bytes(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)
