"""Accuracy and time of RanPAC over a stream of one class a task, against ten tasks of the same classes."""

import statistics
import time
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from ..arguments.config import CDLConfig, ModelArguments
from ..arguments.stream import StreamArguments
from ..data import TaskImages, eval_transform, image_processor_for
from ..models import PretrainedBackbone, PromptViTForImageClassification
from ..training.build import build_stream, load_pair
from ..training.classifier_fitting import head_features

NUM_TASKS = 10  # of the stream that is compared with


def measure(stream_args: StreamArguments, model_args: ModelArguments, args: CDLConfig) -> dict[str, Any]:
    """The final accuracy, and the seconds of a task, of RanPAC on the frozen features of the student's backbone.

    The features are read once; the seconds are those of all that a task computes on them.

    Args:
        stream_args: All classes of the data set are taken, in their natural order.

    Returns:
        For each stream, by its number of tasks: `accuracy` (%, mean over the images), and the median `seconds` of a
        task, of the first tenth and of the last tenth of the tasks.

    Raises:
        ValueError: The data set or a backbone cannot be loaded, or there are fewer than 10 classes.
    """
    stream = build_stream(StreamArguments(**{**vars(stream_args), "num_tasks": 1}))
    num_classes = len(stream.class_names)
    if num_classes < NUM_TASKS:
        raise ValueError(
            f"a long stream has at least {NUM_TASKS} classes, and {stream_args.dataset} has {num_classes}"
        )
    _, backbone = load_pair(model_args)
    accelerator = Accelerator()
    model = _model(backbone, [num_classes], model_args, args).to(accelerator.device)
    side = model.network.image_size
    transform = eval_transform(image_processor_for({**backbone.pretrained_cfg, "input_size": (3, side, side)}))
    options = (args.eval_batch_size, args.dataloader_num_workers)
    train, test = (
        head_features(accelerator, model, TaskImages(view, stream.label_to_class_id, transform), *options)
        for view in (stream[0].train, stream[0].test)
    )
    figures: dict[str, Any] = {"classes": num_classes, "ranpac_width": model_args.ranpac_width}
    for num_tasks in (NUM_TASKS, num_classes):
        sizes = [len(part) for part in torch.arange(num_classes).tensor_split(num_tasks)]
        model = _model(backbone, sizes, model_args, args).to(accelerator.device)
        figures[f"{num_tasks} tasks"] = _learn(model, train, test)
    return figures


def _model(
    backbone: PretrainedBackbone, sizes: list[int], model_args: ModelArguments, args: CDLConfig
) -> PromptViTForImageClassification:
    """With the same random features, whatever its tasks."""
    set_seed(args.seed)
    names = ("ranpac_width", "ranpac_ridge", "ranpac_layers", "ranpac_patch_means")
    config = {name: getattr(model_args, name) for name in names}
    return PromptViTForImageClassification.from_backbone(
        backbone, classes_per_task=sizes, prompt_method="none", head="ranpac", **config
    )


@torch.no_grad()
def _learn(
    model: PromptViTForImageClassification, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> dict[str, float]:
    features, labels = train
    seconds, start = [], 0
    for size in model.config.classes_per_task:
        of_task = (labels >= start) & (labels < start + size)
        model.start_task([f"class {class_id}" for class_id in range(start, start + size)])
        began = time.perf_counter()
        model.fit_classifier(features[of_task], labels[of_task])
        model.end_task()
        seconds.append(time.perf_counter() - began)
        start += size
    features, labels = test
    assert model.classifier is not None
    read = model.network.select(features, model.readout_of_classifier, model.readout)[:, 0]
    right = model.classifier(read, start).argmax(1) == labels
    part = max(len(seconds) // 10, 1)
    return {
        "accuracy": 100 * right.double().mean().item(),
        "seconds": statistics.median(seconds),
        "seconds_first": statistics.median(seconds[:part]),
        "seconds_last": statistics.median(seconds[-part:]),
    }


def table(figures: dict[str, Any]) -> str:
    title = f"RanPAC, {figures['ranpac_width']:,} random features, {figures['classes']} classes"
    lines = [
        f"| {title} | accuracy, % | seconds a task | of the first tenth | of the last |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in figures.items():
        if isinstance(row, dict):
            seconds = " | ".join(f"{row[key]:.2f}" for key in ("seconds", "seconds_first", "seconds_last"))
            lines.append(f"| {name} | {row['accuracy']:.2f} | {seconds} |")
    return "\n".join(lines)
