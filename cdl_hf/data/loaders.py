"""Loaders of images, prepared by Accelerate."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .task_images import Batches, TaskImages

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderShard


def image_loader(
    accelerator: "Accelerator", images: TaskImages, batch_size: int, num_workers: int, **options: Any
) -> "DataLoaderShard":
    """Batches of images for [`Batches`], on the device of an Accelerator.

    Args:
        batch_size: Number of images of a batch over all processes, if the Accelerator splits batches.
        num_workers: Number of loader processes.
        options: Further arguments of `DataLoader`.
    """
    images, sharding = images.for_device(accelerator.device), {"split_batches": accelerator.split_batches}
    return _prepared(accelerator, images, sharding, batch_size=batch_size, num_workers=num_workers, **options)


class TaskLoader:
    """Batches of the images of several tasks, none with images of two, through one loader with the same workers.

    In several processes each gets its share of a batch. The last batch of a task is filled up by its first images.

    Args:
        accelerator: Whose device the batches are on.
        tasks: The images of each task, all under the same transform.
        batch_size: Number of images of a batch over all processes, a multiple of their number.
        num_workers: Number of loader processes, which live as long as the loader.
    """

    def __init__(self, accelerator: "Accelerator", tasks: Sequence[TaskImages], batch_size: int, num_workers: int):
        self.tasks = list(tasks)
        self.num_images = [len(images) for images in tasks]
        self._sampler = _TaskBatches(self.num_images, batch_size, accelerator.process_index, accelerator.num_processes)
        loader = _prepared(
            accelerator,
            _ImagesOfTasks([images.for_device(accelerator.device) for images in tasks]),
            {"num_processes": 1, "process_index": 0},  # the sampler divides the batches
            batch_sampler=self._sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        self._batches = Batches(loader, tasks[0])

    def of_first(self, num_tasks: int) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
        """The batches of the first tasks: task, number of the batch in it, images over all processes, this share."""
        self._sampler.num_tasks = num_tasks
        for place, batch in zip(self._sampler.places(), self._batches, strict=True):
            yield *place, batch


class _TaskBatches(Sampler[list[tuple[int, int]]]):
    """A process's share of each batch, as (task, index) of the images."""

    def __init__(self, num_images: list[int], batch_size: int, rank: int, world: int):
        self.num_images, self.batch_size, self.rank, self.world = num_images, batch_size, rank, world
        self.num_tasks = len(num_images)

    def places(self) -> list[tuple[int, int, int]]:
        """Of each batch the task, its number in it, and its images over all processes."""
        return [
            (task, start // self.batch_size, min(self.batch_size, count - start))
            for task, count in enumerate(self.num_images[: self.num_tasks])
            for start in range(0, count, self.batch_size)
        ]

    def __len__(self) -> int:
        return len(self.places())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for task, number, count in self.places():
            size = count if self.world == 1 else self.batch_size
            first, share = number * self.batch_size, size // self.world
            rows = range(first + self.rank * share, first + (self.rank + 1) * share)
            yield [(task, row % self.num_images[task]) for row in rows]


class _ImagesOfTasks(Dataset[dict[str, Any]]):
    """Samples of several tasks by (task, index)."""

    def __init__(self, tasks: Sequence[TaskImages]):
        self.tasks = tasks

    def __len__(self) -> int:
        return sum(map(len, self.tasks))

    def __getitems__(self, places: list[tuple[int, int]]) -> list[dict[str, Any]]:
        return self.tasks[places[0][0]].__getitems__([index for _, index in places])


def _prepared(
    accelerator: "Accelerator", images: Dataset[Any], sharding: dict[str, Any], **options: Any
) -> "DataLoaderShard":
    """A loader on the device of an Accelerator.

    A GPU gets batches from pinned memory, so that neither the host nor a kernel waits for the copy of a batch. torch's
    loader draws a seed for its workers, here not from the global generator: what is drawn from that depends neither
    on the number of loaders nor on how long their workers live.
    """
    from accelerate.data_loader import prepare_data_loader  # slow, and prediction needs none of it

    pin_memory = accelerator.device.type == "cuda"
    loader = DataLoader(images, pin_memory=pin_memory, generator=torch.Generator(), **options)
    # not by the accelerator's method, which holds every loader, with its workers, until the end of a stage
    return prepare_data_loader(loader, accelerator.device, put_on_device=True, non_blocking=True, **sharding)
