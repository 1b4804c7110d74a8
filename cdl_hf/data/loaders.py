"""Loaders of images, prepared by Accelerate."""

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from .task_images import TaskImages

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderShard


def image_loader(
    accelerator: "Accelerator", images: TaskImages, batch_size: int, num_workers: int, **options: Any
) -> "DataLoaderShard":
    """Batches of images for [`Batches`], on the device of an Accelerator.

    A GPU gets them from pinned memory, so that neither the host nor a kernel waits for the copy of a batch. torch's
    loader draws a seed for its workers, here not from the global generator: what is drawn from that depends neither
    on the number of loaders nor on how long their workers live.

    Args:
        batch_size: Number of images of a batch over all processes, if the Accelerator splits batches.
        num_workers: Number of loader processes.
        options: Further arguments of `DataLoader`.
    """
    from accelerate.data_loader import prepare_data_loader  # slow, and prediction needs none of it

    loader = DataLoader(
        images,
        batch_size,
        num_workers=num_workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),
        **options,
    )
    # not by the accelerator's method, which holds every loader, with its workers, until the end of a stage
    return prepare_data_loader(
        loader,
        accelerator.device,
        split_batches=accelerator.split_batches,
        put_on_device=True,
        non_blocking=True,
    )
