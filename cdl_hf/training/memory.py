"""Batches that do not fit into a device's memory, and the parts in which they do."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from torch.utils.data import default_collate

from ..arguments.config import CDLConfig
from ..data import TaskImages
from ..distillation import TrainingObjective


class OutOfMemory(RuntimeError):
    """This process's device is full; the message says where and what to do."""


def is_oom(error: Exception) -> bool:
    """Whether Python or torch says with it that a device's or the machine's memory is full."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(error):
        return True
    return isinstance(error, RuntimeError) and "STATUS_ALLOC_FAILED" in str(error)  # cuBLAS, cuSOLVER, cuDNN


@contextmanager
def explain_oom(advice: str) -> Iterator[None]:
    """A shortage of memory within is raised with this advice.

    Raises:
        OutOfMemory: There was one.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_oom(error):
            raise
        raise OutOfMemory(advice) from error


def advice(device: torch.device, batch_size: int, processes: int, parts: int) -> str:
    """What to try where a batch does not fit into memory in so many parts."""
    reason = f"{batch_size // parts // processes} images at a time do not fit into {device}'s memory"
    further = possible_parts(batch_size, processes, parts + 1)
    if not further:
        return f"{reason}; take smaller images or models"
    return (
        f"{reason}; next to try are {batch_size // further[0] // processes} with --gradient_accumulation_steps "
        f"{further[0]}, which trains on the same batches of {batch_size} (--auto_find_batch_size finds what fits)"
    )


def possible_parts(batch_size: int, processes: int, least: int = 1) -> list[int]:
    """Numbers of equal parts, at least `least`, in which each process can compute its share of a batch."""
    share = batch_size // processes
    return [parts for parts in range(least, share + 1) if share % parts == 0]


def check_division(
    modules: Mapping[str, TrainingObjective], task_sizes: Iterable[int], args: CDLConfig, processes: int
) -> None:
    """Checks that a batch's gradient is the same, but for rounding, however it is divided.

    Args:
        modules: Role -> what learns, or is given by an earlier run.
        task_sizes: Training images of each task; fewer than a batch make one of their own.

    Raises:
        ValueError: It would not be.
    """
    given = {"teacher": args.teacher_run, "student": args.student_run}
    trained = [module for role, module in modules.items() if given[role] is None]
    if not trained or not args.num_train_epochs:
        return
    batch_size, parts = args.batch_size, args.gradient_accumulation_steps
    if any(module.needs_whole_batch for module in trained) and (args.auto_find_batch_size or parts > 1):
        option = "auto_find_batch_size" if args.auto_find_batch_size else "gradient_accumulation_steps"
        raise ValueError(
            f"{option} divides a batch into parts, but this distillation method's loss relates all images of a batch: "
            "take a smaller batch_size, or more processes"
        )
    shares = processes * parts
    for task, images in enumerate(task_sizes):
        if images < batch_size and images % shares:
            most = images // shares * shares
            remedy = f"take a batch_size of at most {most}" if most else "take fewer"
            raise ValueError(
                f"task {task + 1} has {images} training images, fewer than batch_size ({batch_size}), which cannot be "
                f"shared evenly by {processes} processes times gradient_accumulation_steps ({parts}): {remedy}"
            )


def find_accumulation_steps(
    accelerator: Accelerator,
    modules: Mapping[str, nn.Module],
    images: TaskImages,
    batch_size: int,
    least: int = 1,
    after_batch: Callable[[], None] = lambda: None,
) -> int:
    """The fewest parts of a batch in which every process can train, found by trying; no state is changed by it.

    Args:
        accelerator: As in [`Stage`].
        modules: What is to be trained, one after the other.
        images: The task's training images.
        batch_size: Images of one optimizer step over all processes.
        least: Parts to begin with.
        after_batch: Called on every process after each trial; what it raises ends them.

    Raises:
        OutOfMemory: Not even one image fits.
    """
    batch_size = min(batch_size, len(images))
    share = batch_size // accelerator.num_processes
    for parts in possible_parts(batch_size, accelerator.num_processes, min(least, share)):
        count = share // parts
        fits = all(_fits(accelerator, module.train(), images, count) for module in modules.values())
        after_batch()
        if accelerator.reduce(torch.tensor(float(fits), device=accelerator.device)) == accelerator.num_processes:
            return parts
    raise OutOfMemory(f"not even one image at a time fits into the memory of {accelerator.device}")


def _fits(accelerator: Accelerator, module: nn.Module, images: TaskImages, count: int) -> bool:
    """Whether this process can compute the gradients of `count` images."""
    batch = default_collate(images.__getitems__(list(range(count))))
    normalize = copy.copy(images.transform.normalize)  # its constants go to the device, and workers get the original
    pixel_values = normalize(batch["pixels"].to(accelerator.device))
    labels = batch["labels"].to(accelerator.device)
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    fits = True
    try:
        with torch.random.fork_rng(devices), accelerator.autocast():
            loss = module(pixel_values=pixel_values, labels=labels)["loss"]
        loss.backward()
    except (RuntimeError, MemoryError) as error:
        if not is_oom(error):
            raise
        fits = False
    module.zero_grad()
    clear_device_cache(garbage_collection=True)
    return fits
