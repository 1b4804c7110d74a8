"""Images read and augmented a second, compared with plain PIL and torchvision v1, which the authors use."""

import statistics
import time
from collections.abc import Iterable
from io import BytesIO

import numpy as np
import PIL.Image
import torch
from datasets import ClassLabel, Dataset, Features, Image
from torch.utils.data import DataLoader
from torchvision import transforms as v1

from ..arguments.config import CDLConfig
from ..data import Batches, TaskImages, image_processor_for, train_transform
from .pairs import MeasuredPair

SIDE, BATCH = 224, 32
# Name -> width, height, format, images of a pass
KINDS = {
    "CIFAR-size PNG, 32 x 32": (32, 32, "PNG", 1024),
    "ImageNet-R-size JPEG, 500 x 400": (500, 400, "JPEG", 384),
    "large JPEG, 1600 x 1200": (1600, 1200, "JPEG", 96),
}


class PlainImages(torch.utils.data.Dataset):
    """Images decoded by PIL and augmented by torchvision's v1 transforms; (pixels, label) tuples."""

    def __init__(self, files: list[bytes]):
        self.files = files
        self.transform = v1.Compose(
            [v1.RandomResizedCrop(SIDE), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize((0, 0, 0), (1, 1, 1))]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(PIL.Image.open(BytesIO(self.files[index])).convert("RGB")), 0


def measure(num_workers: int, repeats: int) -> dict[str, dict[str, float]]:
    """Images a second of each kind of file, by `plain` and by `ours`: medians of alternating passes.

    Args:
        num_workers: Number of reading processes; 0 to read in this process.
        repeats: Number of passes of each.
    """
    figures = {}
    for name, (width, height, form, count) in KINDS.items():
        files = [_file(width, height, form, seed) for seed in range(16)] * (count // 16)
        images = _our_images(files)
        loaders: dict[str, Iterable] = {
            "plain": _loader(PlainImages(files), num_workers),
            "ours": Batches(_loader(images, num_workers), images),
        }
        rates: dict[str, list[float]] = {key: [] for key in loaders}
        for repeat in range(repeats + 1):
            for key, loader in loaders.items():
                began = time.perf_counter()
                for _ in loader:
                    pass
                if repeat:  # the first pass starts the processes
                    rates[key].append(count / (time.perf_counter() - began))
        figures[name] = {key: statistics.median(each) for key, each in rates.items()}
        figures[name]["gain"] = statistics.median(
            ours / plain for ours, plain in zip(rates["ours"], rates["plain"], strict=True)
        )
    return figures


def rate(pair: MeasuredPair, args: CDLConfig, seconds: float = 3) -> float:
    """Images a second of the first task, read and augmented as in training, measured for `seconds`."""
    low, high = args.crop_scale
    transform = train_transform(pair.image_processor, (low, high), horizontal_flip=args.horizontal_flip)
    images = TaskImages(pair.stream[0].train, pair.stream.label_to_class_id, transform, seed=args.seed)
    batches = Batches(DataLoader(images, args.batch_size, num_workers=args.dataloader_num_workers), images)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for batch in batches:
            count += len(batch["labels"])
            if time.perf_counter() - began > seconds:
                break
    return count / (time.perf_counter() - began)


def table(figures: dict[str, dict[str, float]]) -> str:
    lines = ["| images a second | PIL and torchvision v1 | cdl_hf | gain |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {f['plain']:,.0f} | {f['ours']:,.0f} | {f['gain']:.2f} |" for name, f in figures.items()]
    return "\n".join(lines)


def _loader(images: torch.utils.data.Dataset, num_workers: int) -> DataLoader:
    return DataLoader(images, BATCH, num_workers=num_workers, persistent_workers=num_workers > 0)


def _our_images(files: list[bytes]) -> TaskImages:
    features = Features(image=Image(mode="RGB"), label=ClassLabel(names=["class"]))
    rows = {"image": [{"bytes": file, "path": None} for file in files], "label": [0] * len(files)}
    processor = image_processor_for({"input_size": (3, SIDE, SIDE), "interpolation": "bilinear"}, "none")
    view = Dataset.from_dict(rows, features=features)
    return TaskImages(view, np.zeros(1, np.int64), train_transform(processor), seed=0)


def _file(width: int, height: int, form: str, seed: int) -> bytes:
    """A picture with coarse and fine structure, so that it compresses like a photograph."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (max(height // 8, 2), max(width // 8, 2), 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)).astype(int)
    pixels = (pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
    stream = BytesIO()
    PIL.Image.fromarray(pixels).save(stream, form, **({"quality": 85} if form == "JPEG" else {}))
    return stream.getvalue()
