"""Experiments: finished runs grouped so that those of one experiment differ in class order and seed alone."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, NamedTuple

from ..arguments.config import DistillationArguments
from ..arguments.sets import affecting, names_of, not_of_the_run, planned, shown_in_labels, unused
from ..catalogue import ALIGNED_HEAD, CLASSIFIERS, DISTILLATION_METHODS, PROMPT_METHODS, method_of, prompt_method_of
from ..evaluation import metric_in
from .statistics import Scores

# Titles of the classifiers in the order of a report; `aligned` is the linear one after classifier alignment
CLASSIFIER_TITLES = {"linear": CLASSIFIERS["linear"].title, "aligned": ALIGNED_HEAD.title}
CLASSIFIER_TITLES |= {name: method.title for name, method in CLASSIFIERS.items() if name != "linear"}
JOINT_TEACHER = "joint teacher"  # trained on all classes before the student's first task


class Unit(NamedTuple):
    """What runs of one experiment differ in, and what runs of two share to be compared in pairs.

    Args:
        order: Seed of the stream: of a drawn class order, and of the images held out or kept.
        seed: Seed of the training: of the initial weights, and of the order and augmentation of the images.
    """

    order: int
    seed: int


class Benchmark(NamedTuple):
    """What experiments must share to be compared: data, kind of class order, backbones and images.

    Args:
        source: Name of the data set.
        class_order: `natural`, `seeded`, or all names.
        teacher: Name of the teacher's backbone.
        student: Name of the student's backbone.
        tested_on: `"test"` or `"validation"`.
        classes: Names of the classes; sorted where their order is drawn.
        num_train: Number of training images in all tasks.
        num_tested_on: Number of images tested on.
    """

    source: str
    class_order: str
    teacher: str
    student: str
    tested_on: str
    classes: tuple[str, ...]
    num_train: int
    num_tested_on: int


@dataclass(frozen=True)
class Experiment:
    """One model, teacher or student, of runs that differ in class order and seed alone.

    Args:
        name: Name of the runs, of the first class order, without the seed.
        role: `"teacher"` or `"student"`, the model in question.
        runs: Name of the run by class order and seed.
        results: Content of `results.json` by class order and seed.
        note: The arguments that distinguish it from experiments with the same label.
    """

    name: str
    role: str
    runs: Mapping[Unit, str]
    results: Mapping[Unit, dict[str, Any]]
    note: str = ""

    @property
    def args(self) -> dict[str, Any]:
        return self._first["args"]

    @property
    def origin(self) -> str:
        """Where its runs come from, if from elsewhere: see [`cdl_hf.comparison.elsewhere`]."""
        return self.name.rpartition("/")[0]

    @property
    def stream(self) -> dict[str, Any]:
        return self._first["stream"]

    @property
    def prompt_method(self) -> str:
        """The prompt method; `"none"` for frozen backbones."""
        return prompt_method_of(self.args, self.role)

    @property
    def distillation(self) -> str | None:
        """The distillation method; `None` for a teacher."""
        return None if self.role == "teacher" else self.args["distillation"]

    @property
    def classifier(self) -> str:
        """`linear`, `aligned` (linear, after classifier alignment), `ncm` or `ranpac`."""
        is_aligned = self.args["classifier_alignment"] and self.args["classifier"] == "linear"
        return "aligned" if is_aligned else self.args["classifier"]

    @property
    def classifier_title(self) -> str:
        return CLASSIFIER_TITLES.get(self.classifier, self.classifier)

    @property
    def prompts(self) -> str:
        """Title of the prompt method, or `frozen`."""
        return "frozen" if self.prompt_method == "none" else method_of(PROMPT_METHODS, self.prompt_method).title

    @property
    def technique(self) -> str:
        """Title of the distillation method, or `alone`; in brackets what distinguishes it from others."""
        name = self.args["distillation"]
        return self._noted("alone" if name == "none" else method_of(DISTILLATION_METHODS, name).title)

    @property
    def learner(self) -> str:
        """Teacher, student alone, or student with its method; in brackets what distinguishes it from others."""
        if self.role == "teacher":
            return self._noted("teacher")
        return f"student {self.technique}" if self.distillation == "none" else f"student, {self.technique}"

    def _noted(self, label: str) -> str:
        notes = [JOINT_TEACHER if self.has_joint_teacher else "", self.note]
        notes = [note for note in (*notes, f"from {self.origin}" if self.origin else "") if note]
        return f"{label} ({', '.join(notes)})" if notes else label

    @property
    def label(self) -> str:
        """Prompts, learner and classifier."""
        words = [self.prompts, self.learner]
        return ", ".join(words if self.classifier == "linear" else [*words, self.classifier_title])

    @property
    def is_joint(self) -> bool:
        """Whether there is one task with all classes: joint training."""
        return self.stream["num_tasks"] == 1

    @property
    def has_joint_teacher(self) -> bool:
        """Whether the student learned several tasks from a teacher that was trained on all their classes at once."""
        teacher = {} if self.distillation in (None, "none") else self._first.get("teacher", {})
        return teacher.get("num_tasks", self.stream["num_tasks"]) == 1 < self.stream["num_tasks"]

    @property
    def benchmark(self) -> Benchmark:
        order, stream, tested_on = self.args["class_order"], self.stream, self._first["tested_on"]
        names = stream["class_names"]
        return Benchmark(
            source=PurePath(stream["source"] or "images").name,
            class_order=order if isinstance(order, str) else ", ".join(order),
            teacher=self.args["teacher"],
            student=self.args["student"],
            tested_on=tested_on,
            classes=tuple(sorted(names) if order == "seeded" else names),
            num_train=sum(stream["train"]),
            num_tested_on=sum(stream[tested_on]),
        )

    @property
    def num_parameters(self) -> int:
        """Parameters that a prediction needs, with the numbers that a computed classifier keeps."""
        of_model = self._first[self.role]
        return of_model["parameters"] + of_model.get("classifier_values", 0)

    @property
    def num_trainable_parameters(self) -> int:
        return self._first[self.role]["trainable_parameters"]

    @property
    def accuracy(self) -> Scores:
        """A_N in %."""
        return self._scores(lambda result: result[self.role]["average_accuracy"])

    @property
    def learning_accuracy(self) -> Scores:
        """Mean over the tasks of the accuracy on each right after it, in %."""
        return self._scores(lambda result: result[self.role]["learning_accuracy"])

    @property
    def forgetting(self) -> Scores:
        """Forgetting by the definition `cdl`, in points."""
        return self._scores(lambda result: result[self.role]["forgetting"]["cdl"])

    def metric(self, name: str) -> Scores:
        """A metric by its name in [`METRICS`]; empty where a run does not have it."""
        values = {unit: metric_in(result[self.role], name) for unit, result in self.results.items()}
        found = {unit: value for unit, value in values.items() if value is not None}
        return found if len(found) == len(values) else {}

    @property
    def seconds(self) -> Scores:
        """Seconds of the model's own training."""
        return self._scores(lambda result: result["seconds"][self.role])

    @property
    def _first(self) -> dict[str, Any]:
        return next(iter(self.results.values()))

    def _scores(self, of_result: Callable[[dict[str, Any]], float]) -> Scores:
        return {unit: of_result(result) for unit, result in self.results.items()}


