"""The model card of a run's teacher or student: its metadata for the Hub and its page, from `results.json`."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..escaping import fenced, markdown_name, markdown_text, portable, portable_arguments
from ..utils import atomic_write, write_json, write_text
from .citations import CITATIONS

TEMPLATE = Path(__file__).parent / "model_card_template.md"
PROMPT_METHODS = {"l2p": "L2P", "dualprompt": "DualPrompt", "coda_prompt": "CODA-Prompt", "apt": "APT"}
# What predicts in place of the trained heads, and the paper to cite.
HEADS = {
    "ncm": ("the nearest class mean of its features", "simplecil"),
    "ranpac": ("ridge regression on random projections of its features (RanPAC)", "ranpac"),
}
# A name for people, and the papers to cite besides the prompt method's.
DISTILLATION = {
    "none": ("no distillation", ("cdl",)),
    "kd": ("knowledge distillation of its logits (KD)", ("cdl", "kd")),
    "dkd": ("decoupled knowledge distillation (DKD)", ("cdl", "dkd")),
    "lskd": ("knowledge distillation of its standardised logits (LSKD)", ("cdl", "lskd", "kd")),
    "dist": ("the relations between its predictions (DIST)", ("cdl", "dist")),
    "fitnets": ("hints from its features (FitNets)", ("cdl", "fitnets", "kd")),
    "reviewkd": ("review of its features (ReviewKD)", ("cdl", "reviewkd", "kd")),
    "deit": ("a distillation token (DeiT)", ("cdl", "deit", "kd")),
    "kdp": ("knowledge distillation prompts (KDP)", ("cdl", "kd")),
    "cdl_prompt": ("prompts mapped from its own (CDL-Prompt)", ("cdl", "kd")),
}
OF_CDL = ("kdp", "cdl_prompt")  # methods of the paper of continual distillation learning itself
METRICS = {
    "average_accuracy": "Accuracy after the last task (%), mean over tasks: A_N",
    "average_accuracy_by_image": "Accuracy after the last task (%), mean over images",
    "average_incremental_accuracy": "Accuracy after each task (%), mean over the stream",
}
FORGETTING = {
    "cdl": "Forgetting, CDL's definition (points)",
    "max": "Forgetting from the best accuracy (points)",
    "bwt": "Backward transfer (points)",
    "coda": "Forgetting, CODA-Prompt's definition (points)",
}
NAMES_SHOWN = 20  # of a task's classes
WIDTH = 90  # of a line of code that is not cut off on the Hub
PICTURES = ("accuracy.png", "matrices.png")


@dataclass(frozen=True, kw_only=True)
class ModelCardContent:
    """What a card tells.

    Args:
        role: Which of the run's two models the card is for.
        results: The content of `results.json`.
        backbones: Backbone of each role, as the user named it.
        command: The words of the command that made the model, the script's name first.
        weights_license: The Hub's identifier of the license of the backbone's weights and so of the model
            (`apache-2.0`); None if it is not known.
        data_license: License and attribution of the images, in a sentence; None if they are not known.
        base_model: The repositories on the Hub that the weights of its transformers are from.
        hub_dataset: The data set's repository on the Hub, if it has one.
    """

    role: Literal["teacher", "student"]
    results: dict[str, Any]
    backbones: dict[str, str]
    command: list[str]
    weights_license: str | None = None
    data_license: str | None = None
    base_model: list[str] = field(default_factory=list)
    hub_dataset: str | None = None

    @property
    def dataset(self) -> str:
        """The data set's name on one line, without the folders that it lies in."""
        return " ".join(portable(self.results["stream"]["source"] or "images").split())

    @property
    def methods(self) -> list[str]:
        """What made the model, of prompts, distillation and head: those that it has."""
        args = self.results["args"]
        prompts = args["prompt_method"] if args["prompt_method"] in PROMPT_METHODS else "frozen"
        taught = [args["distillation"]] if self.role == "student" and args["distillation"] != "none" else []
        head = (
            ["aligned"]
            if args["classifier_alignment"]
            else [args["classifier"]]
            if args["classifier"] in HEADS
            else []
        )
        return [prompts, *taught, *head]

    @property
    def tags(self) -> list[str]:
        """Words by which the Hub finds it."""
        prompted = ["prompt-tuning"] if "frozen" not in self.methods else []
        taught = ["knowledge-distillation"] if set(self.methods) & set(DISTILLATION) else []
        words = [method.replace("_", "-") for method in self.methods if method not in ("frozen", "aligned")]
        return ["continual-learning", "class-incremental-learning", *prompted, *taught, "vit", *words]

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
    """Adds to a run's `teacher/` or `student/` what a repository has besides the model: card, results and pictures."""
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


