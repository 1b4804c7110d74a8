"""The model card of a run's teacher or student: its metadata for the Hub and its page, from `results.json`."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Template

from ..catalogue import (
    ALIGNED_HEAD,
    CLASSIFIERS,
    CONTINUAL_DISTILLATION,
    DISTILLATION_METHODS,
    PROMPT_METHODS,
    Method,
    Paper,
    method_of,
    prompt_method_of,
)
from ..escaping import fenced, markdown_name, markdown_text, portable, portable_arguments
from ..evaluation import metric_in, metrics_of, tasks_of
from ..utils import atomic_write, write_json, write_text

TEMPLATE = Path(__file__).parent / "model_card_template.md"
USAGE = Path(__file__).parent / "usage_template.md"  # of every card
NAMES_SHOWN = 20  # of a task's classes
WIDTH = 90  # of a line of code that is not cut off on the Hub
PICTURES = ("accuracy.png", "matrices.png")


@dataclass(frozen=True, kw_only=True)
class ModelCardContent:
    """The content of a card.

    Args:
        role: Which of the run's two models the card is for.
        results: The content of `results.json`.
        backbones: Backbone of each role, as the user named it.
        command: The words of the command that made the model, the script's name first.
        weights_license: The Hub's identifier of the license of the backbone's weights and so of the model
            (`apache-2.0`); None if it is not known.
        data_license: License and attribution of the images, in a sentence; None if they are not known.
        base_model: The repositories on the Hub that the weights of its transformers are from.
        is_drawings: Whether the model wants white lines on black.
        hub_dataset: The data set's repository on the Hub, if it has one.
    """

    role: str
    results: dict[str, Any]
    backbones: dict[str, str]
    command: list[str]
    weights_license: str | None = None
    data_license: str | None = None
    base_model: list[str] = field(default_factory=list)
    hub_dataset: str | None = None
    is_drawings: bool = False

    @property
    def dataset(self) -> str:
        """The data set's name on one line, without the folders that it lies in."""
        return " ".join(portable(self.results["stream"]["source"] or "images").split())

    @property
    def methods(self) -> list[str]:
        """Keys of its prompt method, distillation method and classifier, where they are not the plainest."""
        args = self.results["args"]
        prompt_method = prompt_method_of(args, self.role)
        prompts = "frozen" if prompt_method == "none" else prompt_method
        distilled = [args["distillation"]] if self.is_distilled else []
        classifier = "aligned" if self.has_aligned_head else args["classifier"]
        return [prompts, *distilled, *([] if classifier == "linear" else [classifier])]

    @property
    def has_aligned_head(self) -> bool:
        args = self.results["args"]
        return args["classifier_alignment"] and args["classifier"] == "linear"

    @property
    def is_distilled(self) -> bool:
        """Whether it learned from a teacher."""
        return self.role == "student" and self.results["args"]["distillation"] != "none"

    @property
    def tags(self) -> list[str]:
        """Words by which the Hub finds it."""
        prompted = ["prompt-tuning"] if "frozen" not in self.methods else []
        distilled = ["knowledge-distillation"] if self.is_distilled else []
        words = [method.replace("_", "-") for method in self.methods if method not in ("frozen", "aligned")]
        return ["continual-learning", "class-incremental-learning", *prompted, *distilled, "vit", *words]

    @property
    def model_name(self) -> str:
        return "-".join([self.dataset, *self.methods, self.role])


def write_model_card(folder: str | Path, content: ModelCardContent) -> Path:
    """Writes `README.md` into the folder of a saved model; returns its path."""
    weights_bytes = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    page = _page(content, weights_bytes)
    card = ModelCard.from_template(_metadata(content), template_path=str(TEMPLATE), **page)
    path = Path(folder) / "README.md"
    write_text(path, str(card))
    return path


def complete_model_folder(run: Path, content: ModelCardContent) -> None:
    """Adds to a run's `teacher/` or `student/` the other files of a repository: card, results and pictures."""
    folder, results = run / content.role, content.results
    write_model_card(folder, content)
    for picture in PICTURES:
        with atomic_write(folder / picture) as file:
            file.write((run / picture).read_bytes())
    shown = {
        **results,
        "args": portable_arguments(results["args"]),
        "stream": {**results["stream"], "source": content.dataset},
    }
    write_json(folder / "results.json", shown)


def usage(checkpoint: str, is_drawings: bool) -> str:
    """How to predict with a model.

    Args:
        checkpoint: The folder in the code.
    """
    template = Template(USAGE.read_text(encoding="utf-8"))
    return template.render(checkpoint=checkpoint, is_drawings=is_drawings)


def _metadata(content: ModelCardContent) -> ModelCardData:
    own, stream = content.results[content.role], content.results["stream"]
    hub_dataset = content.hub_dataset if is_on_the_hub(content.hub_dataset) else None
    return ModelCardData(
        model_name=content.model_name,
        license=license_id(content.weights_license),
        library_name="transformers",  # the code of the model is in the repository
        pipeline_tag="image-classification",
        tags=content.tags,
        base_model=[name for name in content.base_model if is_on_the_hub(name)] or None,
        datasets=hub_dataset,
        metrics=["accuracy"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                task_name=f"{'Domain' if 'domains' in stream else 'Class'}-incremental image classification",
                dataset_type=hub_dataset or content.dataset,
                dataset_name=f"{content.dataset}, {stream['num_tasks']} {tasks_of(stream)}",
                dataset_split=content.results["tested_on"],
                metric_type=metric.hub_type,
                metric_name=metric.title,
                metric_value=round(value, 2),
            )
            for name, metric in metrics_of(stream).items()
            if metric.hub_type is not None and (value := metric_in(own, name)) is not None
        ],
    )


