"""What a run shows and writes: its models before training, its results, models and pictures after it."""

import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from transformers import CLIPImageProcessor
from transformers.utils import logging

from ..cli import to_dict
from ..data import dataset_spec
from ..evaluation import metric_in, metrics_of, tasks_of
from ..evaluation.speed import latency
from ..invocation import how_it_started, how_to_start
from ..models import PromptViTForImageClassification
from ..models.backbones import pretrained_cfg
from ..runs.distributed import whole_state
from ..utils import atomic_folder, seal_file, versions
from .baseline import baseline_accuracies
from .build import backbone_source
from .callbacks import Run
from .memory import is_oom

logger = get_logger(__name__)

PICTURE = Path(__file__).parents[1] / "assets" / "laptop.png"  # a drawing of the bundled test images


def describe_models(models: dict[str, PromptViTForImageClassification], processor: CLIPImageProcessor) -> str:
    """Backbones, sizes and trained parameters of the models, and how images are prepared.

    Args:
        models: By role, the teacher first.
    """
    lines = []
    for role, model in models.items():
        total = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        lines.append(f"{role}: {backbone_source(model)}, {total:,} parameters, {trained:,} of them trained")
    side = processor.crop_size["height"]
    pixels = f"mean {processor.image_mean}, std {processor.image_std}" if processor.do_normalize else "in [0, 1]"
    lines = [*lines, f"images: {side}x{side}, pixels {pixels}"]
    expected = {
        role: [list(pretrained_cfg(model.backbone)[key]) for key in ("mean", "std")] for role, model in models.items()
    }
    if processor.do_normalize and len(expected) == 2 and expected["teacher"] != expected["student"]:
        mean, std = expected["teacher"]
        lines.append(
            f"note: the teacher's backbone was pre-trained with mean {mean}, std {std}, and is given the student's "
            "pixels"
        )
    return "\n".join(lines)


def finish_run(trainer: Run) -> dict[str, Any]:
    """Writes pictures, models and their cards, and last `results.json`, which says that all is there; returns it."""
    trainer.save_models()  # before what may need more memory than there is
    results = {
        "stream": trainer.stream.describe(),
        "args": to_dict(trainer.arguments),
        "versions": versions(),
        "tested_on": "test" if trainer.stream[0].validation is None else "validation",
        **trainer.results(),
        **_baseline(trainer),
        "latency_ms": _latency(trainer),
    }
    trainer.folder.write_pictures(results, trainer.matrices)
    trainer.accelerator.end_training()
    if trainer.accelerator.is_main_process:
        for role in trainer.models:
            _write_card(trainer, role, results)
    trainer.folder.write_results(results)
    return results


def save_model(
    accelerator: Accelerator,
    model: PromptViTForImageClassification,
    image_processor: CLIPImageProcessor,
    folder: Path,
    *,
    statistics: bool = False,
) -> None:
    """Writes weights, configuration and image processor, for `from_pretrained`; all processes call it together.

    Args:
        statistics: Whether to write what the model needs to learn further classes, too.
    """
    state = whole_state(model)
    if accelerator.is_main_process:
        with atomic_folder(folder) as place:
            with _no_progress_bar():
                model.save_pretrained(place, state_dict=state, save_statistics=statistics)
            image_processor.save_pretrained(place)
            for weights in place.glob("*.safetensors"):
                seal_file(weights)


def _baseline(trainer: Run) -> dict[str, Any]:
    """Accuracies in % by chance and of classifiers on the frozen backbones, where this run has trained both models.

    They are for comparison only: where they cannot be computed, the run ends without them.
    """
    if len(trainer.learners) < 2 or trainer.args.stages != "both" or not trainer.args.num_train_epochs:
        return {}
    logger.info("Computing classifiers on the frozen backbones, for comparison.")
    models = {role: learner.model for role, learner in trainer.learners.items()}
    images = [trainer.images_for_fitting(task) for task in trainer.stream]
    names = trainer.stream.class_names
    try:
        accuracies = baseline_accuracies(
            models, images, trainer.test_images, names, trainer.evaluator, trainer.args.seed
        )
    except (RuntimeError, MemoryError, FloatingPointError) as error:
        if not is_oom(error) and not isinstance(error, (torch.linalg.LinAlgError, FloatingPointError)):
            raise
        logger.warning(f"Classifiers on the frozen backbones could not be computed: {str(error).splitlines()[0]}")
        return {}
    return {"baseline": {"chance": 100 / len(names), **accuracies}}


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers shows one for each file that it writes, and a model is one file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_card(trainer: Run, role: str, results: dict[str, Any]) -> None:
    """Completes a model's folder with its card, results and pictures."""
    from ..runs.model_card import ModelCardContent, complete_model_folder  # its templates take a while to import

    dataset, model = dataset_spec(results["args"]["dataset"]), trainer.models[role]
    given = trainer.folder.given() or {"command_line": []}
    words = [word for word in given["command_line"] if word not in ("--resume", "--resume_from_checkpoint")]
    backbones = [model.backbone, *([] if model.query_backbone is None else [model.query_backbone])]
    card = ModelCardContent(
        role=role,
        results=results,
        backbones={role: backbone_source(trainer.learners[role].model) for role in trainer.learners},
        command=how_it_started(words),
        weights_license=pretrained_cfg(model.backbone).get("license"),
        data_license=dataset.license,
        base_model=[name for each in backbones if (name := pretrained_cfg(each).get("hf_hub_id"))],
        hub_dataset=dataset.hub_name,
        is_drawings=dataset.is_drawings,
    )
    complete_model_folder(trainer.folder.path, card)


