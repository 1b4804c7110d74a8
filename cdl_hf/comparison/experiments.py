"""Finished runs put together: those that differ in nothing but the seed are one setting."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from ..evaluation.accuracy_matrix import AccuracyMatrix
from .statistics import BySeed

# Arguments that say how a run was carried out, and those that a setting's other properties tell
_HOW = {
    *(
        "seed",
        "stages",
        "teacher_run",
        "student_run",
        "cache_teacher_outputs",
        "output_dir",
        "overwrite_output_dir",
        "resume_from_checkpoint",
    ),
    *("dry_run", "dataloader_num_workers", "eval_batch_size", "save_steps", "report_to", "auto_find_batch_size"),
    *("gradient_accumulation_steps", "push_to_hub", "hub_model_id", "hub_private", "hub_task_revisions"),
}
_TOLD = {
    *("dataset", "num_tasks", "classes_per_task", "first_task_classes", "class_order", "stream_seed"),
    *("teacher", "student", "prompt_method", "distillation", "classifier", "classifier_alignment"),
}
TAUGHT_AT_ONCE = "teacher saw all classes"  # before the student's first task
_OF_STUDENTS = {"kd_alpha", "temperature", "kd_prompt_length", "kd_prompt_blocks"}


@dataclass(frozen=True)
class Setting:
    """One model of runs that differ in nothing but the seed.

    Args:
        name: Of the runs, without the seed.
        role: `"teacher"` or `"student"`, the model in question.
        runs: Name of the run by seed.
        results: Content of `results.json` by seed.
        note: In which arguments it differs from settings that are otherwise called the same.
    """

    name: str
    role: str
    runs: Mapping[int, str]
    results: Mapping[int, dict[str, Any]]
    note: str = ""

    @property
    def args(self) -> dict[str, Any]:
        return next(iter(self.results.values()))["args"]

    @property
    def stream(self) -> dict[str, Any]:
        return next(iter(self.results.values()))["stream"]

    @property
    def prompts(self) -> str:
        """The prompt method; `"none"` of frozen transformers."""
        return self.args["prompt_method"]

    @property
    def distillation(self) -> str | None:
        """The distillation method; `None` of a teacher."""
        return None if self.role == "teacher" else self.args["distillation"]

    @property
    def learner(self) -> str:
        """Teacher, student alone, or the student with its method, and what sets it apart."""
        label = "student, " + self.args["distillation"] if self.role == "student" else "teacher"
        label = "student alone" if label == "student, none" else label
        notes = ", ".join(note for note in (TAUGHT_AT_ONCE if self.taught_at_once else "", self.note) if note)
        return f"{label} ({notes})" if notes else label

    @property
    def head(self) -> str:
        """`linear`, `aligned`, or a classifier that is computed."""
        aligned = self.args["classifier_alignment"] and self.args["classifier"] == "linear"
        return "aligned" if aligned else self.args["classifier"]

    @property
    def at_once(self) -> bool:
        """Whether there is but one task, with all classes."""
        return self.stream["num_tasks"] == 1

    @property
    def taught_at_once(self) -> bool:
        """Whether the stream's tasks are several, and the student's teacher had seen all their classes at once."""
        first = next(iter(self.results.values()))
        teacher = {} if self.distillation in (None, "none") else first.get("teacher", {})
        return teacher.get("num_tasks", self.stream["num_tasks"]) == 1 < self.stream["num_tasks"]

    @property
    def scene(self) -> tuple:
        """What settings must share to be compared: data, order of the classes, models, images tested on."""
        first, args = next(iter(self.results.values())), self.args
        given = args["class_order"]
        order = given if isinstance(given, str) else ", ".join(given), args["stream_seed"]
        source = PurePath(self.stream["source"] or "images").name
        return source, *order, args["teacher"], args["student"], first["tested_on"]

    def values(self, figure: str | Callable[[dict[str, Any]], float]) -> BySeed:
        """A figure of the model, such as `average_accuracy`, by seed."""
        take = figure if callable(figure) else (lambda of_model: of_model[figure])
        return {seed: take(result[self.role]) for seed, result in self.results.items()}

    @property
    def accuracy(self) -> BySeed:
        """A_N in % by seed."""
        return self.values("average_accuracy")

    @property
    def forgetting(self) -> BySeed:
        """Forgetting by the definition `cdl` in points, by seed."""
        return self.values(lambda of_model: of_model["forgetting"]["cdl"])

    @property
    def seconds(self) -> BySeed:
        """Seconds of the model's own training, by seed."""
        return {seed: result["seconds"][self.role] for seed, result in self.results.items()}

    def matrix(self) -> AccuracyMatrix:
        """The answers of all seeds counted together."""
        matrix = AccuracyMatrix(self.stream["num_tasks"])
        for result in self.results.values():
            totals = result["stream"][result["tested_on"]]
            for after, row in enumerate(result[self.role]["accuracy_matrix"]):
                for task, accuracy in enumerate(row):
                    matrix.update(after, task, round(accuracy * totals[task] / 100), totals[task])
        return matrix


def settings_of(runs: Mapping[str, dict[str, Any]]) -> list[Setting]:
    """Puts runs together.

    Args:
        runs: Content of `results.json`, its `args` complete, by the name of the run, which ends in `-seed<seed>` where
            there are several seeds. Of a run that trains both models there are two settings.

    Raises:
        ValueError: Runs of one name differ in more than the seed.
    """
    grouped: dict[tuple[str, str], dict[int, str]] = {}
    for name, result in runs.items():
        args = result["args"]
        roles = ("teacher", "student") if args["stages"] == "both" else (args["stages"],)
        for role in roles:
            of_name = grouped.setdefault((name.removesuffix(f"-seed{args['seed']}"), role), {})
            of_name[args["seed"]] = name
    settings = []
    for (name, role), names in grouped.items():
        results = {seed: runs[names[seed]] for seed in sorted(names)}
        if len({_fixed(result["args"]) for result in results.values()}) > 1:
            raise ValueError(f"the runs {name} differ in more than their seeds: give them other names")
        settings.append(Setting(name, role, {seed: names[seed] for seed in results}, results))
    alike: dict[tuple, list[Setting]] = {}
    for setting in settings:
        key = setting.scene, setting.stream["num_tasks"], setting.prompts, setting.learner, setting.head
        alike.setdefault(key, []).append(setting)
    return [noted for group in alike.values() for noted in _told_apart(group)]


def _fixed(args: dict[str, Any]) -> str:
    return repr(sorted((name, repr(value)) for name, value in args.items() if name not in _HOW))


def _told_apart(group: list[Setting]) -> Iterable[Setting]:
    """Settings that are called the same, each with the arguments in which they differ."""
    ignored = _HOW | _TOLD | (_OF_STUDENTS if group[0].role == "teacher" else set())
    names = [name for name in group[0].args if name not in ignored]
    differing = [name for name in names if len({repr(setting.args.get(name)) for setting in group}) > 1]
    for setting in group:
        told = [f"{name.replace('_', ' ')} {setting.args.get(name)}" for name in differing]
        if len(group) > 1 and not told:
            told = [setting.name]
        yield replace(setting, note=", ".join(told))
