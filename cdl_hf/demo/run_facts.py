"""What a page says about a run: its name, date, data set, models and accuracies."""

import json
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ..catalogue import ALIGNED_HEAD, CLASSIFIERS, DISTILLATION_METHODS, PROMPT_METHODS, method_of
from ..escaping import portable
from ..training.build import backbone_source
from .run_models import RunModels

RESULTS = "results.json"


@dataclass(frozen=True)
class ModelFacts:
    """One of the two models.

    Args:
        backbone: Its name.
        parameters: Their number.
        learned: How it was trained, in a phrase.
        classifier: What its predictions are made with.
        has_probabilities: Whether its scores are probabilities. Those of a computed classifier of an earlier version
            are not: they are close together, and only their order counts.
        accuracies: Average accuracy in % over the tasks so far, after each task; empty if it is not known.
    """

    backbone: str
    parameters: int
    learned: str
    classifier: str
    has_probabilities: bool
    accuracies: list[float] = field(default_factory=list)

    def accuracy(self, task: int) -> float | None:
        """After a task; a jointly trained model has one accuracy."""
        return self.accuracies[min(task, len(self.accuracies) - 1)] if self.accuracies else None


@dataclass(frozen=True)
class RunFacts:
    """A run and its models by role; the date is empty if it is not known."""

    name: str
    dataset: str
    date: str
    models: dict[str, ModelFacts]


def read_facts(run: Path, models: RunModels) -> RunFacts:
    """What is known of a run, without the paths of the machine that it is on."""
    results = read_results(run)
    return RunFacts(
        name=results.get("name", run.resolve().name),
        dataset=portable(models.args["dataset"]),
        date=results.get("date", ""),
        models={
            role: _model(models, role, results.get(role, {}))
            for role in ("teacher", "student")
            if role in models.saved
        },
    )


def read_results(run: Path) -> dict[str, Any]:
    """The `results.json` of a run with its `name` and `date`; empty without a readable one.

    The date is that of the file, unless it is stored, as for a Space.
    """
    path = run / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        written = date.fromtimestamp(path.stat().st_mtime).isoformat()
    except (OSError, ValueError):
        return {}
    return {"name": run.resolve().name, "date": written, **results} if isinstance(results, dict) else {}


def _model(models: RunModels, role: str, results: dict[str, Any]) -> ModelFacts:
    model, args = models.saved[role].model, models.args
    prompt_method = model.config.prompt_method
    prompts = "" if prompt_method == "none" else f"{method_of(PROMPT_METHODS, prompt_method).title} prompts"
    is_distilled = role == "student" and args["distillation"] != "none"
    distilled = f"distilled with {method_of(DISTILLATION_METHODS, args['distillation']).title}" if is_distilled else ""
    is_aligned = args["classifier_alignment"] == "True" and model.config.head == "linear"
    classifier = (ALIGNED_HEAD if is_aligned else method_of(CLASSIFIERS, model.config.head)).title
    return ModelFacts(
        backbone=portable(backbone_source(model)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        learned=", ".join(phrase for phrase in (prompts or "frozen, without prompts", distilled) if phrase),
        classifier=classifier if model.kd_head is None else f"{classifier}, combined with that of its KD tokens",
        # a classifier of an earlier version has no scale for its logits
        has_probabilities=model.config.head == "linear" or model.logit_scale.item() != 1,
        accuracies=[sum(row) / len(row) for row in results.get("accuracy_matrix", [])],
    )
