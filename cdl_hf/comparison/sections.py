"""Sections of a report in Markdown, with their pictures: in brief, one chapter a benchmark, how it was made."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ..escaping import markdown_name
from ..evaluation.pareto import pareto_front
from ..evaluation.plots import plot_accuracy_against_cost, plot_differences
from .brief import how_to_read, mixture, versions_table, what_was_compared, who_won
from .effects import (
    Effects,
    best_student,
    contenders,
    effects_by_prompts,
    effects_over_prompts,
    finding,
    grouped,
)
from .elsewhere import where_from
from .experiments import CLASSIFIER_TITLES, Experiment
from .reported import reported_pairs
from .statistics import MeanStd, Scores, best_of, compare

Latencies = Mapping[tuple[str, str], dict[str, Any]]

NUM_NEXT = 9  # in the picture of those after the best
OVERVIEW = (
    "A_N in %; below it the difference to the same backbone, frozen and without prompts, where there is one. "
    "The last column is the difference to the student alone, for each run the mean over the prompt methods in the row."
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
BY_TASK = (
    "A_N counts an image as correct only if a class of its own task is predicted (*right task*), and if its class "
    "scores highest among the classes of that task (*task-known accuracy*, also called task-incremental accuracy). "
    "All in %, after the last task, the mean over the tasks."
)
TRAINING_COST = (
    "Seconds of wall-clock time for the model's own stages, the mean over the runs. They are noisy: runs may have "
    "shared their machine with others, and a student reuses the outputs that its teacher's run has cached."
)


def in_brief(chapters: list["BenchmarkChapter"]) -> list[str]:
    """Title, and what was compared and found, with a picture of each benchmark."""
    experiments = [e for chapter in chapters for e in chapter.experiments]
    runs = {name for e in experiments for name in e.runs.values()}
    sources = dict.fromkeys(chapter.benchmark.source for chapter in chapters)
    parts = [
        f"# {markdown_name(', '.join(sources))}: report of {len(runs)} run{'s' if len(runs) > 1 else ''}",
        "## In brief",
    ]
    for chapter in chapters:
        if len(chapters) > 1:
            parts.append(f"### In brief: {markdown_name(chapter.title)}")
        sentences = [*who_won(chapter.experiments), *what_was_compared(chapter.experiments)]
        sentences += [*where_from(chapter.experiments, experiments), *mixture(chapter.experiments)]
        parts += ["\n".join(f"- {markdown_name(sentence)}" for sentence in sentences), *chapter.pictures_in_brief()]
    return [*parts, how_to_read(experiments)]


def how_it_was_made(experiments: Iterable[Experiment], measured: Latencies) -> str:
    """Commands, commits and versions."""
    return "\n\n".join(
        [
            "## How it was made",
            "```\ncdl-hf compare GRID.yaml --output_dir RUNS\n"
            f"cdl-hf report RUNS --output_dir REPORT{' --measure_latency' if measured else ''}\n```",
            "`cdl-hf report REPORT --output_dir REPORT` rebuilds the report from its runs.jsonl. The code "
            "of the runs:",
            table(["commit", "versions", "runs"], versions_table(experiments), numbers_from=2),
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
        apart: What tells it from other benchmarks of the same title.

    Attributes:
        pictures: Names of the pictures that it has drawn.
    """

    def __init__(
        self,
        experiments: list[Experiment],
        measured: Latencies,
        reported: Iterable[Path],
        output: Path,
        suffix: str = "",
        apart: str = "",
    ):
        self.experiments, self.measured, self.output, self.suffix = experiments, measured, output, suffix
        self.pictures: list[str] = []
        self.benchmark = b = experiments[0].benchmark
        pair = b.teacher, b.student
        self.reported = {n: reported_pairs(reported, b.source, *pair, n) for n in self._stream_lengths}
        order = "" if b.class_order == "natural" else f", class order {b.class_order}"
        split = "" if b.tested_on == "test" else f", tested on {b.tested_on} images"
        self.title = f"{b.source}: {b.teacher} teaches {b.student}{order}{split}{apart}"

    def sections(self) -> list[str]:
        parts = [f"## {markdown_name(self.title)}"]
        for num_tasks in self._stream_lengths:
            members, suffix = self._members(num_tasks), self._suffix(num_tasks)
            parts += [self._methods(members, suffix), self._classifiers(members, suffix)]
            parts += [self._by_task(members, suffix)]
        parts += [self._baselines(), self._papers()]
        parts += [self._cost_and_accuracy(num_tasks) for num_tasks in self._stream_lengths]
        return [*parts, self._training_cost()]

    def pictures_in_brief(self) -> list[str]:
        """What distillation adds, or else how far the other students are from the best one."""
        pictures = []
        for num_tasks in self._stream_lengths or [1]:  # one task: joint training
            members, name = self._members(num_tasks), f"differences-{num_tasks}{self.suffix}.svg"
            trained = [e for e in members if e.classifier == "linear" and e.prompt_method != "none"]
            if effects := effects_over_prompts(trained):
                prompts = {e.learner: self._coverage(e.learner, trained) for e in trained}
                title = finding(effects, {e.learner: e.technique for e in trained})
                pictures.append(self._picture(name, effects, prompts, title))
                continue
            role, others = contenders(members)
            best, differences = best_of({e.label: e.accuracy for e in others})
            ahead = sorted(differences.items(), key=lambda item: item[1].difference.mean)[:NUM_NEXT]
            if ahead:
                title = f"{best} is the best {role}; it is ahead of the next {len(ahead)} by"
                pictures.append(self._picture(name, dict(ahead), {}, title, "points ahead"))
        return pictures

    @property
    def _stream_lengths(self) -> list[int]:
        return sorted({e.stream["num_tasks"] for e in self.experiments if not e.is_joint})

    def _members(self, num_tasks: int) -> list[Experiment]:
        return [e for e in self.experiments if e.stream["num_tasks"] == num_tasks]

    def _suffix(self, num_tasks: int) -> str:
        return f", {num_tasks} tasks" if len(self._stream_lengths) > 1 else ""

    @property
    def _runs_differ(self) -> bool:
        return len({len(e.results) for e in self.experiments}) > 1

    @staticmethod
    def _coverage(learner: str, experiments: list[Experiment]) -> str:
        """The technique of a learner, with the prompt methods that it has where these are not all."""
        own = [e for e in experiments if e.learner == learner]
        every = {e.prompts for e in experiments}
        few = f", {own[0].prompts} only" if len(own) == 1 else f", {len(own)} of {len(every)} prompt methods"
        return own[0].technique + (few if len(own) < len(every) else "")

    def _picture(
        self,
        name: str,
        effects: Effects,
        names: Mapping[str, str],
        title: str,
        axis: str = "difference to the student alone (points)",
    ) -> str:
        """Draws a forest plot, the largest difference on top; returns the Markdown that shows it."""
        ordered = sorted(effects.items(), key=lambda item: -item[1].difference.mean)
        rows = {
            names.get(key, key): (effect.difference.mean, effect.difference.half_width, effect.is_significant)
            for key, effect in ordered
        }
        self.pictures.append(name)
        plot_differences(rows, self.output / name, title, axis, self._limits if names else limits([effects]))
        return f"![{markdown_name(title)}]({name})"

    @cached_property
    def _limits(self) -> tuple[float, float]:
        """Axis of all pictures of differences to the student alone."""
        every: list[Effects] = []
        for num_tasks in self._stream_lengths or [1]:
            trained = [e for e in self._members(num_tasks) if e.classifier == "linear" and e.prompt_method != "none"]
            every += [effects_over_prompts(trained), *effects_by_prompts(trained, lambda e: e.accuracy).values()]
        return limits(every)

    def _methods(self, members: list[Experiment], suffix: str) -> str:
        """A_N and forgetting of each distillation method, with the differences to the student alone."""
        linear = [e for e in members if e.classifier == "linear"]
        trained = [e for e in linear if e.prompt_method != "none"]
        is_online = any(e.metric("a_auc") for e in trained)
        by_prompts = grouped(trained, lambda e: e.prompts)
        accuracies = effects_by_prompts(trained, lambda e: e.accuracy)
        forgettings = effects_by_prompts(trained, lambda e: e.forgetting)
        parts = [f"### Distillation methods{suffix}"] if by_prompts else []
        if len(by_prompts) > 1:
            parts += [OVERVIEW, overview(linear)]
        for prompts, learners in by_prompts.items():
            best = best_student(learners)
            effects, forgetting = accuracies[prompts], forgettings[prompts]
            rows = [
                [
                    markdown_name(e.learner),
                    bold(str(MeanStd.of(e.accuracy)), e.learner == best),
                    str(effects.get(e.learner, "")) if e.role == "student" else "",
                    str(MeanStd.of(e.learning_accuracy)),
                    *([mean_of(e.metric("a_auc"))] if is_online else []),
                    str(MeanStd.of(e.forgetting)),
                    str(forgetting.get(e.learner, "")) if e.role == "student" else "",
                    *([str(len(e.results))] if self._runs_differ else []),
                ]
                for e in learners
            ]
            header = ["learner", "A_N (%)", "A_N, vs. alone", "learning accuracy (%)"]
            header += ["A_AUC (%)"] if is_online else []
            header += ["forgetting (points)", "forgetting, vs. alone"]
            header += ["runs"] if self._runs_differ else []
            parts += [f"#### {markdown_name(prompts)}{suffix}", table(header, rows)]
            if effects:
                techniques = {e.learner: e.technique for e in learners}
                title = f"{prompts}: {finding(effects, techniques)}"
                name = f"differences-{learners[0].prompt_method}-{learners[0].stream['num_tasks']}{self.suffix}.svg"
                parts.append(self._picture(name, effects, techniques, title))
        return "\n\n".join(parts)

    def _classifiers(self, members: list[Experiment], suffix: str) -> str:
        """Other classifiers on the same prompts, and on the frozen backbones."""
        parts = []
        others = sorted(members, key=lambda e: place_in(CLASSIFIER_TITLES, e.classifier))
        for title, experiments in grouped(others, lambda e: e.classifier_title).items():
            if experiments[0].classifier != "linear" and any(e.prompt_method != "none" for e in experiments):
                parts += [f"#### {title}{suffix}", overview(experiments)]
        return "\n\n".join([f"### Classifiers{suffix}", CLASSIFIERS_TEXT, *parts]) if parts else ""

    def _by_task(self, members: list[Experiment], suffix: str) -> str:
        """Task-known accuracy and right tasks of every classifier whose runs have them."""
        rows = []
        for e in members:
            if known := e.metric("task_known_accuracy"):
                names = [markdown_name(name) for name in (e.prompts, e.learner, e.classifier_title)]
                scores = (e.accuracy, known, e.metric("right_task_share"))
                rows.append([*names, *map(mean_of, scores), *([str(len(e.results))] if self._runs_differ else [])])
        if not rows:
            return ""
        header = ["prompts", "learner", "classifier", "A_N (%)", "task-known accuracy (%)", "right task (%)"]
        header += ["runs"] if self._runs_differ else []
        return "\n\n".join([f"### Task-known accuracy{suffix}", BY_TASK, table(header, rows, numbers_from=3)])

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
        header = ["model", markdown_name(self.benchmark.teacher), markdown_name(self.benchmark.student)]
        return "\n\n".join(["### Baselines", BASELINES, table(header, cells)])

    def _papers(self) -> str:
        """Reported figures next to the measured ones."""
        rows = []
        for e in self.experiments:
            differs = e.is_joint or e.has_joint_teacher or e.note or e.origin or e.classifier != "linear"
            reported = self.reported.get(e.stream["num_tasks"], {}).get((e.prompt_method, e.distillation))
            if reported is not None and not differs:
                measured = f"{MeanStd.of(e.accuracy)} / {MeanStd.of(e.forgetting)}"
                rows.append(
                    [markdown_name(e.prompts), markdown_name(e.learner), reported, measured, f"{len(e.results)}"]
                )
        if not rows:
            return ""
        header = ["prompts", "learner", "reported by the papers", "measured here", "runs"]
        return "\n\n".join(["### Comparison with the papers", PAPERS, table(header, rows, numbers_from=2)])

    def _cost_and_accuracy(self, num_tasks: int) -> str:
        """The Pareto fronts of the models of one stream."""
        continual = [e for e in self._members(num_tasks) if not e.has_joint_teacher]
        if not continual:
            return ""
        costs = {"parameters": {e.label: e.num_parameters for e in continual}}
        timed = [e for e in continual if (e.name, e.role) in self.measured]
        devices = sorted({self.measured[e.name, e.role]["device"] for e in timed})
        if len(devices) == 1:
            costs["latency"] = {e.label: self.measured[e.name, e.role]["milliseconds"] for e in timed}
        titles = {"parameters": "Parameters that a prediction needs", "latency": "Latency of one image (ms)"}
        parts = [f"### Accuracy against cost{self._suffix(num_tasks)}"]
        tasks = f"-{num_tasks}" if len(self._stream_lengths) > 1 else ""
        chance = 100 / sum(continual[0].stream["classes_per_task"])
        for kind, costs_by_label in costs.items():
            groups: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
            shown = [e for e in continual if e.label in costs_by_label]
            for e in shown:
                point = costs_by_label[e.label], MeanStd.of(e.accuracy).mean
                groups.setdefault((e.prompts, e.role), {})[e.label] = point
            name = f"pareto-{kind}{tasks}{self.suffix}.svg"
            points = {label: point for members in groups.values() for label, point in members.items()}
            ahead = pareto_front(points)
            shared = {e.prompts for e in shown if e.label in ahead}
            which = f"{len(ahead)} of {len(points)} models" + (f", all {shared.pop()}," if len(shared) == 1 else "")
            title = f"{which} are not beaten by one with less {kind}" if kind == "latency" else ""
            title = title or f"{which} are not beaten by one with fewer {kind}"
            self.pictures.append(name)
            plot_accuracy_against_cost(groups, self.output / name, title, titles[kind], chance)
            unit, digits = ("parameters", 0) if kind == "parameters" else ("ms", 2)
            front = [
                [markdown_name(label), f"{points[label][0]:,.{digits}f}", f"{points[label][1]:.2f}"] for label in ahead
            ]
            parts += [
                f"![Accuracy against {kind}: {markdown_name(title)}]({name})",
                f"No other model has at most their {kind} and a higher mean accuracy:",
                table(["model", unit, "A_N (%)"], front),
            ]
        if len(devices) > 1:
            where = markdown_name("; ".join(devices))
            parts.append(f"Latencies were measured on several devices and are not compared: {where}.")
        elif timed:
            left_out = (
                "" if len(timed) == len(continual) else f" Only {len(timed)} of {len(continual)} models were timed."
            )
            parts.append(f"Latencies are medians of 100 single images, on: {markdown_name(devices[0])}.{left_out}")
        return "\n\n".join(parts)

    def _training_cost(self) -> str:
        """Seconds and sizes."""
        rows = []
        for e in self.experiments:
            if e.classifier == "linear":
                prompts = markdown_name(f"{e.prompts}, joint" if e.is_joint else e.prompts)
                sizes = [f"{e.num_parameters:,}", f"{e.num_trainable_parameters:,}"]
                rows.append([prompts, markdown_name(e.learner), *sizes, f"{MeanStd.of(e.seconds).mean:,.0f}"])
        header = ["prompts", "learner", "parameters", "trainable", "seconds (noisy)"]
        return "\n\n".join(["### Training cost", TRAINING_COST, table(header, rows, numbers_from=2)])


