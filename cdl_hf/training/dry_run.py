"""What a run would do, told without doing it."""

from collections.abc import Iterable
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from ..data import TaskStream
from ..distillation import Supervised
from .arguments import DistillationArguments, ModelArguments, StreamArguments, TrainingArguments
from .build import build_learners, build_stream
from .checkpointing import KEPT
from .footprint import FakeSteps
from .given_model import check_states
from .memory import check_division
from .report import describe_models
from .stage import EpochSampler
from .task_states import TaskStates, describe_stream


def describe_run(
    stream_args: StreamArguments,
    model_args: ModelArguments,
    distillation_args: DistillationArguments,
    args: TrainingArguments,
    folder: Path,
    accelerator: Accelerator,
) -> str:
    """Stream, models, steps, memory and files of a run. Backbones have shapes but no weights: none are downloaded.

    Raises:
        ValueError: As [`build_stream`], [`build_learners`], [`check_states`] and [`check_division`].
    """
    stream = build_stream(stream_args)
    if args.student_from is not None:  # a given teacher is checked as it is built
        check_states(TaskStates(Path(args.student_from), "student"), describe_stream(stream))
    with torch.device("meta"):
        learners = build_learners(stream, model_args, distillation_args, args, pretrained=False)
    modules = {} if learners.teacher is None else {"teacher": Supervised(learners.teacher)}
    if learners.method is not None:
        modules["student"] = learners.method
    check_division(modules, map(len, (task.train for task in stream)), args, accelerator.num_processes)
    trained = [role for role in modules if role != "teacher" or args.teacher_from is None]
    stages = [tuple(trained)] if args.schedule == "same_step" else [(role,) for role in trained]
    return "\n".join(
        [
            str(stream),
            describe_models(learners),
            _steps(stream, args, trained),
            *_files(stream, modules, folder),
            *_memory(stream, modules, stages, args, learners.image_processor.crop_size["height"], accelerator),
        ]
    )


def _steps(stream: TaskStream, args: TrainingArguments, trained: list[str]) -> str:
    epoch = sum(EpochSampler(len(task.train), args.batch_size, 0).steps for task in stream)
    tested = [len(task.test if task.validation is None else task.validation) for task in stream]
    evaluated = sum(sum(tested[: i + 1]) for i in range(len(tested)))
    return (
        f"steps: {args.num_epochs * epoch:,} of {args.batch_size} images for the {' and for the '.join(trained)}, in "
        f"{args.num_epochs} epochs of each task; {evaluated:,} test images in {len(tested)} evaluations"
    )


def _files(stream: TaskStream, modules: dict[str, Supervised], folder: Path) -> list[str]:
    learnt = sum(_bytes(p for p in module.parameters() if p.requires_grad) for module in modules.values())
    students = [module.student for module in modules.values()]
    classifiers = [c for model in students for c in (model.classifier, model.kd_classifier) if c is not None]
    predicting = sum(_bytes(classifier.buffers()) for classifier in classifiers)
    states = predicting + sum(_bytes(p for p in model.parameters() if p.requires_grad) for model in students)
    models = predicting + sum(_bytes(model.parameters()) for model in students)
    statistics = sum(4 * classifier.num_statistics for classifier in classifiers)
    checkpoints = (3 * learnt + predicting + statistics) * KEPT  # with Adam's two moments
    return [
        f"would be written to {folder}: arguments, metrics, results.json, pictures; {' and '.join(modules)} "
        f"({_size(models)}); what they have learnt after each task ({_size(len(stream) * states)}); {KEPT} "
        f"checkpoints (at most {_size(checkpoints)})"
    ]


def _memory(
    stream: TaskStream,
    modules: dict[str, Supervised],
    stages: list[tuple[str, ...]],
    args: TrainingArguments,
    side: int,
    accelerator: Accelerator,
) -> list[str]:
    for task in stream:  # the last one takes the most
        for module in modules.values():
            if module.student.config.num_tasks == len(stream):  # a given teacher may have seen all classes at once
                module.student.start_task(task.class_names)
    steps = FakeSteps(modules, side, accelerator.device, accelerator.mixed_precision)
    processes = accelerator.num_processes
    batch = max(args.batch_size // args.gradient_accumulation_steps // processes, 1)
    peaks = {f"training the {' and the '.join(roles)}": steps.training(roles, batch).peak_bytes for roles in stages}
    peaks["evaluating"] = steps.evaluation(max(args.eval_batch_size // processes, 1)).peak_bytes
    resident = psutil.Process().memory_info().rss
    return [
        f"peak memory on {accelerator.device}: " + ", ".join(f"{name} {_size(peak)}" for name, peak in peaks.items()),
        f"  that is all tensors of one process, with {batch} images at a time; to it come {_size(resident)} for the "
        "process itself, and what the allocator wastes (on a CPU up to half of it)",
    ]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
