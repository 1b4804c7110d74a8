"""Evaluation of a run or a saved model: accuracy by task and class, confusion, calibration, latency, throughput.

    cdl-hf evaluate runs/my_run             # teacher and student on their own test images
    cdl-hf evaluate my_run/student --dataset my_images/ --output_dir evaluation

A run is evaluated on its own test images. With --dataset, it is evaluated on the test split of other data, or on all
images if there is no test split; classes are matched by their names. Predictions are over all classes that the model
has seen, without task ids. A class counts for the task in which it first came or, in a stream with blurry boundaries,
for the task of its test images, which the results.json beside the model records. Two more figures say what a model
lacks: its accuracy among the classes of each image's own task, and the share of images for which it predicts a class
of that task. A stream of domains has neither, because its classes come again. Images that the run was trained on
are left out: the run's folder has digests of them, which do not match if a file was recompressed or resized. A model
outside of its run's folder does not know what it was trained on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cli import argument, cli_error, parse
from ..console import ends_with_reader

SHOWN = 10  # classes and mistakes in the table; evaluation.json has more
_BY_TASK = {
    "task_known_accuracy": "accuracy among the classes of the task",
    "right_task_share": "images assigned to the right task",
}


@dataclass
class EvaluateArguments:
    """Model and data."""

    checkpoint: str = argument(
        "Folder of a saved model, its name on the Hub, or the output folder of a run", positional=True
    )
    dataset: str | None = argument("Data to test on, as for cdl-hf train", None, unset="the run's own test images")
    image_column: str | None = argument("Column of the images", None, unset="found by its type")
    label_column: str | None = argument("Column of the labels", None, unset="found by its type")
    domain_column: str | None = argument(
        "Column of the domains, or a name for folders above those of the classes", None, unset="no domains"
    )
    test_split: str | None = argument(
        "Split to test on", None, unset="found by its name, or all images if there is none"
    )
    split_file: str | None = argument("YAML list of images of the dataset that are not used for the test", None)
    skip_unreadable_images: bool = argument("Leave out images that cannot be read, instead of stopping", False)
    batch_size: int = argument("Images per step, and for measuring throughput", 128, min=1)
    dataloader_num_workers: int = argument("Number of processes that read images", 0, min=0, aliases=("num_workers",))
    output_dir: str | None = argument(
        "Folder for evaluation.json and pictures of the confusion matrices", None, unset="none is written"
    )

    def __post_init__(self):
        for name in ("image_column", "label_column", "domain_column", "test_split", "split_file"):
            if self.dataset is None and getattr(self, name) is not None:
                raise ValueError(f"{name} needs dataset: without it, the run's own test images are used")


@ends_with_reader()
def main(argv: list[str] | None = None) -> None:
    (args,) = parse((EvaluateArguments,), argv, description=__doc__)

    import torch
    from torch.utils.data import DataLoader

    from ..data import Batches, eval_transform
    from ..data.domains import domain_names
    from ..data.task_images import known_classes
    from ..evaluation.metrics import prediction_metrics
    from ..evaluation.predictions import predict
    from ..hub.saved_models import has_domains, is_run, load_run, load_saved_model, tasks_of_classes

    try:
        saved = load_run(args.checkpoint) if is_run(args.checkpoint) else {"model": load_saved_model(args.checkpoint)}
        first = next(iter(saved.values()))
        views, notes = eval_views(args, first.class_names)
        images, left_out = known_classes(views, first.class_names, eval_transform(first.image_processor))
        if args.output_dir is not None:
            make_folder(Path(args.output_dir))
    except ValueError as error:
        cli_error(str(error))
    notes += [left_out] if left_out is not None else []
    for note in notes:
        print(f"note: {note}")

    batches = Batches(DataLoader(images, batch_size=args.batch_size, num_workers=args.dataloader_num_workers), images)
    batch = next(iter(batches))["pixel_values"].to(first.model.device)
    # A teacher of joint training has one task, its student several.
    config = max((each.model.config for each in saved.values()), key=lambda config: config.num_tasks)
    classes_per_task = config.classes_per_task[: config.tasks_seen]
    task_of_class = tasks_of_classes(args.checkpoint, classes_per_task)
    domains = domain_names(images.view)
    is_divided = len(set(task_of_class)) > 1 and domains is None and not has_domains(args.checkpoint)
    logits = {name: each.logits for name, each in saved.items()}
    predictions, labels = predict(logits, batches, task_of_class if is_divided else None)
    results = {
        name: {
            **prediction_metrics(predictions[name], labels, first.class_names, task_of_class, domains),
            "parameters": sum(p.numel() for p in each.model.parameters()),
            **speed(each.logits, batch),
        }
        for name, each in saved.items()
    }
    report = {
        "checkpoint": args.checkpoint,
        "dataset": args.dataset or views[0].info.dataset_name,
        "left_out": left_out,
        "notes": notes,
        "class_names": first.class_names,
        "classes_per_task": classes_per_task,
        "task_of_class": task_of_class,
        "device": describe_device(first.model.device),
        "batch_size": len(batch),
        "torch": torch.__version__,
        "models": results,
    }
    print(table(report))
    if args.output_dir is not None:
        write(report, Path(args.output_dir))
        print(f"\nWritten to {args.output_dir}: evaluation.json and pictures of the confusion matrices")


def eval_views(args: EvaluateArguments, class_names: list[str]) -> tuple[list, list[str]]:
    """Images that the model was not trained on, of the data set or the run, and notes about images left out.

    Raises:
        ValueError: The data set cannot be loaded, or none is named.
    """
    from ..data import load_image_dataset
    from ..hub.saved_models import is_run
    from ..training.run_images import own_test_images, run_of, unseen_images

    if args.dataset is not None:
        columns = ("image_column", "label_column", "domain_column")
        options = (*columns, "test_split", "split_file", "skip_unreadable_images")
        splits = load_image_dataset(
            args.dataset, test_fraction=None, **{option: getattr(args, option) for option in options}
        )
        view, notes = unseen_images(splits["test"], args.dataset, run_of(args.checkpoint))
        return [view], notes
    if not is_run(args.checkpoint):
        raise ValueError("--dataset is needed: only a run knows its test images, a saved model does not")
    return own_test_images(Path(args.checkpoint), class_names, skip_unreadable_images=args.skip_unreadable_images)


def speed(model, batch) -> dict[str, float]:
    """Latency (ms) of one image and throughput (images/s) of the batch."""
    from ..evaluation.speed import latency

    return {
        "latency_ms": latency(model, batch[:1]),
        "images_per_second": 1000 * len(batch) / latency(model, batch, repeats=5),
    }


def describe_device(device) -> str:
    import torch

    if device.type == "cpu":
        return f"CPU, torch with {torch.get_num_threads()} thread(s)"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    models = report["models"]
    images, classes = next(iter(models.values()))["images"], len(report["class_names"])
    lines = [f"{images:,} test images of {report['dataset']}; {classes} classes, no task ids"]

    def section(title: str, rows: list[tuple[str, list[str]]]) -> None:
        width = max(len(label) for label in [title, *(label for label, _ in rows)])
        lines.append("\n" + title.ljust(width) + "".join(f"{name:>12}" for name in models))
        lines.extend(label.ljust(width) + "".join(f"{value:>12}" for value in values) for label, values in rows)

    def row(label: str, text: str, value) -> tuple[str, list[str]]:
        return label, [text.format(value(figures)) for figures in models.values()]

    batch, by_task = report["batch_size"], all("accuracy_by_task" in figures for figures in models.values())
    parts_are = "tasks" if by_task else "domains"
    calibration = "calibration"
    section(
        "all classes",
        [
            row(f"accuracy, mean over {parts_are}", "{:.2f} %", lambda f: f["average_accuracy"]),
            row("accuracy, mean over images", "{:.2f} %", lambda f: f["average_accuracy_by_image"]),
            *(
                row(label, "{:.2f} %", lambda f, name=name: f[name])
                for name, label in _BY_TASK.items()
                if all(name in figures for figures in models.values())
            ),
            row("mean confidence of the predictions", "{:.2f} %", lambda f: f[calibration]["mean_confidence"]),
            row("calibration error (ECE), points", "{:.2f}", lambda f: f[calibration]["expected_calibration_error"]),
            row("latency of one image, ms", "{:.2f}", lambda f: f["latency_ms"]),
            row(f"images per second, batches of {batch}", "{:,.0f}", lambda f: f["images_per_second"]),
            row("parameters", "{:,}", lambda f: f["parameters"]),
        ],
    )
    lines.append(f"(measured on {report['device']}, including the query pass)")
    parts, tasks = [], report["task_of_class"]
    for task in range(max(tasks) + 1) if by_task else ():
        names = [name for name, own in zip(report["class_names"], tasks, strict=True) if own == task]
        values = [shown(figures["accuracy_by_task"][task]) for figures in models.values()]
        parts.append((f"  {task + 1:>2}  {listed(names, 3)}", values))
    for domain in [] if by_task else next(iter(models.values()))["accuracy_by_domain"]:
        parts.append((f"  {domain}", [shown(figures["accuracy_by_domain"][domain]) for figures in models.values()]))
    section(f"by {parts_are[:-1]}", parts)
    last = list(models)[-1]
    by_class = [(name, a) for name, a in models[last]["accuracy_by_class"].items() if a is not None]
    hardest = sorted(by_class, key=lambda pair: pair[1])[:SHOWN]
    section(
        "hardest classes" + (f" of the {last}" if len(models) > 1 else ""),
        [(f"  {name}", [shown(f["accuracy_by_class"][name]) for f in models.values()]) for name, _ in hardest],
    )
    for name, figures in models.items():
        lines.append(f"\nmost frequent mistakes of the {name}")
        lines.extend(
            f"  {pair['images']:>4} x  {pair['class']} taken for {pair['taken_for']}"
            for pair in figures["worst_pairs"][:SHOWN]
        )
    return "\n".join(lines)


def shown(accuracy: float | None) -> str:
    return "no images" if accuracy is None else f"{accuracy:.1f} %"


def listed(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def make_folder(folder: Path) -> None:
    """
    Raises:
        ValueError: The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").touch()
    except OSError as error:
        raise ValueError(f"output_dir {folder} cannot be written to: {error.strerror}") from error


def write(report: dict[str, Any], folder: Path) -> None:
    from ..evaluation.plots import plot_confusion
    from ..utils import write_json

    write_json(folder / "evaluation.json", report)
    for name, figures in report["models"].items():
        plot_confusion(
            np.array(figures["confusion"]),
            folder / f"confusion_{name}.png",
            f"{report['dataset']}: confusion of the {name}",
            class_names=report["class_names"],
            classes_per_task=[size for size in report["classes_per_task"] if size],
        )


if __name__ == "__main__":
    main()