def overview(experiments: list[Experiment]) -> str:
    """A_N of every learner with every prompt method, what prompts add to it and what distillation adds."""
    by_prompts = grouped(experiments, lambda e: e.prompts)
    frozen = {e.learner: e for e in by_prompts.get("frozen", [])}
    best = {name: best_student(members) for name, members in by_prompts.items()}
    prompted = [e for e in experiments if e.prompt_method != "none" and e.learner in frozen]
    added = compare({(e.prompts, e.learner): (e.accuracy, frozen[e.learner].accuracy) for e in prompted})
    effects = effects_over_prompts(experiments)
    rows = []
    for learner, members in grouped(experiments, lambda e: e.learner).items():
        found = {e.prompts: e for e in members}
        cells = []
        for name in by_prompts:
            cell = ""
            if name in found:
                cell = bold(str(MeanStd.of(found[name].accuracy)), learner == best[name])
                if (name, learner) in added:
                    cell += f"<br>{lines(added[name, learner])}"
            cells.append(cell)
        rows.append([markdown_name(learner), *cells, lines(effects.get(learner, ""))])
    return table(["learner", *map(markdown_name, by_prompts), "vs. student alone"], rows)


def mean_of(scores: Scores) -> str:
    """Mean and standard deviation in a cell, which is empty without scores."""
    return str(MeanStd.of(scores)) if scores else ""


