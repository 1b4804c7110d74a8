"""Teacher and student with random weights, their device, and random images for them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPImageProcessor

from ..arguments.config import CDLConfig, DistillationArguments, ModelArguments
from ..arguments.stream import StreamArguments
from ..data import TaskStream
from ..distillation import TrainingObjective
from ..models import PromptViTForImageClassification
from ..training import build
from ..utils import num_cores

PairArguments = tuple[StreamArguments, ModelArguments, DistillationArguments, CDLConfig]


@dataclass(frozen=True)
class MeasuredPair:
    """Teacher and student of a run.

    Args:
        stream: The stream of tasks.
        teacher: The teacher.
        objective: The distillation method, which owns the student.
        image_processor: Prepares the images of both.
    """

    stream: TaskStream
    teacher: PromptViTForImageClassification
    objective: TrainingObjective
    image_processor: CLIPImageProcessor

    @property
    def student(self) -> PromptViTForImageClassification:
        return self.objective.model

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.image_processor.crop_size["height"]

    @property
    def objectives(self) -> dict[str, TrainingObjective]:
        """What is trained, by role."""
        return {"teacher": TrainingObjective(self.teacher), "student": self.objective}

    def random_batch(self, size: int, device: torch.device) -> dict[str, Tensor]:
        """`size` random images with labels of the current task; moves both models to the device as well."""
        for module in (self.teacher, self.objective):
            torch.nn.Module.to(module, device)
        classes = self.teacher.config.current_classes
        labels = classes.start + torch.arange(size, device=device) % (classes.stop - classes.start)
        return {"pixel_values": torch.rand(size, 3, self.image_size, self.image_size, device=device), "labels": labels}


def build_pair(arguments: PairArguments, device: torch.device, num_tasks: int = 1) -> MeasuredPair:
    """Builds the stream and both models.

    Args:
        arguments: Those of a run that trains both models.
        device: Where the weights are created; `meta` for shapes alone.
        num_tasks: Number of tasks that both models have started; -1 for all.

    Raises:
        ValueError: The arguments do not fit the data, the models or each other.
    """
    stream_args, model_args, distillation_args, training_args = arguments
    if training_args.stages != "both":
        raise ValueError("the benchmark measures teacher and student: leave stages out")
    stream = build.build_stream(stream_args)
    with device:
        models = build.build_models(stream, model_args, distillation_args, training_args, pretrained=False)
    objective, image_processor = models.objective, models.image_processor
    assert objective.teacher is not None and isinstance(image_processor, CLIPImageProcessor)  # of a run of both
    for model in (objective.teacher, objective.model):
        for task in stream[: num_tasks if num_tasks > 0 else None]:
            model.start_task(task.class_names)
    return MeasuredPair(stream, objective.teacher, objective, image_processor)


def find_device() -> torch.device:
    """The accelerator, or the CPU with all cores that this process may use."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        torch.set_num_threads(num_cores())
    return accelerator or torch.device("cpu")