def is_on_the_hub(name: str | None) -> bool:
    """Whether it can be a repository's name; a path or an address is none."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def license_id(license: str | None) -> str | None:
    """The Hub takes its own identifiers and `other`, and refuses a card with anything else."""
    return license if license is None or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", str(license)) else "other"


def _page(content: ModelCardContent, weights_bytes: int) -> dict[str, Any]:
    """What the template shows; names are escaped here."""
    results, stream = content.results, content.results["stream"]
    roles = [role for role in ("teacher", "student") if role in results]
    args = results["args"]
    prompt_method = prompt_method_of(args, content.role)
    prompts = method_of(PROMPT_METHODS, prompt_method)
    distillation = method_of(DISTILLATION_METHODS, args["distillation"])
    classifier = ALIGNED_HEAD if content.has_aligned_head else method_of(CLASSIFIERS, args["classifier"])
    methods = [prompts, *([distillation] if content.is_distilled else []), classifier]
    return {
        "content": content,
        "args": args,
        "own": results[content.role],
        "other": results.get("teacher" if content.role == "student" else "student"),
        "prompt_method": _linked(prompts) if prompt_method != "none" else None,
        "classifier": _linked(classifier, describe=True) if classifier is not CLASSIFIERS["linear"] else None,
        "distillation": _linked(distillation, describe=True) if content.is_distilled else None,
        "backbones": {role: markdown_name(portable(name)) for role, name in content.backbones.items()},
        "model_name": markdown_name(content.model_name),
        "dataset": markdown_name(content.dataset),
        "weights_license": markdown_text(str(content.weights_license or "")),
        "megabytes": weights_bytes / 1e6,
        "stream": stream,
        "parts": tasks_of(stream),  # what the tasks are called
        "num_classes": len(stream["class_names"]),
        "num_images": {split: sum(stream[split]) for split in ("train", "validation", "test")},
        "tested_on": results["tested_on"],
        "unlabeled_images": results.get("unlabeled_images"),
        "tasks": _task_rows(results[content.role]["accuracy_matrix"], stream),
        "roles": roles,
        "comparison": [
            *_comparison([results[role] for role in roles], stream),
            _latency_row(results["latency_ms"], roles),
        ],
        "command": fenced(_lines([portable(word) for word in content.command])),
        "usage": usage(content.role, content.is_drawings),
        "versions": results["versions"],
        "citations": [paper.bibtex for paper in _papers(methods)],
    }


def _linked(method: Method, *, describe: bool = False) -> str:
    """Its title, with a link to the paper where there is one, and its description if asked for."""
    title = markdown_name(method.title)
    title = title if method.paper is None else f"[{title}]({method.paper.url})"
    return f"{title} ({method.description})" if describe and method.description else title


def _lines(command: list[str]) -> str:
    """A command for the shell; a long one has a line for each option."""
    text = shlex.join(command)
    if len(text) <= WIDTH:
        return text
    parts: list[list[str]] = [[]]
    for word in command:
        if word.startswith("--"):
            parts.append([])
        parts[-1].append(word)
    return " \\\n    ".join(shlex.join(part) for part in parts)


def _papers(methods: list[Method]) -> list[Paper]:
    """What to cite, each once: the methods' papers, that of continual distillation learning first."""
    return list(dict.fromkeys([CONTINUAL_DISTILLATION, *(paper for method in methods for paper in method.papers)]))


def _task_rows(matrix: list[list[float]], stream: dict[str, Any]) -> list[dict[str, Any]]:
    """For each task: its domain or its classes, the accuracy right after it and after the last task."""
    rows, start = [], 0
    for task, row in enumerate(matrix):
        if "domains" in stream:
            name = markdown_text(stream["domains"][task])
            rows.append({"classes": name, "first": row[task], "last": matrix[-1][task]})
            continue
        if "blurry" in stream:
            of_class = zip(stream["class_names"], stream["blurry"]["task_of_class"], strict=True)
            names = [name for name, own in of_class if own == task]
        else:
            names = stream["class_names"][start : start + stream["classes_per_task"][task]]
        start += len(names)
        shown = ", ".join(markdown_text(name) for name in names[:NAMES_SHOWN])
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        rows.append({"classes": shown + more, "first": row[task], "last": matrix[-1][task]})
    return rows


def _comparison(models: list[dict[str, Any]], stream: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows of the table teacher against student: label, one value for each."""
    rows = []
    for name, metric in metrics_of(stream).items():
        values = [metric_in(model, name) for model in models]
        if any(value is not None for value in values):
            rows.append((metric.title, ["" if value is None else f"{value:.2f}" for value in values]))
    rows += [("Parameters", [f"{model['parameters']:,}" for model in models])]
    rows += [("Trained parameters", [f"{model['trainable_parameters']:,}" for model in models])]
    return rows


def _latency_row(latency: dict[str, Any], roles: Sequence[str]) -> tuple[str, list[str]]:
    return f"Latency of one image (ms, noisy), {markdown_name(latency['device'])}", [
        f"{latency[role]:.1f}" for role in roles
    ]