def limits(every: Iterable[Effects]) -> tuple[float, float]:
    """Ends of an axis on which all differences, their intervals and zero have room."""
    differences = [effect.difference for effects in every for effect in effects.values()]
    low = min([0.0, *(d.mean - (d.half_width or 0) for d in differences)])
    high = max([0.0, *(d.mean + (d.half_width or 0) for d in differences)])
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def baseline_label(e: Experiment) -> str:
    """What a frozen or jointly trained model is."""
    if e.is_joint:
        how = e.classifier_title + ", joint training"
        if e.classifier == "linear":
            how = "joint linear probe" if e.prompt_method == "none" else "joint training"
    else:
        trained = {"linear": "head trained task by task", "aligned": "head trained task by task and aligned"}
        how = trained.get(e.classifier, e.classifier_title)
    notes = [note for note in (e.note, f"from {e.origin}" if e.origin else "") if note]
    return ", ".join([e.prompts, how, *notes] if e.distillation in (None, "none") else [e.prompts, how, e.learner])


def place_in(names: Iterable[str], name: str) -> tuple[int, str]:
    """Key that sorts by the order of `names`; others, such as methods of a user's own, come last."""
    order = list(names)
    return order.index(name) if name in order else len(order), name


def table(header: list[str], rows: list[list[str]], numbers_from: int = 1) -> str:
    """Markdown; the columns from `numbers_from` on are aligned right."""
    rule = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def lines(comparison: object) -> str:
    """A comparison with its p value on a line of its own."""
    return str(comparison).replace(", p", "<br>p")


def bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text