def _latency(trainer: Run) -> dict[str, Any]:
    """Milliseconds that each model takes for one image, and the device."""
    device, size = trainer.accelerator.device, trainer.image_processor.crop_size
    image = torch.rand(1, 3, size["height"], size["width"], device=device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{device.type.upper()}, {threads} thread{'s' * (threads > 1)}"
    return {"device": name, **{role: round(latency(model, image), 2) for role, model in trainer.models.items()}}


_BASELINES = {
    "frozen_ranpac": "RanPAC on the frozen backbone",
    "frozen_analytic": "the same with analytic distillation",
}


def table(results: dict[str, Any]) -> str:
    """Teacher against student, in words that a newcomer understands."""
    roles = [role for role in ("teacher", "student") if role in results]
    tasks = f"{results['stream']['num_tasks']} {tasks_of(results['stream'])}"
    classes, images = len(results["stream"]["class_names"]), sum(results["stream"][results["tested_on"]])
    rows = []
    for name, metric in metrics_of(results["stream"]).items():
        values = [metric_in(results[role], name) for role in roles]
        if metric.is_headline and any(value is not None for value in values):
            label = f"{metric.label} ({metric.unit})"
            rows.append((label, ["" if value is None else f"{value:.2f}" for value in values]))
    rows += [
        ("parameters", [f"{results[role]['parameters']:,}" for role in roles]),
        ("  trained", [f"{results[role]['trainable_parameters']:,}" for role in roles]),
        ("seconds of training", [_seconds(results["seconds"], role) for role in roles]),
    ]
    if "analytic" in results.get("student", {}):
        report = results["student"]["analytic"]
        blank = [""] * (len(roles) - 1)
        rows.append(("predicts with the scores of", [*blank, report["scores"]]))
        if "cosine" in report:
            rows.append(("teacher's features predicted, cosine", [*blank, f"{report['cosine']:.2f}"]))
    if "baseline" in results:
        baseline = results["baseline"]
        rows += [
            ("for comparison: A_N of guessing (%)", [f"{baseline['chance']:.2f}" for _ in roles]),
            *(
                (
                    f"  of {what} (%)",
                    [f"{baseline[name][role]:.2f}" if role in baseline[name] else "" for role in roles],
                )
                for name, what in _BASELINES.items()
                if name in baseline
            ),
        ]
    width = max(len(label) for label, _ in rows)
    lines = [
        f"After {tasks} with {classes} classes, on {images:,} {results['tested_on']} images, all classes competing:",
        " " * width + "".join(f"{role:>12}" for role in roles),
        *(label.ljust(width) + "".join(f"{value:>12}" for value in values) for label, values in rows),
    ]
    return "\n".join(line.rstrip() for line in lines)


def next_steps(results: dict[str, Any], folder: Path, models: Iterable[PromptViTForImageClassification]) -> str:
    """What a user may do with a finished run and its models, as commands that work as printed."""
    where = shlex.quote(str(folder))
    role = "student" if "student" in results else "teacher"
    takes_drawings = dataset_spec(results["args"]["dataset"]).is_drawings
    picture = shlex.quote(os.path.relpath(PICTURE)) if takes_drawings else "IMAGE.png"

    def start(command: str) -> str:
        return shlex.join(how_to_start(command))

    lines = [
        f"Everything is in {folder}: results.json, accuracy.png, matrices.png, and the models. What next:",
        f"  {start('evaluate')} {where}      # accuracy by class, confusions, calibration",
        f"  {start('predict')} {where}/{role} {picture}",
        f"  {start('demo')} {where}",
    ]
    args = results["args"]
    models = list(models)
    lacks_statistics = not args["save_statistics"] and any(model.needs_statistics for model in models)
    if not (lacks_statistics or args["classifier_alignment"]) and all(model.can_grow for model in models):
        lines.append(f"  {start('learn')} {where} --dataset IMAGES --output_dir NEW  # classes of IMAGES/<class>/")
    is_plain = args["classifier"] == "linear" and not args["classifier_alignment"] and args["student_run"] is None
    if is_plain and role == "student" and not args["push_to_hub"]:
        command = f"  {start('train')} --config {where}/args.yaml --student_run {where} --classifier ranpac"
        command += " --eval_steps none" if args["eval_steps"] is not None else ""
        command += " --stages student --schedule stages --teacher_run none --no_cache_teacher_outputs"
        lines.append(f"{command} --output_dir none  # another classifier")
    return "\n".join(lines)


def _seconds(seconds: dict[str, float], role: str) -> str:
    return f"{seconds[role]:.0f}" if role in seconds else "together"
