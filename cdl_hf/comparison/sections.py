"""Sections of a report in Markdown, with their pictures: introduction, one chapter a benchmark, how it was made."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..escaping import markdown_name
from ..evaluation.pareto import pareto_front
from ..evaluation.plots import plot_accuracy_against_cost, plot_accuracy_over_tasks
from .experiments import CLASSIFIER_TITLES, Experiment
from .reported import reported_pairs
from .statistics import MeanStd, Scores, paired_difference, significantly_best

Latencies = Mapping[tuple[str, str], dict[str, Any]]

INTRODUCTION = (
    "A_N is the accuracy on all classes after the last task, the mean over the tasks; models predict without the task "
    "id. Forgetting is in points, by the definition `cdl`. ± is the standard deviation over the seeds. Brackets give "
    "the 95% confidence interval of a difference: Student's t over the differences of runs with the same seed, not "
    "corrected for the number of comparisons. **Bold** marks the best result of its kind if the interval of its "
    "difference to every other excludes zero; with three seeds this takes a difference of 2.5 times the differences' "
    "standard deviation."
)
FILES = "All figures are in [results.csv](results.csv), arguments and results of each run in [runs.jsonl](runs.jsonl)."
OVERVIEW = (
    "A_N in %, and below it the difference to the same backbone, frozen and without prompts. The last column is the "
    "difference to the student alone, for each seed the mean over the prompt methods in the row."
)
CLASSIFIERS_TEXT = (
    "The prompts are those of the models with trained heads above. An aligned head is the trained head after "
    f"classifier alignment; the other classifiers are computed from the features of all classes. {OVERVIEW}"
)
BASELINES = (
    "A_N in %, of the teacher and of the student. Joint training is the same training, with as many epochs, on one "
    "task with all classes: nothing can be forgotten, and all classes are compared. Students listed with a "
    "distillation method are trained jointly as well."
)
PAPERS = (
    "A_N / F_N in %. *Reported* are the figures of the methods' authors (arXiv 2407.13911), *measured* those of the "
    "runs in this report."
)
TRAINING_COST = (
    "Seconds of wall-clock time for the model's own stages, the mean over the seeds. They are noisy: runs may have "
    "shared their machine with others, and a student reuses the outputs that its teacher's run has cached."
)


def introduction(experiments: Iterable[Experiment]) -> str:
    """Title, notation and files."""
    runs = {name for e in experiments for name in e.runs.values()}
    return "\n\n".join([f"# Report of {len(runs)} runs", INTRODUCTION, FILES])


def how_it_was_made(experiments: Iterable[Experiment], measured: Latencies) -> str:
    """Commands and versions."""
    texts = {json.dumps(result["versions"], sort_keys=True) for e in experiments for result in e.results.values()}
    versions = [
        ", ".join(f"{name} {number}" for name, number in json.loads(text).items() if number) for text in sorted(texts)
    ]
    return "\n\n".join(
        [
            "## How it was made",
            "```\npython recipes/compare.py GRID.yaml --output_dir RUNS\n"
            f"python recipes/report.py RUNS --output_dir REPORT{' --measure_latency' if measured else ''}\n```",
            "`python recipes/report.py REPORT --output_dir REPORT` rebuilds the report from its runs.jsonl. Versions: "
            f"{markdown_name('; '.join(versions))}.",
        ]
    )


class BenchmarkChapter:
    """The sections on the experiments of one benchmark.

    Args:
        experiments: Experiments of the benchmark, in the order of the report.
        measured: Latencies by name and role of the experiment.
        reported: Files with reported figures.
        output: Folder for the pictures.
        suffix: End of the pictures' names.
    """

    def __init__(
        self,
        experiments: list[Experiment],
        measured: Latencies,
        reported: Iterable[Path],
        output: Path,
        suffix: str = "",
    ):
        self.experiments, self.measured, self.output, self.suffix = experiments, measured, output, suffix
        self.benchmark = b = experiments[0].benchmark
        self.reported = reported_pairs(reported, b.source, b.teacher, b.student)
        order = "" if b.class_order == "natural" else f", class order {b.class_order} {b.stream_seed}"
        split = "" if b.tested_on == "test" else f", tested on {b.tested_on} images"
        self.title = f"{b.source}: {b.teacher} teaches {b.student}{order}{split}"

    def sections(self) -> list[str]:
        parts = [f"## {markdown_name(self.title)}"]
        for num_tasks in self._stream_lengths:
            members = [e for e in self.experiments if e.stream["num_tasks"] == num_tasks]
            suffix = f", {num_tasks} tasks" if len(self._stream_lengths) > 1 else ""
            parts += [self._methods(members, suffix), self._classifiers(members, suffix)]
        parts += [self._baselines(), self._papers(), self._cost_and_accuracy(), self._training_cost()]
        return parts

    @property
    def _stream_lengths(self) -> list[int]:
        return sorted({e.stream["num_tasks"] for e in self.experiments if not e.is_joint})

    def _methods(self, members: list[Experiment], suffix: str) -> str:
        """A_N and forgetting of each distillation method, and the curves over the tasks."""
        linear = [e for e in members if e.classifier == "linear"]
        by_prompts = grouped([e for e in linear if e.prompt_method != "none"], lambda e: e.prompt_method)
        parts = [f"### Distillation methods{suffix}"] if by_prompts else []
        if len(by_prompts) > 1:
            parts += [OVERVIEW, overview(linear)]
        for prompt_method, learners in by_prompts.items():
            students = [e for e in learners if e.role == "student"]
            alone = next((e for e in students if e.distillation == "none"), None)
            best = best_student(students)
            rows = []
            for e in learners:
                differences = ["", ""]
                if e.role == "student" and alone is not None and e is not alone:
                    accuracy = paired_difference(e.accuracy, alone.accuracy)
                    forgetting = paired_difference(e.forgetting, alone.forgetting)
                    differences = [str(accuracy or ""), str(forgetting or "")]
                scores = [bold(str(MeanStd.of(e.accuracy)), e.learner == best), str(MeanStd.of(e.forgetting))]
                pairs = zip(scores, differences, strict=True)
                rows.append([markdown_name(e.learner), *(cell for pair in pairs for cell in pair), e.seeds])
            header = ["learner", "A_N (%)", "vs. student alone", "forgetting (points)", "vs. student alone", "seeds"]
            name = f"curves-{prompt_method}-{learners[0].stream['num_tasks']}{self.suffix}.svg"
            self._draw_curves(learners, members, name)
            picture = f"![Accuracy over the tasks: {prompt_method}]({name})"
            parts += [f"#### {prompt_method}", table(header, rows), picture]
        return "\n\n".join(parts)

    def _draw_curves(self, learners: list[Experiment], members: list[Experiment], name: str) -> None:
        frozen = {e.role: e for e in members if e.prompt_method == "none" and e.classifier == "ncm"}
        plot_accuracy_over_tasks(
            {e.learner: e.accuracy_matrix() for e in learners},
            self.output / name,
            f"{self.benchmark.source}: {learners[0].prompt_method}, seeds {learners[0].seeds}",
            classes_per_task=learners[0].stream["classes_per_task"],
            references={f"class means, {role}": MeanStd.of(e.accuracy).mean for role, e in frozen.items()},
        )

    def _classifiers(self, members: list[Experiment], suffix: str) -> str:
        """Other classifiers on the same prompts, and on the frozen backbones."""
        parts = []
        others = sorted(members, key=lambda e: place_in(CLASSIFIER_TITLES, e.classifier))
        for title, experiments in grouped(others, lambda e: e.classifier_title).items():
            if experiments[0].classifier != "linear" and any(e.prompt_method != "none" for e in experiments):
                parts += [f"#### {title}", overview(experiments)]
        return "\n\n".join([f"### Classifiers{suffix}", CLASSIFIERS_TEXT, *parts]) if parts else ""

    def _baselines(self) -> str:
        """Frozen backbones, and joint training."""
        lines: dict[str, dict[str, Experiment]] = {}
        for e in self.experiments:
            if e.prompt_method == "none" or e.is_joint:
                several = len(self._stream_lengths) > 1 and not e.is_joint
                stream = f", {e.stream['num_tasks']} tasks" if several else ""
                lines.setdefault(baseline_label(e) + stream, {})[e.role] = e
        if not lines:
            return ""
        cells = [
            [
                markdown_name(name),
                *(str(MeanStd.of(of[role].accuracy)) if role in of else "" for role in ("teacher", "student")),
            ]
            for name, of in lines.items()
        ]
        header = ["", markdown_name(self.benchmark.teacher), markdown_name(self.benchmark.student)]
        return "\n\n".join(["### Baselines", BASELINES, table(header, cells)])

    def _papers(self) -> str:
        """Reported figures next to the measured ones."""
        rows = []
        for e in self.experiments:
            differs = e.is_joint or e.has_joint_teacher or e.note or e.classifier != "linear"
            if (e.prompt_method, e.distillation) in self.reported and not differs:
                reported = self.reported[e.prompt_method, e.distillation]
                measured = f"{MeanStd.of(e.accuracy)} / {MeanStd.of(e.forgetting)}"
                rows.append([e.prompt_method, markdown_name(e.learner), reported, measured, e.seeds])
        if not rows:
            return ""
        header = ["prompts", "learner", "reported by the papers", "measured here", "seeds"]
        return "\n\n".join(["### Comparison with the papers", PAPERS, table(header, rows, numbers_from=2)])

    def _cost_and_accuracy(self) -> str:
        """The Pareto fronts."""
        continual = [e for e in self.experiments if not e.is_joint and not e.has_joint_teacher]
        if not continual:
            return ""
        costs = {"parameters": {e.label: e.num_parameters for e in continual}}
        if all((e.name, e.role) in self.measured for e in continual):
            costs["latency"] = {e.label: self.measured[e.name, e.role]["milliseconds"] for e in continual}
        titles = {"parameters": "Parameters that a prediction needs", "latency": "Latency of one image (ms)"}
        parts = ["### Accuracy against cost"]
        for kind, costs_by_label in costs.items():
            groups: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
            for e in continual:
                point = costs_by_label[e.label], MeanStd.of(e.accuracy).mean
                groups.setdefault((e.prompts, e.role), {})[e.label] = point
            name = f"pareto-{kind}{self.suffix}.svg"
            plot_accuracy_against_cost(groups, self.output / name, self.title, titles[kind])
            points = {label: point for members in groups.values() for label, point in members.items()}
            unit, digits = ("parameters", 0) if kind == "parameters" else ("ms", 2)
            front = [
                [markdown_name(label), f"{points[label][0]:,.{digits}f}", f"{points[label][1]:.2f}"]
                for label in pareto_front(points)
            ]
            parts += [
                f"![Accuracy against {kind}]({name})",
                f"No other experiment has at most their {kind} and a higher mean accuracy:",
                table(["experiment", unit, "A_N (%)"], front),
            ]
        if "latency" in costs:
            devices = sorted({self.measured[e.name, e.role]["device"] for e in continual})
            parts.append(f"Latencies are medians of 100 single images, on: {markdown_name('; '.join(devices))}.")
        return "\n\n".join(parts)

    def _training_cost(self) -> str:
        """Seconds and sizes."""
        rows = []
        for e in self.experiments:
            if e.classifier == "linear":
                prompts = f"{e.prompts}, joint" if e.is_joint else e.prompts
                sizes = [f"{e.num_parameters:,}", f"{e.num_trainable_parameters:,}"]
                rows.append([prompts, markdown_name(e.learner), *sizes, f"{MeanStd.of(e.seconds).mean:,.0f}"])
        header = ["prompts", "learner", "parameters", "trainable", "seconds (noisy)"]
        return "\n\n".join(["### Training cost", TRAINING_COST, table(header, rows, numbers_from=2)])


def overview(experiments: list[Experiment]) -> str:
    """A_N of every learner with every prompt method, what prompts add to it and what distillation adds."""
    by_prompts = grouped(experiments, lambda e: e.prompts)
    alone = {name: e for name, members in by_prompts.items() for e in members if e.distillation == "none"}
    frozen = {e.learner: e for e in by_prompts.get("frozen", [])}
    best = {name: best_student(members) for name, members in by_prompts.items()}
    rows = []
    for learner, members in grouped(experiments, lambda e: e.learner).items():
        found = {e.prompts: e for e in members}
        cells = []
        for name in by_prompts:
            cell = ""
            if name in found:
                cell = bold(str(MeanStd.of(found[name].accuracy)), learner == best[name])
                if learner in frozen and name != "frozen":
                    cell += f"<br>{paired_difference(found[name].accuracy, frozen[learner].accuracy) or ''}"
            cells.append(cell)
        references = [alone[name] for name in found if name in alone]
        difference = None
        if members[0].distillation not in (None, "none") and len(references) == len(members):
            difference = paired_difference(mean_accuracy(members), mean_accuracy(references))
        rows.append([markdown_name(learner), *cells, str(difference or "")])
    return table(["learner", *by_prompts, "vs. student alone"], rows)


def baseline_label(e: Experiment) -> str:
    """What a frozen or jointly trained model is."""
    if e.is_joint:
        how = e.classifier_title + ", joint training"
        if e.classifier == "linear":
            how = "joint linear probe" if e.prompt_method == "none" else "joint training"
    else:
        trained = {"linear": "head trained task by task", "aligned": "head trained task by task and aligned"}
        how = trained.get(e.classifier, e.classifier_title)
    return ", ".join([e.prompts, how] if e.distillation in (None, "none") else [e.prompts, how, e.learner])


def best_student(experiments: Iterable[Experiment]) -> str | None:
    """Learner that is significantly best; students of joint teachers do not count, as these do not learn a stream."""
    students = [e for e in experiments if e.role == "student" and not e.has_joint_teacher]
    return significantly_best({e.learner: e.accuracy for e in students})


def mean_accuracy(experiments: list[Experiment]) -> Scores:
    """Mean A_N of the experiments, for each seed that all have."""
    seeds = set.intersection(*(set(e.accuracy) for e in experiments))
    return {seed: statistics.fmean(e.accuracy[seed] for e in experiments) for seed in sorted(seeds)}


def grouped(experiments: Iterable[Experiment], key: Callable[[Experiment], Any]) -> dict[Any, list[Experiment]]:
    groups: dict[Any, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(key(experiment), []).append(experiment)
    return groups


def place_in(names: Iterable[str], name: str) -> tuple[int, str]:
    """Key that sorts by the order of `names`; others, such as methods of a user's own, come last."""
    order = list(names)
    return order.index(name) if name in order else len(order), name


def table(header: list[str], rows: list[list[str]], numbers_from: int = 1) -> str:
    """Markdown; the columns from `numbers_from` on are aligned right."""
    rule = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text
