"""What frozen networks answer to the training images of a task, kept so that it is computed once.

A sample's augmentation depends on seed, task, epoch and index, and not on the stage: a student sees the very images
that its teacher has seen, and so does every further student of the same teacher.
"""

import os
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor

from ..data import Batches, TaskImages
from ..models import PromptViTForImageClassification
from .stage import StageSettings, training_loader

MEMORY_LIMIT = 2**30  # bytes of queries that a process keeps; the rest is computed again


class QueryStore:
    """The queries that a teacher's stage computes, for the student's stage: each process keeps those of its images.

    Args:
        num_images: n of the task.

    Attributes:
        epochs: (n, Dq) of each epoch, from the first to the last that finds room within [`MEMORY_LIMIT`].
    """

    def __init__(self, num_images: int):
        self.num_images = num_images
        self.epochs: list[np.ndarray] = []

    def add(self, epoch: int, index: Tensor, query: Tensor) -> None:
        """Keeps the queries (B, Dq) of the samples `index` (B,) in an epoch."""
        size = 4 * self.num_images * query.shape[1]
        if epoch == len(self.epochs) and (epoch + 1) * size <= MEMORY_LIMIT:
            self.epochs.append(np.empty((self.num_images, query.shape[1]), np.float32))
        if epoch < len(self.epochs):
            self.epochs[epoch][index.cpu().numpy()] = query.float().cpu().numpy()


class TeacherAnswers:
    """Files with a teacher's answers to every training image of a task in every epoch.

    Args:
        stem: Path to which `.query.npy`, (E, n, Dq), and `.teacher_logits.npy`, (E, n, C_task), are added.
    """

    def __init__(self, stem: Path):
        self.files = {name: stem.with_name(f"{stem.name}.{name}.npy") for name in ("query", "teacher_logits")}

    def read(self) -> dict[str, np.ndarray]:
        """The arrays that are there, mapped into memory: (E, n, ...) by name."""
        return {name: np.load(file, mmap_mode="r") for name, file in self.files.items() if file.is_file()}

    @torch.no_grad()
    def write(
        self,
        accelerator: Accelerator,
        teacher: PromptViTForImageClassification,
        images: TaskImages,
        settings: StageSettings,
    ) -> None:
        """Asks the teacher, which has learnt the task, in the very batches in which a student will see the images.

        Raises:
            OSError: There is no room.
        """
        teacher.eval()
        sampler, loader = training_loader(accelerator, images, settings)
        bar = tqdm(total=settings.num_epochs * sampler.steps, desc=settings.name, unit="step", leave=False)
        files = {}
        for epoch in range(settings.num_epochs):
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
                        rows[name] = np.zeros((len(images), values.shape[1]), np.float32)
                    rows[name][index] = values.cpu().numpy()
                bar.update()
            if accelerator.is_main_process:
                for name, values in rows.items():
                    if epoch == 0:
                        files[name] = _new_array(self._unfinished(name), (settings.num_epochs, *values.shape))
                    values.tofile(files[name])
        bar.close()
        for name, file in files.items():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            self._unfinished(name).replace(self.files[name])
        accelerator.wait_for_everyone()
        accelerator.free_memory()

    @staticmethod
    def _ask(teacher: PromptViTForImageClassification, pixel_values: Tensor) -> dict[str, Tensor]:
        query = teacher.query(pixel_values)
        logits = teacher(pixel_values, query=query).head_logits[:, teacher.config.current_columns]
        answers = {"query": query, "teacher_logits": logits}
        return {name: values.float() for name, values in answers.items() if values is not None}

    def _unfinished(self, name: str) -> Path:
        return self.files[name].with_name(f".{self.files[name].name}")


def _new_array(path: Path, shape: tuple[int, ...]):
    """A file of NumPy's format whose values are still to be written, one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("wb")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file
