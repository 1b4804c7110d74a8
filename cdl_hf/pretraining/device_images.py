"""Images that are decoded once and kept as bytes on a device, and batches of them."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.task_images import TaskImages
from ..data.transforms import eval_transform, image_processor_for

# Augmenting several batches at once costs a GPU no more kernels than one; the limit is on the floats that it makes.
MOST_BATCHES, MOST_VALUES = 8, 2**26


class DeviceImages:
    """All images of a split, resized to one size as at test time.

    Args:
        view: Data set with columns `image` and `label`, a ClassLabel.
        size: Side S of the square that is kept of each image, in pixels.
        device: Where they are kept; S = 48 takes 7 kB an image.
        num_workers: Processes that decode them.

    Attributes:
        pixels: uint8 (n, 3, S, S).
        labels: int64 (n,).
    """

    def __init__(self, view: Dataset, size: int, device: torch.device, num_workers: int = 0):
        pipeline = {"input_size": (3, size, size), "interpolation": "bicubic", "crop_pct": 1.0}
        transform = eval_transform(image_processor_for(pipeline, normalization="none"))
        images = TaskImages(view, np.arange(view.features["label"].num_classes), transform)
        self.pixels = torch.empty(len(images), 3, size, size, dtype=torch.uint8, device=device)
        self.labels = torch.as_tensor(images.labels, dtype=torch.int64, device=device)
        loader = DataLoader(images, batch_size=256, num_workers=num_workers)
        for number, batch in enumerate(tqdm(loader, desc="decoding", unit="batch", leave=False)):
            first = number * 256
            self.pixels[first : first + len(batch["labels"])] = batch["pixels"].to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels in [0, 1] (B, 3, S, S) and labels (B,) of every `world`-th image from `rank` on, in order."""
        pixels, labels = self.pixels[rank::world], self.labels[rank::world]
        for first in range(0, len(labels), batch_size):
            rows = slice(first, first + batch_size)
            yield pixels[rows].float() / 255, labels[rows]


class TrainingBatches:
    """Augmented batches in a new random order in each epoch; the images that make no whole batch are left out.

    Several batches are augmented at once and mixed, so images that share random numbers end in different batches. An
    epoch depends only on its seed, and on the number of processes.

    Args:
        images: The training images.
        augment: uint8 (n, 3, S, S) -> float (n, 3, s, s) in [0, 1], with random numbers of torch's global generators.
        batch_size: Images of a batch of one process.
        rank, world: This process and their number.
    """

    def __init__(
        self,
        images: DeviceImages,
        augment: Callable[[Tensor], Tensor],
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ):
        self.images, self.augment, self.batch_size = images, augment, batch_size
        self.rank, self.world = rank, world
        fitting = MOST_VALUES // (batch_size * images.pixels[0].numel())
        self._block = batch_size * max(1, min(MOST_BATCHES, fitting))

    def __len__(self) -> int:
        return len(self.images) // (self.batch_size * self.world)

    def epoch(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, s, s) and labels (B,); seeds torch's global generators."""
        shared, own = (
            np.random.SeedSequence([seed, epoch, *more]).generate_state(1)[0] for more in ([], [1 + self.rank])
        )
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(int(shared)))
        order = order[: len(self) * self.batch_size * self.world][self.rank :: self.world]
        order = order.to(self.images.labels.device)
        torch.manual_seed(int(own))
        for first in range(0, len(order), self._block):
            rows = order[first : first + self._block]
            pixels, labels = self.augment(self.images.pixels[rows]), self.images.labels[rows]
            mixed = torch.randperm(len(rows), device=rows.device)
            for batch in mixed.split(self.batch_size):
                yield pixels[batch], labels[batch]
