"""A view's images as tensors, each sample's augmentation fixed by seed, task, epoch and index."""

from collections.abc import Callable

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Image

from .sources import read_labels


class TaskImages(torch.utils.data.Dataset):
    """Samples {"pixel_values": (3, H, W), "labels": column, "index": row in the source's split} of a task's view.

    Args:
        view: columns `image` and `label`, such as `Task.train`.
        label_to_column: the stream's, (C,).
        transform: PIL image -> tensor; its randomness, if any, must come from torch's global generator.
        seed: if given, a sample's randomness depends on (seed, task, epoch, index) alone, and the global generator is
            left as it was; not on the stage, the order, the number of processes or workers.
        task: index of the task.
    """

    def __init__(
        self,
        view: Dataset,
        label_to_column: np.ndarray,
        transform: Callable[[PIL.Image.Image], torch.Tensor],
        *,
        seed: int | None = None,
        task: int = 0,
    ):
        self.view = view
        self.transform = transform
        self.seed = seed
        self.task = task
        self.labels = label_to_column[read_labels(view)]
        self._rows = _source_rows(view)
        # shared memory: workers that outlive an epoch see the next one
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Accelerate's loaders call this with their own count of epochs: to start at another, set theirs."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> dict:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[dict]:
        """All samples of a batch; the loader asks for them together, so that they are read together."""
        rows = self._rows[positions]
        images = self.view.data.fast_gather(rows)["image"].to_pylist()
        if self.seed is not None:
            state = torch.default_generator.get_state()
        samples = []
        for position, row, image in zip(positions, rows.tolist(), images, strict=True):
            if self.seed is not None:
                torch.default_generator.manual_seed(self._sample_seed(row))
            pixel_values = self.transform(_decode(image))
            samples.append({"pixel_values": pixel_values, "labels": int(self.labels[position]), "index": row})
        if self.seed is not None:
            torch.default_generator.set_state(state)
        return samples

    def _sample_seed(self, row: int) -> int:
        key = np.random.SeedSequence([self.seed, self.task, int(self._epoch), row])
        return int(key.generate_state(1)[0])


def _source_rows(view: Dataset) -> np.ndarray:
    """Rows of the split's table that a view shows, (n,). `datasets` has no public name for them."""
    if view._indices is None:
        return np.arange(len(view))
    return view._indices.column(0).to_numpy().astype(np.int64)


_IMAGE = Image()


def _decode(image: dict) -> PIL.Image.Image:
    """As the pipelines of transformers: upright and RGB; grey stays grey, which the transforms make RGB last."""
    image = _IMAGE.decode_example(image)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
