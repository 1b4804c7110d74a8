"""Transforms from images to tensors: the image processor of a model for evaluation, and augmentation for training."""

import math
from abc import ABC, abstractmethod
from typing import cast

import numpy as np
import PIL.Image
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers import CLIPImageProcessor
from transformers.image_utils import SizeDict, pil_torch_interpolation_mapping

from .decoding import as_rgb
from .resizing import FILTERS, resize_and_crop_center, resize_crops

# timm's names of interpolations -> those that work on tensors
INTERPOLATIONS = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "random": PIL.Image.Resampling.BICUBIC,
}


def image_processor_for(pretrained_cfg: dict, normalization: str = "backbone") -> CLIPImageProcessor:
    """Image processor equivalent to the evaluation transform of a timm backbone; it loads without timm.

    Args:
        pretrained_cfg: timm's description of the weights: `input_size`, `interpolation`, `crop_pct`, `crop_mode`,
            `mean`, `std`; missing entries have timm's defaults. Override with `cfg | {"crop_pct": 1.0}`. Interpolation
            "random" (timm trains with one of two at random) becomes bicubic. If the input is not square, the shorter
            side of an image is resized to the longer side of the input; proportions are kept unless `crop_mode` is
            "squash".
        normalization: "backbone" for the mean and std of the weights, "none" for pixels in [0, 1].

    Raises:
        ValueError: an entry is unknown.
    """
    if normalization not in ("backbone", "none"):
        raise ValueError(f"normalization must be backbone or none, got {normalization!r}")
    _, height, width = pretrained_cfg.get("input_size", (3, 224, 224))
    crop_pct = pretrained_cfg.get("crop_pct", 0.875)
    crop_mode = pretrained_cfg.get("crop_mode", "center")
    interpolation = pretrained_cfg.get("interpolation", "bicubic")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}")
    if crop_mode == "center":
        size = {"shortest_edge": math.floor(max(height, width) / crop_pct)}
    elif crop_mode == "squash":
        size = {"height": math.floor(height / crop_pct), "width": math.floor(width / crop_pct)}
    else:
        raise ValueError(f"crop_mode must be center or squash, got {crop_mode!r}")
    return CLIPImageProcessor(
        do_convert_rgb=True,
        do_resize=True,
        size=size,
        resample=INTERPOLATIONS[interpolation],
        do_center_crop=True,
        crop_size={"height": height, "width": width},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=normalization == "backbone",
        image_mean=list(pretrained_cfg.get("mean", (0.485, 0.456, 0.406))),
        image_std=list(pretrained_cfg.get("std", (0.229, 0.224, 0.225))),
    )


def evaluation_of(processor: CLIPImageProcessor) -> dict:
    """What [`image_processor_for`] makes the processor from, in the words of timm's `pretrained_cfg`.

    Raises:
        ValueError: timm has no word for its interpolation.
    """
    crop, size = processor.crop_size, processor.size
    names = {resampling: name for name, resampling in INTERPOLATIONS.items() if name != "random"}
    if processor.resample not in names:
        raise ValueError(f"resample is {processor.resample}, but backbones have one of {', '.join(names.values())}")
    if size.get("shortest_edge"):
        mode, side, resized = "center", max(crop["height"], crop["width"]), size["shortest_edge"]
    else:
        mode, side, resized = "squash", crop["height"], size["height"]
    share = side / resized
    if math.floor(side / share) != resized:  # by rounding
        share = math.nextafter(share, 0)
    scale = 255 * processor.rescale_factor  # timm's pixels are from 0 to 1
    return {
        "input_size": (3, crop["height"], crop["width"]),
        "interpolation": names[processor.resample],
        "crop_pct": share,
        "crop_mode": mode,
        "mean": tuple(value / scale for value in (processor.image_mean if processor.do_normalize else [0.0] * 3)),
        "std": tuple(value / scale for value in (processor.image_std if processor.do_normalize else [1.0] * 3)),
    }