def _metadata(content: ModelCardContent) -> ModelCardData:
    own = content.results[content.role]
    metrics = {name: ("accuracy", label, own[name]) for name, label in METRICS.items()}
    metrics["forgetting"] = ("forgetting", FORGETTING["cdl"], own["forgetting"]["cdl"])
    hub_dataset = content.hub_dataset if _is_on_the_hub(content.hub_dataset) else None
    return ModelCardData(
        model_name=content.model_name,
        license=_license_id(content.weights_license),
        library_name="transformers",  # the code of the model is in the repository
        pipeline_tag="image-classification",
        tags=content.tags,
        base_model=[name for name in content.base_model if _is_on_the_hub(name)] or None,
        datasets=hub_dataset,
        metrics=["accuracy"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                task_name="Class-incremental image classification",
                dataset_type=hub_dataset or content.dataset,
                dataset_name=f"{content.dataset}, {content.results['stream']['num_tasks']} tasks",
                dataset_split=content.results["tested_on"],
                metric_type=kind,
                metric_name=label,
                metric_value=round(value, 2),
            )
            for kind, label, value in metrics.values()
        ],
    )


def _is_on_the_hub(name: str | None) -> bool:
    """Whether it can be a repository's name; a path or an address is none."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _license_id(license: str | None) -> str | None:
    """The Hub takes its own identifiers and `other`, and refuses a card with anything else."""
    return license if license is None or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", str(license)) else "other"


def _page(content: ModelCardContent, weights_bytes: int) -> dict[str, Any]:
    """What the template shows; names are escaped here."""
    results, stream = content.results, content.results["stream"]
    roles = [role for role in ("teacher", "student") if role in results]
    args = results["args"]
    distillation, papers = DISTILLATION[args["distillation"]]
    if content.role == "teacher":
        papers = ("cdl",)
    return {
        "content": content,
        "args": args,
        "own": results[content.role],
        "other": results.get("teacher" if content.role == "student" else "student"),
        "prompt_method": _linked(PROMPT_METHODS.get(args["prompt_method"], ""), args["prompt_method"]),
        "head": _linked(*HEADS[args["classifier"]]) if args["classifier"] != "linear" else None,
        "aligned": args["classifier_alignment"],
        "distillation": _linked(distillation, "cdl" if args["distillation"] in OF_CDL else args["distillation"]),
        "taught": content.role == "student" and args["distillation"] != "none",
        "backbones": {role: markdown_name(portable(name)) for role, name in content.backbones.items()},
        "model_name": markdown_name(content.model_name),
        "dataset": markdown_name(content.dataset),
        "weights_license": markdown_text(str(content.weights_license or "")),
        "megabytes": weights_bytes / 1e6,
        "stream": stream,
        "num_classes": len(stream["class_names"]),
        "num_images": {split: sum(stream[split]) for split in ("train", "validation", "test")},
        "tested_on": results["tested_on"],
        "tasks": _task_rows(results[content.role]["accuracy_matrix"], stream),
        "roles": roles,
        "comparison": [
            *_comparison([results[role] for role in roles]),
            _latency_row(results["latency_ms"], roles),
        ],
        "command": fenced(_lines([portable(word) for word in content.command])),
        "versions": results["versions"],
        "citations": [CITATIONS[key] for key in _papers(args, papers)],
    }


def _linked(text: str, paper: str) -> str:
    """The text with a link to the paper, where there is one."""
    number = re.search(r"arXiv:([\d.]+)", CITATIONS.get(paper, ""))
    return f"[{text}](https://arxiv.org/abs/{number[1].rstrip('.')})" if number else text


def _lines(command: list[str]) -> str:
    """A command for the shell; a long one has a line for each option."""
    text = shlex.join(command)
    if len(text) <= WIDTH:
        return text
    parts = [[]]
    for word in command:
        if word.startswith("--"):
            parts.append([])
        parts[-1].append(word)
    return " \\\n    ".join(shlex.join(part) for part in parts)


def _papers(args: dict[str, Any], of_distillation: tuple[str, ...]) -> list[str]:
    """Keys of what to cite."""
    prompts = [args["prompt_method"]] if args["prompt_method"] in PROMPT_METHODS else []
    head = [HEADS[args["classifier"]][1]] if args["classifier"] != "linear" else []
    return [*prompts, *of_distillation, *head, *(["slca"] if args["classifier_alignment"] else [])]


def _task_rows(matrix: list[list[float]], stream: dict[str, Any]) -> list[dict[str, Any]]:
    """For each task learnt: its classes, the accuracy right after it and after the last task."""
    rows, start = [], 0
    for task, row in enumerate(matrix):
        names = stream["class_names"][start : start + stream["classes_per_task"][task]]
        start += len(names)
        shown = ", ".join(markdown_text(name) for name in names[:NAMES_SHOWN])
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        rows.append({"classes": shown + more, "learnt": row[task], "last": matrix[-1][task]})
    return rows


def _comparison(models: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Rows of the table teacher against student: label, one figure for each."""
    rows = [(label, [f"{model[name]:.2f}" for model in models]) for name, label in METRICS.items()]
    rows += [(label, [f"{model['forgetting'][name]:.2f}" for model in models]) for name, label in FORGETTING.items()]
    rows += [("Parameters", [f"{model['parameters']:,}" for model in models])]
    rows += [("Parameters learnt on the stream", [f"{model['trainable_parameters']:,}" for model in models])]
    return rows


def _latency_row(latency: dict[str, Any], roles: list[str]) -> tuple[str, list[str]]:
    return f"Latency of one image (ms), {markdown_name(latency['device'])}", [f"{latency[role]:.1f}" for role in roles]
