"""Cached outputs of frozen networks for the training images of a task, so that they are computed once.

An image's augmentation depends on seed, task, epoch and index, and not on the stage: a student sees the very images
that its teacher has seen, and so does every further student of the same teacher.
"""

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from torch import Tensor

from ..data import Batches, TaskImages
from ..models import PromptViTForImageClassification
from ..utils import DamagedFile, atomic_write, verify
from .distributed import AsyncCopy, copy_to, progress_bar

MEMORY_LIMIT = 2**30  # bytes of queries that a process keeps; the rest is computed again


class OutputCache:
    """Outputs of frozen networks for a task's training images, looked up by epoch and image.

    Args:
        epochs: Name -> an array (n, D) for each epoch from the first on; `None` for an epoch, or NaN in a row, where
            the output is not known.
    """

    def __init__(self, epochs: Mapping[str, Sequence[np.ndarray | None]] | None = None):
        self.epochs = dict(epochs or {})

    def lookup(self, epoch: int, index: list[int]) -> dict[str, Tensor]:
        """The outputs (B, D), by name, for the images `index` in an epoch: those that are known for all of them."""
        known = {}
        for name, arrays in self.epochs.items():
            if epoch < len(arrays) and (array := arrays[epoch]) is not None:
                rows = array[index]
                if not np.isnan(rows).any():
                    known[name] = torch.from_numpy(rows)
        return known


class QueryCache:
    """The queries that a teacher's stage computes, for the student's stage: each process keeps those of its images.

    Args:
        num_images: n of the task.
        division: What decides which images a process has in which step, and how they are augmented. A stage with
            another division must compute its queries itself.

    Attributes:
        epochs: (n, Dq) of each epoch, from the first to the last that fits into [`MEMORY_LIMIT`]; NaN in the rows of
            images that other processes have had.
    """

    def __init__(self, num_images: int, division: Any = None):
        self.num_images, self.division = num_images, division
        self._epochs: list[np.ndarray] = []
        self._on_their_way: deque[tuple[int, list[int], AsyncCopy]] = deque()

    def add(self, epoch: int, index: list[int], query: Tensor) -> None:
        """Keeps the queries (B, Dq) of the images `index` in an epoch, without waiting for the device."""
        size = 4 * self.num_images * query.shape[1]
        if epoch == len(self._epochs) and (epoch + 1) * size <= MEMORY_LIMIT:
            self._epochs.append(np.full((self.num_images, query.shape[1]), np.nan, np.float32))
        if epoch < len(self._epochs):
            self._on_their_way.append((epoch, index, AsyncCopy(query.float())))
        while self._on_their_way and self._on_their_way[0][2].has_arrived():
            self._store_next()

    @property
    def epochs(self) -> list[np.ndarray]:
        while self._on_their_way:
            self._store_next()
        return self._epochs

    def _store_next(self) -> None:
        epoch, index, query = self._on_their_way.popleft()
        self._epochs[epoch][index] = query.read().numpy()