def eval_transform(processor: CLIPImageProcessor) -> "EvalTransform":
    """PIL image -> float tensor (3, H, W): equal to the processor's `pixel_values`, but several times faster.

    Its two steps are `pixels`, PIL image -> uint8 tensor (3, H, W), and `normalize`, which also takes batches.
    """
    return EvalTransform(processor)


def train_transform(
    processor: CLIPImageProcessor,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    horizontal_flip: float = 0.5,
) -> "TrainTransform":
    """PIL image -> float tensor (3, H, W): a random resized crop, resampled and normalized as in evaluation.

    Its two steps are `pixels` and `normalize`, as in [`eval_transform`]. A JPEG that is not decoded yet may be decoded
    at a fraction of its size if the crop needs no more.

    Args:
        processor: output of `image_processor_for`.
        crop_scale: range of the crop's area relative to the image.
        crop_ratio: range of the crop's aspect ratio relative to that of the input.
        horizontal_flip: probability of a horizontal flip.
    """
    return TrainTransform(processor, crop_scale, crop_ratio, horizontal_flip)


class _Transform(ABC):
    """A transform in two steps: pixels of an image, then their normalization.

    The first can be divided, too: `whole` in a loader's process, then `resize` of a batch on its device.

    Args:
        processor: output of `image_processor_for`.

    Attributes:
        size: H, W of the result.
    """

    def __init__(self, processor: CLIPImageProcessor):
        self.size = (processor.crop_size["height"], processor.crop_size["width"])
        self.interpolation = pil_torch_interpolation_mapping[processor.resample]
        self.normalize = _Normalize(processor)

    @abstractmethod
    def pixels(self, image: PIL.Image.Image) -> torch.Tensor:
        """PIL image -> uint8 tensor (3, H, W)."""

    @abstractmethod
    def whole(self, image: PIL.Image.Image) -> dict[str, torch.Tensor]:
        """PIL image -> `whole`, uint8 (3, h, w), and in training `crop`, (5,), drawn as `pixels` draws it."""

    @abstractmethod
    def resize(self, whole: torch.Tensor, crop: torch.Tensor) -> torch.Tensor:
        """Batches of what `whole` returns -> the values of `pixels`, float32 (B, 3, H, W), in every bit.

        This holds for an x86 processor with AVX2 or an ARM one, where torchvision resizes bytes without floats.
        """

    def can_be_whole(self, size: tuple[int, int]) -> bool:
        """Whether `whole` takes images of a width and height: of at most half the result's.

        Of larger ones little less would travel, and `resize` would need matrices for each of many sizes.
        """
        return 2 * size[0] <= self.size[1] and 2 * size[1] <= self.size[0] and self.interpolation in FILTERS

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        return self.normalize(self.pixels(image))


