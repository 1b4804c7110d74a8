"""What a run tells: its models before, its results after."""

from typing import Any

import torch

from ..evaluation.speed import latency
from ..utils import versions
from .build import Learners
from .trainer import ContinualDistillationTrainer


def describe_models(learners: Learners) -> str:
    """Which backbones learn, how large they are, what is trained and how images come in."""
    lines = []
    for role, backbone in learners.backbones.items():
        model = learners.teacher if role == "teacher" else learners.method.model
        total = sum(p.numel() for p in model.parameters())
        learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
        lines.append(f"{role}: {backbone.source}, {total:,} parameters, {learnt:,} of them learnt")
    processor = learners.image_processor
    side = processor.crop_size["height"]
    pixels = f"mean {processor.image_mean}, std {processor.image_std}" if processor.do_normalize else "in [0, 1]"
    lines = [*lines, f"images: {side}x{side}, pixels {pixels}"]
    made_with = {
        role: [list(b.pretrained_cfg[key]) for key in ("mean", "std")] for role, b in learners.backbones.items()
    }
    if processor.do_normalize and len(made_with) == 2 and made_with["teacher"] != made_with["student"]:
        mean, std = made_with["teacher"]
        lines.append(
            f"note: the teacher's weights were made with mean {mean}, std {std}, and now see the student's pixels"
        )
    return "\n".join(lines)


def results(trainer: ContinualDistillationTrainer, arguments: dict[str, Any]) -> dict[str, Any]:
    """The content of `results.json`."""
    return {
        "stream": trainer.stream.describe(),
        "args": arguments,
        "versions": versions(),
        "tested_on": "validation" if arguments["validation_fraction"] else "test",
        **trainer.results(),
        "latency_ms": _latency(trainer),
    }


def _latency(trainer: ContinualDistillationTrainer) -> dict[str, Any]:
    """Milliseconds that each model takes for one image, and on what."""
    device, size = trainer.accelerator.device, trainer.image_processor.crop_size
    image = torch.rand(1, 3, size["height"], size["width"], device=device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{device.type.upper()}, {threads} thread{'s' * (threads > 1)}"
    return {"device": name, **{role: round(latency(model, image), 2) for role, model in trainer.models.items()}}


def table(results: dict[str, Any]) -> str:
    """Teacher against student, in words that a stranger understands."""
    roles = [role for role in ("teacher", "student") if role in results]
    tasks = results["stream"]["num_tasks"]
    classes, images = len(results["stream"]["class_names"]), sum(results["stream"][results["tested_on"]])
    metrics = {role: results[role] for role in roles}
    rows = [
        ("accuracy, mean over the tasks", [f"{m['average_accuracy']:.2f} %" for m in metrics.values()]),
        (
            "accuracy, mean over the stream so far at each task",
            [f"{m['average_incremental_accuracy']:.2f} %" for m in metrics.values()],
        ),
        (
            "forgetting, points lost since a task was learnt",
            [f"{m['forgetting']['cdl']:.2f}" for m in metrics.values()],
        ),
        ("parameters", [f"{m['parameters']:,}" for m in metrics.values()]),
        ("  of them learnt", [f"{m['trainable_parameters']:,}" for m in metrics.values()]),
        ("seconds of training", [_seconds(results["seconds"], role) for role in roles]),
    ]
    width = max(len(label) for label, _ in rows)
    split = results["tested_on"]
    lines = [
        f"After {tasks} tasks with {classes} classes, on {images:,} {split} images, all classes competing:",
        " " * width + "".join(f"{role:>12}" for role in roles),
        *(label.ljust(width) + "".join(f"{value:>12}" for value in values) for label, values in rows),
    ]
    return "\n".join(lines)


def _seconds(seconds: dict[str, float], role: str) -> str:
    return f"{seconds[role]:.0f}" if role in seconds else "together"
