"""Images of a task as samples and batches, with augmentation fixed by seed, task, epoch and index."""

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import PIL.Image
import torch
from datasets import ClassLabel, Dataset, Features, Image, concatenate_datasets
from torch.utils.data import DataLoader

from .decoding import decode, find_unreadable
from .errors import DatasetError, listed
from .image_files import find_image_files
from .labels import normalized_name, read_labels
from .transforms import EvalTransform, TrainTransform
from .views import image_digests, ordered_digest, select_rows


class TaskImages(torch.utils.data.Dataset):
    """Samples {"pixels": uint8 (3, H, W), "labels": class id, "index": position in the view} of a task's images.

    [`Batches`] normalizes the pixels to `pixel_values` when they are on the device. For a GPU, [`for_device`], samples
    that are asked for together have, instead of pixels, `whole`: uint8 (3, h, w), and in training `crop`: (5,), if
    their images are all of one size and at most half as high and wide as the result. [`Batches`] resizes them.

    Args:
        view: data set with columns `image` and `label`, such as `Task.train`.
        label_to_class_id: class id of each label, (C,), of the stream.
        transform: output of [`train_transform`] or [`eval_transform`]; it draws from torch's global generator.
        seed: if given, the augmentation of a sample depends only on (seed, task, epoch, index), not on the stage, the
            order or the number of processes and workers, and the global generator is restored. None is for transforms
            without randomness.
        task: index of the task.

    Attributes:
        labels: class id of each sample, (n,).
        view: the data set.
    """

    def __init__(
        self,
        view: Dataset,
        label_to_class_id: np.ndarray,
        transform: EvalTransform | TrainTransform,
        *,
        seed: int | None = None,
        task: int = 0,
    ):
        self.view = view
        self.labels = label_to_class_id[read_labels(view)]
        self.transform = transform
        self.seed = seed
        self.task = task
        # rows as Arrow: the default format decodes through several layers, which costs as much as the decoding
        self._rows = view.with_format("arrow", columns=["image"])
        self._leaves_whole = False
        self._epoch = torch.zeros((), dtype=torch.int64)
        if seed is not None:  # so that persistent workers see the next epoch; shared memory is an open file
            self._epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch. A loader of Accelerate calls this with its own count; use the loader's `set_epoch` there."""
        self._epoch.fill_(epoch)

    def for_device(self, device: torch.device) -> "TaskImages":
        """The same images as loaders for a device read them; `set_epoch` of either is for both.

        Resizing to the same bits, a GPU does in a moment what takes a loader's process most of its time. On a CPU it
        would only move from many processes to the one that trains.
        """
        images = copy.copy(self)
        images._leaves_whole = device.type == "cuda"
        return images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """Samples of a batch, which torch's loader requests together: reading rows together is much faster."""
        images: Iterator[PIL.Image.Image] = map(decode, self._rows[indices]["image"].to_pylist())
        read = self._pixels
        if self._leaves_whole and len(indices) > 1:  # of one size in each batch, not only within each
            images, are_small = self._all_small(images)
            read = self.transform.whole if are_small else read
        return [
            {**self._seeded(read, image, index), "labels": int(self.labels[index]), "index": index}
            for index, image in zip(indices, images, strict=True)
        ]

    def _all_small(self, images: Iterator[PIL.Image.Image]) -> tuple[Iterator[PIL.Image.Image], bool]:
        """The same images, and whether all can be whole in one batch. Of those that cannot, one is held at a time."""
        small: list[PIL.Image.Image] = []
        for image in images:
            if not self.transform.can_be_whole(image.size) or (small and image.size != small[0].size):
                return itertools.chain(small, [image], images), False
            image.load()  # closes its file; a process may have 1,024 open
            small.append(image)
        return iter(small), True

    def _pixels(self, image: PIL.Image.Image) -> dict[str, torch.Tensor]:
        return {"pixels": self.transform.pixels(image)}

    def _seeded(
        self, read: Callable[[PIL.Image.Image], dict[str, torch.Tensor]], image: PIL.Image.Image, index: int
    ) -> dict[str, torch.Tensor]:
        if self.seed is None:
            return read(image)
        with _randomness_of(self.seed, self.task, int(self._epoch), index):
            return read(image)