class EvalTransform(_Transform):
    def __init__(self, processor: CLIPImageProcessor):
        super().__init__(processor)
        self.processor = processor

    def pixels(self, image: PIL.Image.Image) -> torch.Tensor:
        pixels = self._resized(self._middle(image))
        # torchvision's own center crop rounds odd margins the other way
        return self.processor.center_crop(pixels, cast(SizeDict, self.processor.crop_size)).expand(3, -1, -1)

    def whole(self, image: PIL.Image.Image) -> dict[str, torch.Tensor]:
        return {"whole": self._middle(image).expand(3, -1, -1)}

    def resize(self, whole: torch.Tensor, crop: torch.Tensor | None = None) -> torch.Tensor:
        height, width = self._resized(torch.empty(1, *whole.shape[2:], device="meta")).shape[1:]
        return resize_and_crop_center(whole, (height, width), self.size, self.interpolation)

    def _middle(self, image: PIL.Image.Image) -> torch.Tensor:
        pixels = _to_tensor(image)
        return _middle(pixels) if cast(SizeDict, self.processor.size).shortest_edge else pixels

    def _resized(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.processor.resize(pixels, cast(SizeDict, self.processor.size), self.processor.resample)


class TrainTransform(_Transform):
    def __init__(
        self,
        processor: CLIPImageProcessor,
        crop_scale: tuple[float, float],
        crop_ratio: tuple[float, float],
        horizontal_flip: float,
    ):
        super().__init__(processor)
        width_over_height = self.size[1] / self.size[0]
        crop_ratio = (crop_ratio[0] * width_over_height, crop_ratio[1] * width_over_height)
        self.crop = v2.RandomResizedCrop(self.size, crop_scale, crop_ratio, self.interpolation, antialias=True)
        self.horizontal_flip = horizontal_flip

    def pixels(self, image: PIL.Image.Image) -> torch.Tensor:
        # functions: on small images, calling the modules of v2 would cost more than the work itself
        part = _shrink(image, self.crop.make_params([image]), self.crop.size)
        pixels = F.resized_crop(
            _to_tensor(image), **part, size=self.crop.size, interpolation=self.crop.interpolation, antialias=True
        )
        if torch.rand(()) < self.horizontal_flip:
            pixels = F.horizontal_flip(pixels)
        return pixels.expand(3, -1, -1)

    def whole(self, image: PIL.Image.Image) -> dict[str, torch.Tensor]:
        part = self.crop.make_params([image])  # draws first, as in `pixels`
        flip = int(torch.rand(()) < self.horizontal_flip)
        crop = torch.tensor([part["top"], part["left"], part["height"], part["width"], flip])
        return {"whole": _to_tensor(image).expand(3, -1, -1), "crop": crop}

    def resize(self, whole: torch.Tensor, crop: torch.Tensor) -> torch.Tensor:
        return resize_crops(whole, crop, self.size, self.interpolation)


def _middle(pixels: torch.Tensor, longest: int = 50) -> torch.Tensor:
    """The middle of an image that is more than `longest` times as long as wide; the center crop is inside it.

    Resized as a whole, an image of 1 x 10,000 pixels would take gigabytes.
    """
    short, long = sorted(pixels.shape[1:])
    excess = max(long - longest * short, 0) // 2
    return pixels.narrow(1 + (pixels.shape[2] == long), excess, long - 2 * excess)


def _shrink(image: PIL.Image.Image, part: dict[str, int], size: tuple[int, int]) -> dict[str, int]:
    """Sets an image to be decoded at a smaller size where possible, and returns the crop in that size.

    A JPEG that is not decoded yet can be decoded at a half, a quarter or an eighth of its size, as long as the crop
    does not become smaller than `size`, to which it will be resized. The crop is rounded to whole pixels.

    Args:
        part: the crop, {"top", "left", "height", "width"}.
    """
    factor = min(part["height"] // size[0], part["width"] // size[1])
    if image.format != "JPEG" or factor < 2:
        return part
    width, height = image.size
    image.draft(image.mode, (max(width // factor, 1), max(height // factor, 1)))
    across, down = image.size[0] / width, image.size[1] / height
    left, right = (round(x * across) for x in (part["left"], part["left"] + part["width"]))
    top, bottom = (round(y * down) for y in (part["top"], part["top"] + part["height"]))
    return {"top": top, "left": left, "height": bottom - top, "width": right - left}


class _Normalize:
    """Bytes (..., 3, H, W) -> float32 on the same device, with the same rounding as the processor.

    Bytes that are in float32, as `resize` returns them, are overwritten.
    """

    def __init__(self, processor: CLIPImageProcessor):
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0, 0, 0), (1, 1, 1))
        self.mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1) * (1 / processor.rescale_factor)
        self.std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1) * (1 / processor.rescale_factor)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.mean.device != pixels.device:
            self.mean, self.std = self.mean.to(pixels.device), self.std.to(pixels.device)
        values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return values.sub_(self.mean).div_(self.std)  # in place: allocating memory costs more than the arithmetic


def _to_tensor(image: PIL.Image.Image) -> torch.Tensor:
    """uint8 (1, H, W) of a grayscale image, (3, H, W) of any other."""
    image = as_rgb(image)
    if image.mode == "L":
        return F.pil_to_tensor(image)
    # kept in the channels-last layout of the array: resizing takes half the time and gives identical bits
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
