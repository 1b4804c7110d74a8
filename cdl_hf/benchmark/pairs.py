"""Teacher and student with random weights, their device, and a random batch for them."""

import torch
from torch import Tensor

from ..data import TaskStream
from ..training import build
from ..training.arguments import CDLConfig, DistillationArguments, ModelArguments, StreamArguments
from ..training.build import ModelPair
from ..utils import num_cores

PairArguments = tuple[StreamArguments, ModelArguments, DistillationArguments, CDLConfig]


def build_pair(arguments: PairArguments, device: torch.device, num_tasks: int = 1) -> tuple[TaskStream, ModelPair]:
    """The stream, and teacher and student with random weights.

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
        pair = build.build_models(stream, model_args, distillation_args, training_args, pretrained=False)
    for model in (pair.objective.teacher, pair.objective.model):
        for task in stream[: num_tasks if num_tasks > 0 else None]:
            model.start_task(task.class_names)
    return stream, pair


def find_device() -> torch.device:
    """The accelerator, or the CPU with all cores that this process may use."""
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator()
    torch.set_num_threads(num_cores())
    return torch.device("cpu")


def random_batch(pair: ModelPair, size: int, device: torch.device) -> dict[str, Tensor]:
    """`size` random images with labels of the current task; moves both models to the device as well."""
    pair.objective.teacher.to(device)
    pair.objective.to(device)
    side, classes = pair.image_processor.crop_size["height"], pair.objective.teacher.config.current_classes
    labels = classes.start + torch.arange(size, device=device) % (classes.stop - classes.start)
    return {"pixel_values": torch.rand(size, 3, side, side, device=device), "labels": labels}