class TeacherOutputCache:
    """Files with a teacher's outputs for every training image of a task in every epoch.

    Args:
        stem: Path to which `.query.npy`, (E, n, Dq), and `.teacher_logits.npy`, (E, n, C_task), are added.
    """

    def __init__(self, stem: Path):
        self.files = {name: stem.with_name(f"{stem.name}.{name}.npy") for name in ("query", "teacher_logits")}

    def exist(self, needs_query_pass: bool) -> bool:
        """Whether [`write`] has ended, for a teacher whose query takes a pass of its own, or not."""
        return all(file.is_file() for name, file in self.files.items() if needs_query_pass or name != "query")

    def open(self, num_train_epochs: int, num_images: int) -> dict[str, np.ndarray]:
        """The arrays that are there, mapped into memory: (E, n, D) by name.

        Raises:
            DamagedFile: A file is not what was written.
            ValueError: It is not of so many epochs and images.
        """
        arrays = {}
        for name, file in self.files.items():
            if not file.is_file():
                continue
            remedy = "remove the file, and its outputs are computed again"
            try:
                verify(file)
                array = np.load(file, mmap_mode="r")
            except DamagedFile as error:
                raise DamagedFile(file, f"{error.reason}; {remedy}") from error
            except (ValueError, EOFError) as error:  # cut short, or not of this format
                raise DamagedFile(file, f"{error}; {remedy}") from error
            if array.shape[:-1] != (num_train_epochs, num_images) or array.dtype != np.float32:
                raise ValueError(
                    f"{file} holds {array.dtype} values of shape {array.shape}, not float32 outputs of "
                    f"{num_train_epochs} epochs for {num_images} images: {remedy}"
                )
            arrays[name] = array
        return arrays

    def read(self, num_train_epochs: int, num_images: int) -> dict[str, list[np.ndarray | None]]:
        """The outputs (n, D) of each epoch, by name; `None` where some are missing and must be computed again.

        Runs of earlier versions have stored rows of zeros for the images that their batches left out.

        Raises:
            DamagedFile, ValueError: As [`open`].
        """
        arrays = {name: list(array) for name, array in self.open(num_train_epochs, num_images).items()}
        for name, epochs in arrays.items():
            complete = [bool((np.isfinite(rows).all(1) & rows.any(1)).all()) for rows in epochs]
            if not all(complete):
                warnings.warn(
                    f"{self.files[name]} lacks the outputs for some images in {complete.count(False)} of "
                    f"{num_train_epochs} epochs, which are computed again",
                    stacklevel=2,
                )
                arrays[name] = [rows if whole else None for rows, whole in zip(epochs, complete, strict=True)]
        return arrays

    @torch.no_grad()
    def write(
        self,
        accelerator: Accelerator,
        teacher: PromptViTForImageClassification,
        images: TaskImages,
        loader: DataLoaderShard,
        num_train_epochs: int,
        *,
        name: str = "teacher outputs",
        after_batch: Callable[[], None] = lambda: None,
    ) -> None:
        """Computes the outputs of a teacher that has learned the task, for every image in every epoch.

        Args:
            loader: Of `images`, in the very batches that a student with its batch size sees, and the rest after them.
            name: Shown in the progress bar and in errors.
            after_batch: Called on every process after each batch; an exception from it ends the work without a file.

        Raises:
            OSError: There is no room.
            FloatingPointError: An output is not finite.
        """
        teacher.eval()
        bar = progress_bar(total=num_train_epochs * len(loader), desc=name, unit="batch")
        files: dict[str, Any] = {}
        with ExitStack() as unfinished:
            for epoch in range(num_train_epochs):
                loader.set_epoch(epoch)
                images.set_epoch(epoch)
                rows: dict[str, np.ndarray] = {}
                on_their_way: deque[dict[str, AsyncCopy]] = deque()
                for batch in Batches(loader, images):
                    with accelerator.autocast():
                        outputs = self._compute(teacher, batch["pixel_values"])
                    index = copy_to(accelerator.device, torch.tensor(batch["index"]))
                    outputs = accelerator.gather({"index": index, **outputs})
                    on_their_way.append({output: AsyncCopy(values) for output, values in outputs.items()})
                    if len(on_their_way) > 1:  # the device computes a batch while the one before it is stored
                        _store(rows, on_their_way.popleft(), len(images))
                    bar.update()
                    after_batch()
                for copies in on_their_way:
                    _store(rows, copies, len(images))
                for output, values in rows.items():
                    if not np.isfinite(values).all():
                        raise FloatingPointError(f"the teacher's outputs ({output}) are not finite in {name}")
                    if accelerator.is_main_process:
                        if epoch == 0:
                            files[output] = unfinished.enter_context(atomic_write(self.files[output], checksum=True))
                            _write_header(files[output], (num_train_epochs, *values.shape))
                        files[output].write(values.tobytes())
        bar.close()
        accelerator.wait_for_everyone()
        accelerator.free_memory()

    @staticmethod
    def _compute(teacher: PromptViTForImageClassification, pixel_values: Tensor) -> dict[str, Tensor]:
        query = teacher.query(pixel_values)
        logits = teacher(pixel_values, query=query).head_logits[:, teacher.config.current_classes]
        outputs = {"query": query, "teacher_logits": logits}
        return {name: values.float() for name, values in outputs.items() if values is not None}


def _store(rows: dict[str, np.ndarray], copies: dict[str, AsyncCopy], num_images: int) -> None:
    """Puts the outputs of a batch, with the `index` (B,) of its images, in their rows of (num_images, D) by name."""
    index = copies.pop("index").read().numpy()
    for name, copied in copies.items():
        values = copied.read().numpy()
        if name not in rows:
            rows[name] = np.full((num_images, values.shape[1]), np.nan, np.float32)
        rows[name][index] = values


def _write_header(file: Any, shape: tuple[int, ...]) -> None:
    """Begins a file of NumPy's format, whose values are still to be written, one after the other."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