@contextmanager
def _randomness_of(*key: int):
    """Seeds torch's CPU generator with `key` within the context, and restores it afterwards."""
    # the generator itself: `torch.manual_seed` would also seed every accelerator
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
    try:
        yield
    finally:
        generator.set_state(state)


class Batches:
    """Batches of a loader, with `pixels` normalized to `pixel_values` (B, 3, H, W) on their device.

    Loader processes pass pixels on as bytes, a quarter of the size of floats; on few cores that is most of their work.
    To a GPU they pass small images as they are (of CIFAR a 49th of these bytes) and the crops that they have drawn.

    Args:
        loader: loader of `images`, prepared by Accelerate or on the CPU.
        images: dataset whose transform normalizes the pixels.
    """

    def __init__(self, loader: DataLoader, images: TaskImages):
        # a copy, as its constants go to the device, where those of the data set, which workers get, must not be
        self.loader, self.normalize = loader, copy.copy(images.transform.normalize)
        self.resize = images.transform.resize

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        for batch in self.loader:
            whole = {name: batch.pop(name) for name in ("whole", "crop") if name in batch}
            pixels = self.resize(**whole) if whole else batch.pop("pixels")
            yield {"pixel_values": self.normalize(pixels), **batch}


def known_classes(
    views: list[Dataset], class_names: list[str], transform: EvalTransform
) -> tuple[TaskImages, str | None]:
    """The images of classes that the model knows, and a sentence about the others, if there are any.

    Args:
        views: columns `image` and `label`, all with the same ClassLabel.
        class_names: class names of the model by class id; classes are matched by name.
        transform: eval transform of the model's image processor.

    Raises:
        ValueError: the model knows none of the classes.
    """
    names = views[0].features["label"].names
    class_id_of = {normalized_name(name): class_id for class_id, name in enumerate(class_names)}
    label_to_class_id = np.array([class_id_of.get(normalized_name(name), -1) for name in names])
    view = concatenate_datasets(views)
    known = label_to_class_id[read_labels(view)] >= 0
    dropped = int((~known).sum())
    if not known.any():
        raise ValueError(
            f"the model knows none of the classes of the data set, which are {listed(names)}; "
            f"it knows {listed(class_names)}"
        )
    unknown = [name for name in names if normalized_name(name) not in class_id_of]
    left_out = f"{dropped:,} images of classes that the model does not know are left out: {listed(unknown)}"
    images = TaskImages(select_rows(view, np.flatnonzero(known)), label_to_class_id, transform)
    return images, left_out if dropped else None


def unlabeled_images(folder: str, transform: EvalTransform, block: int = 4096) -> list[TaskImages]:
    """All images in and below a folder, in blocks; their class ids are 0 and mean nothing.

    Raises:
        DatasetError: there is no such folder, it has no images, or some cannot be read.
    """
    view, files = _unlabeled_view(folder)
    if unreadable := find_unreadable(view, f"the images of '{folder}'"):
        index, reason = next(iter(unreadable.items()))
        raise DatasetError(
            f"{len(unreadable):,} of {len(files):,} images without labels cannot be read, such as {files[index]} "
            f"({reason}): mend them, or move them out of '{folder}'"
        )
    parts = np.split(np.arange(len(files)), range(block, len(files), block))
    return [TaskImages(select_rows(view, rows), np.zeros(1, dtype=np.int64), transform) for rows in parts]


def unlabeled_digest(folder: str) -> str:
    """Digest of what [`unlabeled_images`] reads, wherever the folder is.

    Raises:
        DatasetError: there is no such folder, or it has no images.
    """
    view, files = _unlabeled_view(folder)
    return ordered_digest(image_digests(view), np.zeros(len(files), dtype=np.int64))


def _unlabeled_view(folder: str) -> tuple[Dataset, list[str]]:
    files = find_image_files([folder])
    features = Features({"image": Image(), "label": ClassLabel(names=["unlabeled"])})
    return Dataset.from_dict({"image": files, "label": [0] * len(files)}, features=features), files