def group_runs(runs: Mapping[str, dict[str, Any]]) -> list[Experiment]:
    """Groups runs into experiments; a run that trains both models belongs to two.

    Runs of one name differ in their seed and in that of their stream. Runs of two names that differ in the seed of the
    stream alone, such as those of several class orders, are one experiment too.

    Args:
        runs: Content of `results.json`, its `args` complete, by the name of the run, which ends in `-seed<seed>` where
            there are several seeds.

    Raises:
        ValueError: Runs of one name differ in more than the seed, two runs share their name without the seed, and the
            seeds, or two experiments cannot be told apart.
    """
    grouped: dict[tuple[str, str], dict[Unit, str]] = {}
    for name, result in runs.items():
        args = result["args"]
        roles = ("teacher", "student") if args["stages"] == "both" else (args["stages"],)
        for role in roles:
            of_name = grouped.setdefault((name.removesuffix(f"-seed{args['seed']}"), role), {})
            other = of_name.setdefault(Unit(args["stream_seed"], args["seed"]), name)
            if other != name:
                raise ValueError(
                    f"the runs {other!r} and {name!r} are one run by name and seed {args['seed']}: rename one"
                )
    experiments = []
    for (name, role), names in grouped.items():
        results = {unit: runs[names[unit]] for unit in sorted(names)}
        if len({_fixed(result["args"]) for result in results.values()}) > 1:
            raise ValueError(f"the runs {name!r} differ in more than their seeds: give them different names")
        experiments.append(Experiment(name, role, {unit: names[unit] for unit in results}, results))
    alike: dict[tuple, list[Experiment]] = {}
    for e in _with_all_orders(experiments):
        learner = e.role, e.distillation, e.has_joint_teacher
        key = e.benchmark, e.stream["num_tasks"], e.prompt_method, learner, e.classifier
        alike.setdefault(key, []).append(e)
    told_apart = [noted for group in alike.values() for noted in _disambiguate(group)]
    labels: dict[tuple, str] = {}
    for e in told_apart:
        other = labels.setdefault((e.benchmark, e.stream["num_tasks"], e.label), e.name)
        if other != e.name:
            raise ValueError(f"the runs {other!r} and {e.name!r} have one label, {e.label!r}: report them apart")
    return told_apart


