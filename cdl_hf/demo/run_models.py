"""The models of a run, which predict as they did after any of its tasks."""

import threading
from pathlib import Path

import PIL.Image
from torch import Tensor

from ..data import eval_transform
from ..data.sources import dataset_spec
from ..hub.learned_models import RECORD, read_record
from ..hub.saved_models import SavedModel, load_run
from ..models.growth import MissingStatistics
from ..runs.task_checkpoints import TaskCheckpoints
from .taught import Taught, copy_of, why_not

TOP = 5
ARGUMENTS = ("dataset", "distillation", "classifier_alignment")  # that the page needs

Classes = list[tuple[str, float]]  # the most probable ones with their probabilities


class RunModels:
    """The models of a run, which predict as they did after any of its tasks.

    Args:
        run: Output folder of a finished run, or of `cdl-hf learn` or `forget`.

    Attributes:
        saved: The models with their image processors, by role.
        args: Arguments of the run that the page shows.
        num_tasks: Number of tasks of the run.
        has_all_tasks: Whether it can go back to earlier tasks: a run of one task, a run with a jointly trained teacher
            and a folder without `states/` show only their end.
        takes_drawings: Whether the models were trained on drawings.
        cannot_learn: Why a visitor cannot teach the models a class, in a sentence; empty if one can.

    Raises:
        ValueError: The folder holds no models of a run, or one cannot be loaded.
    """

    def __init__(self, run: Path):
        self.args = _arguments(run)
        self.saved, self.cannot_learn = _load(run)
        self._last = {} if self.cannot_learn else {role: _copy(saved) for role, saved in self.saved.items()}
        longest = max(self.saved.values(), key=lambda saved: saved.model.config.num_tasks)
        self.class_names, self.classes_per_task = longest.class_names, longest.model.config.classes_per_task
        self.transform = eval_transform(longest.image_processor)
        self.num_tasks = longest.model.config.tasks_seen
        self.takes_drawings = dataset_spec(self.args["dataset"]).is_drawings
        self._states = {role: TaskCheckpoints(run, role) for role in self.saved}
        tasks = range(self.num_tasks)
        self.has_all_tasks = self.num_tasks > 1 and all(
            states.path(task).is_file() for states in self._states.values() for task in tasks
        )
        self._lock, self._task = threading.Lock(), self.num_tasks - 1
        blank = self.transform.pixels(PIL.Image.new("L", (64, 64)))
        self.predict(blank, self._task)  # the first prediction takes longer than all others

    def classes(self, task: int) -> list[str]:
        """Names of the classes of a task."""
        start = sum(self.classes_per_task[:task])
        return self.class_names[start : start + self.classes_per_task[task]]

    def num_seen(self, task: int) -> int:
        """Number of classes seen after a task."""
        return sum(self.classes_per_task[: task + 1])

    def predict(self, pixels: Tensor, task: int) -> dict[str, Classes]:
        """The most probable classes of an image for each model, as it was after `task`.

        Args:
            pixels: uint8 (3, H, W), as the transform makes them.

        Raises:
            ValueError: The checkpoint of the task is damaged or of another model.
        """
        names, values = self.class_names[: self.num_seen(task)], self.transform.normalize(pixels[None])
        with self._lock:  # one visitor at a time, because the models change with the task
            self._go_to(task)
            return {role: most_probable(saved.logits(values), names) for role, saved in self.saved.items()}

    def taught(self) -> Taught:
        """The models after the last task, for one visitor to teach."""
        return Taught(self._last)

    def _go_to(self, task: int) -> None:
        if task == self._task:
            return
        self._task = -1  # if only one of them can be loaded, both are loaded again the next time
        for role, saved in self.saved.items():
            self._states[role].load(task, saved.model)
            saved.model.config.tasks_seen = task + 1
        self._task = task


def most_probable(logits: Tensor, names: list[str]) -> Classes:
    """Of the logits (1, C) of an image."""
    best = logits[0].softmax(0).topk(min(TOP, len(names)))
    return list(zip([names[i] for i in best.indices.tolist()], best.values.tolist(), strict=True))


def _load(run: Path) -> tuple[dict[str, SavedModel], str]:
    """The models, and why they cannot learn further classes.

    Raises:
        ValueError: A model cannot be loaded.
    """
    try:
        saved = load_run(run, statistics=True)
        return saved, why_not(saved)
    except MissingStatistics:
        return load_run(run), (
            "This run has not kept what its models need to learn further classes: train it with --save_statistics."
        )


def _copy(saved: SavedModel) -> SavedModel:
    return SavedModel(copy_of(saved.model), saved.image_processor)


def _arguments(run: Path) -> dict[str, str]:
    if (run / "config.json").is_file():
        raise ValueError(f"{run} is not the output folder of a run, but one of its models: give the folder above it")
    file = next((run / name for name in (RECORD, "args.yaml") if (run / name).is_file()), None)
    if file is None:
        raise ValueError(f"{run} is not the output folder of a run: it has neither args.yaml nor {RECORD}")
    record = read_record(str(run)) or {}
    found = {"classifier_alignment": False, **record["arguments"]}
    found["dataset"] = record.get("dataset", found.get("dataset"))
    if missing := [name for name in ARGUMENTS if found.get(name) is None]:
        raise ValueError(f"{file} is damaged: it has no {missing[0]}")
    return {name: str(found[name]) for name in ARGUMENTS}
