"""What frozen networks answer to the training images of a task, kept so that it is computed once.

A sample's augmentation depends on seed, task, epoch and index, and not on the stage: a student sees the very images
that its teacher has seen, and so does every further student of the same teacher.
"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor

from ..data import Batches, TaskImages
from ..models import PromptViTForImageClassification
from ..utils import DamagedFile, atomic_write, verify
from .stage import StageSettings, training_loader

MEMORY_LIMIT = 2**30  # bytes of queries that a process keeps; the rest is computed again


class QueryCache:
    """The queries that a teacher's stage computes, for the student's stage: each process keeps those of its images.

    Args:
        num_images: n of the task.
        division: What decides which images a process has in which step, and what they look like. A stage with another
            division must compute its queries itself.

    Attributes:
        epochs: (n, Dq) of each epoch, from the first to the last that finds room within [`MEMORY_LIMIT`]; NaN in the
            rows of images that this process has not had.
    """

    def __init__(self, num_images: int, division: Any = None):
        self.num_images, self.division = num_images, division
        self.epochs: list[np.ndarray] = []

    def add(self, epoch: int, index: Tensor, query: Tensor) -> None:
        """Keeps the queries (B, Dq) of the samples `index` (B,) in an epoch."""
        size = 4 * self.num_images * query.shape[1]
        if epoch == len(self.epochs) and (epoch + 1) * size <= MEMORY_LIMIT:
            self.epochs.append(np.full((self.num_images, query.shape[1]), np.nan, np.float32))
        if epoch < len(self.epochs):
            self.epochs[epoch][index.cpu().numpy()] = query.float().cpu().numpy()


class TeacherOutputCache:
    """Files with a teacher's answers to every training image of a task in every epoch.

    Args:
        stem: Path to which `.query.npy`, (E, n, Dq), and `.teacher_logits.npy`, (E, n, C_task), are added.
    """

    def __init__(self, stem: Path):
        self.files = {name: stem.with_name(f"{stem.name}.{name}.npy") for name in ("query", "teacher_logits")}

    def are_there(self, needs_query: bool) -> bool:
        """Whether [`write`] has ended, for a teacher whose prompts take a query or do not."""
        return all(file.is_file() for name, file in self.files.items() if needs_query or name != "query")

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
            remedy = "remove the file, and its answers are computed again"
            try:
                verify(file)
                array = np.load(file, mmap_mode="r")
            except DamagedFile as error:
                raise DamagedFile(file, f"{error.reason}; {remedy}") from error
            except (ValueError, EOFError) as error:  # cut short, or not of this format
                raise DamagedFile(file, f"{error}; {remedy}") from error
            if array.shape[:-1] != (num_train_epochs, num_images) or array.dtype != np.float32:
                raise ValueError(
                    f"{file} holds {array.dtype} values of shape {array.shape}, not float32 answers of "
                    f"{num_train_epochs} epochs to {num_images} images: {remedy}"
                )
            arrays[name] = array
        return arrays

    def read(self, num_train_epochs: int, num_images: int) -> dict[str, list[np.ndarray | None]]:
        """Of each epoch the answers (n, D), by name; `None` where some are missing: they must be computed again.

        Runs of earlier versions have stored rows of zeros for the images that their batches left out.

        Raises:
            DamagedFile, ValueError: As [`open`].
        """
        arrays = {name: list(array) for name, array in self.open(num_train_epochs, num_images).items()}
        for name, epochs in arrays.items():
            complete = [bool((np.isfinite(rows).all(1) & rows.any(1)).all()) for rows in epochs]
            if not all(complete):
                warnings.warn(
                    f"{self.files[name]} lacks the answers to some images in {complete.count(False)} of "
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
        settings: StageSettings,
        after_batch: Callable[[], None] = lambda: None,
    ) -> None:
        """Asks the teacher, which has learnt the task, about every image in every epoch.

        It is asked in the very batches that a student with its batch size sees, and about the rest after them.

        Args:
            after_batch: Called on every process after each batch; what it raises ends the work, and no file is left.

        Raises:
            OSError: There is no room.
            FloatingPointError: An answer is not finite.
        """
        teacher.eval()
        sampler, loader = training_loader(accelerator, images, settings, every_image=True)
        bar = tqdm(total=settings.num_train_epochs * len(loader), desc=settings.name, unit="batch", leave=False)
        files = {}
        with ExitStack() as unfinished:
            for epoch in range(settings.num_train_epochs):
                loader.set_epoch(epoch)
                images.set_epoch(epoch)
                rows: dict[str, np.ndarray] = {}
                for batch in Batches(loader, images):
                    with accelerator.autocast():
                        answers = self._ask(teacher, batch["pixel_values"])
                    answers = accelerator.gather({"index": batch["index"], **answers})
                    index = answers.pop("index").cpu().numpy()
                    for name, values in answers.items():
                        if name not in rows:
                            rows[name] = np.full((len(images), values.shape[1]), np.nan, np.float32)
                        rows[name][index] = values.cpu().numpy()
                    bar.update()
                    after_batch()
                for name, values in rows.items():
                    if not np.isfinite(values).all():
                        raise FloatingPointError(f"the teacher's answers ({name}) are not finite in {settings.name}")
                    if accelerator.is_main_process:
                        if epoch == 0:
                            files[name] = unfinished.enter_context(atomic_write(self.files[name], checksum=True))
                            _write_header(files[name], (settings.num_train_epochs, *values.shape))
                        files[name].write(values.tobytes())
        bar.close()
        accelerator.wait_for_everyone()
        accelerator.free_memory()

    @staticmethod
    def _ask(teacher: PromptViTForImageClassification, pixel_values: Tensor) -> dict[str, Tensor]:
        query = teacher.query(pixel_values)
        logits = teacher(pixel_values, query=query).head_logits[:, teacher.config.current_classes]
        answers = {"query": query, "teacher_logits": logits}
        return {name: values.float() for name, values in answers.items() if values is not None}


def _write_header(file: Any, shape: tuple[int, ...]) -> None:
    """Begins a file of NumPy's format, whose values are still to be written, one after the other."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