def _with_all_orders(experiments: Iterable[Experiment]) -> Iterable[Experiment]:
    """Experiments that differ in the seed of the stream alone, made one."""
    alike: dict[tuple, list[Experiment]] = {}
    for e in experiments:
        alike.setdefault((e.role, e.origin, e.has_joint_teacher, _fixed(e.args)), []).append(e)
    for group in alike.values():
        results = {unit: result for e in group for unit, result in e.results.items()}
        if len(results) < sum(len(e.results) for e in group):  # two names for the same runs
            yield from group
        else:
            names = {unit: name for e in group for unit, name in e.runs.items()}
            units = sorted(results)
            runs, ordered = {unit: names[unit] for unit in units}, {unit: results[unit] for unit in units}
            yield replace(group[0], runs=runs, results=ordered)


def _execution() -> frozenset[str]:
    """Arguments that say how a run is carried out, in which the runs of an experiment may differ."""
    return planned() | affecting("rounding", "files", "nothing") | not_of_the_run()


def _fixed(args: dict[str, Any]) -> str:
    """What the runs of an experiment share."""
    may_differ = _execution() | unused(args) | {"stream_seed"}
    return repr(sorted((name, repr(value)) for name, value in args.items() if name not in may_differ))


def _disambiguate(group: list[Experiment]) -> Iterable[Experiment]:
    """Experiments with the same label, each with a note of the arguments in which they differ, or else of its name."""
    ignored = _execution() | shown_in_labels() | frozenset.intersection(*(unused(e.args) for e in group))
    if group[0].role == "teacher":
        ignored |= names_of(DistillationArguments)
    names = [name for name in group[0].args if name not in ignored]
    differing = [name for name in names if len({repr(e.args.get(name)) for e in group}) > 1]
    values = {e.name: (e.origin, *(repr(e.args.get(name)) for name in differing)) for e in group}
    for experiment in group:
        notes = [f"{name.replace('_', ' ')} {experiment.args.get(name)}" for name in differing]
        if list(values.values()).count(values[experiment.name]) > 1:
            notes.append(experiment.name.rpartition("/")[2])
        yield replace(experiment, note=", ".join(notes))
