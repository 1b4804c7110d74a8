"""What the report says of one stream of data and one pair of models."""

import statistics
from pathlib import Path

from cdl_hf.comparison.experiments import Setting
from cdl_hf.comparison.statistics import Spread, clear_best, paired_difference
from cdl_hf.escaping import markdown_name
from cdl_hf.evaluation.pareto import pareto_front
from cdl_hf.evaluation.plots import plot_accuracy_against_cost, plot_accuracy_over_tasks

from .naming import HEAD_NAMES, HEADS, baseline_name, full_name, grouped, seeds_of
from .papers import reported_figures
from .tables import bold, parameters, table

OVERVIEW = (
    "A_N in %, and below it the difference to the same transformer, frozen and without prompts. The last column is "
    "the difference to the student alone, for each seed the mean over the prompt methods that the line has."
)


class Scene:
    """What the report says of the settings on one stream of data, for one pair of models.

    Args:
        settings: In their order.
        measured: Latencies by name and role.
        output: Folder for the pictures.
        suffix: Of their names.
    """

    def __init__(self, settings: list[Setting], measured: dict, output: Path, suffix: str):
        self.settings, self.measured, self.output, self.suffix = settings, measured, output, suffix
        source, class_order, stream_seed, teacher, student, tested_on = settings[0].scene
        self.source, self.teacher, self.student = source, teacher, student
        drawn = "" if class_order == "natural" else f", classes in the order {class_order} {stream_seed}"
        split = "" if tested_on == "test" else f", tested on {tested_on} images"
        self.title = f"{source}: {teacher} teaches {student}{drawn}{split}"

    def sections(self) -> list[str]:
        parts = [f"## {markdown_name(self.title)}"]
        streams = sorted({setting.stream["num_tasks"] for setting in self.settings if not setting.at_once})
        for tasks in streams:
            members = [s for s in self.settings if s.stream["num_tasks"] == tasks]
            in_words = f", {tasks} tasks" if len(streams) > 1 else ""
            parts += [self.methods(members, in_words), self.heads(members, in_words)]
        parts += [self.baselines(), self.reported(), self.cost_and_accuracy(), self.training_cost()]
        return parts

    def methods(self, members: list[Setting], in_words: str) -> str:
        """What each distillation method comes to, and the curves."""
        linear = [s for s in members if s.head == "linear"]
        by_prompts = grouped([s for s in linear if s.prompts != "none"], lambda s: s.prompts)
        parts = [f"### Distillation methods{in_words}"] if by_prompts else []
        if len(by_prompts) > 1:
            parts += [OVERVIEW, self.overview(linear)]
        for prompts, learners in by_prompts.items():
            students = [s for s in learners if s.role == "student"]
            alone = next((s for s in students if s.distillation == "none"), None)
            best = best_student(students)
            rows = []
            for s in learners:
                differs = ["", ""]
                if s.role == "student" and alone is not None and s is not alone:
                    pairs = (paired_difference(a, b) for a, b in zip(figures(s), figures(alone), strict=True))
                    differs = ["" if pair is None else str(pair) for pair in pairs]
                accuracy = bold(str(Spread.of(s.accuracy)), s.learner == best)
                rows.append(
                    [
                        markdown_name(s.learner),
                        accuracy,
                        differs[0],
                        str(Spread.of(s.forgetting)),
                        differs[1],
                        seeds_of(s),
                    ]
                )
            header = ["learner", "A_N (%)", "against none", "forgetting (points)", "against none", "seeds"]
            name = f"curves-{prompts}-{learners[0].stream['num_tasks']}{self.suffix}.svg"
            self.curves(learners, members, name)
            parts += [f"#### {prompts}", table(header, rows), f"![Accuracy over the stream: {prompts}]({name})"]
        return "\n\n".join(parts)

    @staticmethod
    def overview(settings: list[Setting]) -> str:
        """A_N of every learner with every prompt method, what prompts add to it and what distillation does."""
        by_prompts = grouped(settings, lambda s: s.prompts)
        alone = {name: s for name, members in by_prompts.items() for s in members if s.distillation == "none"}
        frozen = {s.learner: s for s in by_prompts.get("none", [])}
        best = {name: best_student(members) for name, members in by_prompts.items()}
        rows = []
        for learner, members in grouped(settings, learner_of).items():
            found = {s.prompts: s for s in members}
            cells = []
            for name in by_prompts:
                cell = ""
                if name in found:
                    cell = bold(str(Spread.of(found[name].accuracy)), learner == best[name])
                    if learner in frozen and name != "none":
                        cell += f"<br>{paired_difference(found[name].accuracy, frozen[learner].accuracy) or ''}"
                cells.append(cell)
            references = [alone[name] for name in found if name in alone]
            difference = None
            if members[0].distillation not in (None, "none") and len(references) == len(members):
                difference = paired_difference(mean_by_seed(members), mean_by_seed(references))
            rows.append([markdown_name(learner), *cells, str(difference or "")])
        names = ["frozen" if name == "none" else name for name in by_prompts]
        return table(["learner", *names, "against none"], rows)

    def curves(self, learners: list[Setting], members: list[Setting], name: str) -> None:
        floors = {s.role: s for s in members if s.prompts == "none" and s.head == "ncm"}
        plot_accuracy_over_tasks(
            {s.learner: s.matrix() for s in learners},
            self.output / name,
            f"{self.source}: {learners[0].prompts}, seeds {seeds_of(learners[0])}",
            classes_per_task=learners[0].stream["classes_per_task"],
            references={f"class means, {role}": Spread.of(s.accuracy).mean for role, s in floors.items()},
        )

    def heads(self, members: list[Setting], in_words: str) -> str:
        """Other classifiers on the same prompts, and on the frozen transformers."""
        parts = []
        for head in HEADS[1:]:
            settings = [s for s in members if s.head == head]
            if any(s.prompts != "none" for s in settings):
                parts += [f"#### {HEAD_NAMES[head]}", self.overview(settings)]
        if not parts:
            return ""
        told = (
            "The prompts are those of the trained heads above: an aligned head is the trained one after classifier "
            f"alignment, the others are computed from all classes' features. {OVERVIEW}"
        )
        return "\n\n".join([f"### Classifiers{in_words}", told, *parts])

    def baselines(self) -> str:
        """Frozen transformers, and all classes at once."""
        several = len({s.stream["num_tasks"] for s in self.settings if not s.at_once}) > 1
        lines: dict[str, dict[str, Setting]] = {}
        for s in self.settings:
            if s.prompts == "none" or s.at_once:
                stream = f", {s.stream['num_tasks']} tasks" if several and not s.at_once else ""
                lines.setdefault(baseline_name(s) + stream, {})[s.role] = s
        if not lines:
            return ""
        cells = [
            [
                markdown_name(name),
                *(str(Spread.of(of[role].accuracy)) if role in of else "" for role in ("teacher", "student")),
            ]
            for name, of in lines.items()
        ]
        told = (
            "A_N in %, of the teacher's model and of the student's. Where all classes come at once, nothing can be "
            "forgotten and all classes are compared: it is what the same training, of as many epochs, comes to "
            "without a stream. The students that are named with their method see all classes at once as well."
        )
        header = ["", markdown_name(self.teacher), markdown_name(self.student)]
        return "\n\n".join(["### Baselines", told, table(header, cells)])

    def reported(self) -> str:
        """Figures of the papers beside those measured here."""
        papers = reported_figures(self.source, self.teacher, self.student)
        rows = []
        for s in self.settings:
            otherwise = s.at_once or s.taught_at_once or s.note or s.head != "linear"
            if (s.prompts, s.distillation) in papers and not otherwise:
                ours = f"{Spread.of(s.accuracy)} / {Spread.of(s.forgetting)}"
                rows.append(
                    [s.prompts, markdown_name(s.learner), papers[s.prompts, s.distillation], ours, seeds_of(s)]
                )
        if not rows:
            return ""
        told = (
            "A_N / F_N in %. *Reported* are the figures of the methods' authors (arXiv 2407.13911), *measured* those "
            "of the runs in this report."
        )
        header = ["prompts", "learner", "reported by the papers", "measured here", "seeds"]
        return "\n\n".join(["### Beside the papers", told, table(header, rows, numbers_from=2)])

    def cost_and_accuracy(self) -> str:
        """The Pareto pictures."""
        continual = [s for s in self.settings if not s.at_once and not s.taught_at_once]
        if not continual:
            return ""
        costs = {"parameters": {full_name(s): parameters(s) for s in continual}}
        if all((s.name, s.role) in self.measured for s in continual):
            costs["latency"] = {full_name(s): self.measured[s.name, s.role]["milliseconds"] for s in continual}
        named = {"parameters": "Parameters that a prediction needs", "latency": "Latency of one image (ms)"}
        parts = ["### Accuracy against cost"]
        for kind, by_name in costs.items():
            groups: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
            for s in continual:
                group = "frozen" if s.prompts == "none" else s.prompts, s.role
                point = by_name[full_name(s)], Spread.of(s.accuracy).mean
                groups.setdefault(group, {})[full_name(s)] = point
            name = f"pareto-{kind}{self.suffix}.svg"
            plot_accuracy_against_cost(groups, self.output / name, self.title, named[kind])
            points = {name: point for members in groups.values() for name, point in members.items()}
            cost = "parameters" if kind == "parameters" else "ms"
            front = [
                [markdown_name(name), f"{points[name][0]:,.0f}" if kind == "parameters" else f"{points[name][0]:.2f}"]
                + [f"{points[name][1]:.2f}"]
                for name in pareto_front(points)
            ]
            parts += [
                f"![Accuracy against {kind}]({name})",
                f"No other setting has at most their {kind} and a higher mean accuracy:",
                table(["setting", cost, "A_N (%)"], front),
            ]
        if "latency" in costs:
            devices = sorted({self.measured[s.name, s.role]["device"] for s in continual})
            parts.append(f"Latencies are medians of 100 single images, on: {markdown_name('; '.join(devices))}.")
        return "\n\n".join(parts)

    def training_cost(self) -> str:
        """Seconds and sizes."""
        rows = []
        for s in self.settings:
            if s.head == "linear":
                learnt = s.values("trainable_parameters")[next(iter(s.results))]
                stream = " at once" if s.at_once else ""
                prompts = ("frozen" if s.prompts == "none" else s.prompts) + stream
                seconds = f"{Spread.of(s.seconds).mean:,.0f}"
                rows.append([prompts, markdown_name(s.learner), f"{parameters(s):,}", f"{learnt:,}", seconds])
        told = (
            "Seconds of wall-clock time for the model's own stages, the mean over the seeds. They are noisy: runs may "
            "have shared their machine with others, and a student is spared what its teacher's run has stored."
        )
        header = ["prompts", "learner", "parameters", "of them learnt", "seconds (noisy)"]
        return "\n\n".join(["### Training cost", told, table(header, rows, numbers_from=2)])


def figures(s: Setting) -> tuple:
    return s.accuracy, s.forgetting


def learner_of(s: Setting) -> str:
    return s.learner


def best_student(settings: list[Setting]) -> str | None:
    """The clearly best one; a teacher that saw all classes is no choice in a stream."""
    return clear_best({s.learner: s.accuracy for s in settings if s.role == "student" and not s.taught_at_once})


def mean_by_seed(settings: list[Setting]) -> dict[int, float]:
    """Mean A_N of the settings, for each seed that all have."""
    seeds = set.intersection(*(set(s.accuracy) for s in settings))
    return {seed: statistics.fmean(s.accuracy[seed] for s in settings) for seed in sorted(seeds)}
