"""A report of experiments: report.md with its pictures, results.csv, and report.html as one self-contained page."""

from collections.abc import Iterable
from pathlib import Path

from ..catalogue import DISTILLATION_METHODS, PROMPT_METHODS
from ..escaping import csv_table
from ..evaluation import METRICS, metric_in
from ..utils import write_text
from .effects import grouped, listed
from .elsewhere import differences
from .experiments import CLASSIFIER_TITLES, Experiment
from .page import as_page
from .sections import BenchmarkChapter, Latencies, how_it_was_made, in_brief, place_in


def write_report(
    experiments: Iterable[Experiment], measured: Latencies, output: Path, reported: Iterable[Path] = ()
) -> None:
    """Writes report.md with its pictures, results.csv and report.html; a `findings.md` in the folder is included.

    Args:
        experiments: All experiments, in any order.
        measured: Latencies by name and role of the experiment.
        output: Folder of the report.
        reported: Files with figures reported by papers, each beside its presets.

    Raises:
        ValueError: findings.md has a picture that cannot be read.
    """
    experiments, reported = sorted(experiments, key=_place), list(reported)
    own = {e.benchmark for e in experiments if not e.origin}  # come first
    benchmarks = grouped(sorted(experiments, key=lambda e: e.benchmark not in own), lambda e: e.benchmark)
    chapters: list[BenchmarkChapter] = []
    for number, members in enumerate(benchmarks.values(), 1):
        suffix = f"-{number}" if len(benchmarks) > 1 else ""
        earlier = next((c.benchmark for c in chapters if c.benchmark[:5] == members[0].benchmark[:5]), None)
        apart = "" if earlier is None else f", {listed(differences(members[0].benchmark, earlier))}"
        chapters.append(BenchmarkChapter(members, measured, reported, output, suffix, apart))
    parts = in_brief(chapters)
    findings = output / "findings.md"
    if findings.is_file():
        parts.append(findings.read_text(encoding="utf-8").strip())
    for chapter in chapters:
        parts += chapter.sections()
    parts.append(how_it_was_made(experiments, measured))
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(output / "report.md", text)
    write_text(output / "results.csv", as_csv(experiments, measured))
    write_text(
        output / "report.html", as_page(text, output, [name for chapter in chapters for name in chapter.pictures])
    )


def as_csv(experiments: Iterable[Experiment], measured: Latencies) -> str:
    """A line for each model of each run; metrics that only some runs measure have a column where one has."""
    experiments = list(experiments)
    measured_metrics = [
        name
        for name in METRICS
        if any(metric_in(result[e.role], name) is not None for e in experiments for result in e.results.values())
    ]
    rows: list[list[str | int | float]] = [
        [
            *("run", "seed", "dataset", "num_tasks", "class_order", "stream_seed", "teacher", "student", "role"),
            *("prompt_method", "distillation", "learner", "classifier"),
            *(name.replace(".", "_") for name in measured_metrics),
            *("parameters", "trainable_parameters", "latency_ms", "seconds", "commit"),
        ]
    ]
    for e in experiments:
        latency = measured.get((e.name, e.role), {}).get("milliseconds", "")
        for unit, result in e.results.items():
            of_model = result[e.role]
            metrics = (metric_in(of_model, name) for name in measured_metrics)
            rows.append(
                [
                    *(e.runs[unit].removesuffix(f"-seed{unit.seed}"), unit.seed, e.benchmark.source),
                    *(e.stream["num_tasks"], e.benchmark.class_order, unit.order),
                    *(e.args["teacher"], e.args["student"], e.role),
                    *(e.prompt_method, e.distillation or "", e.learner, e.classifier),
                    *("" if value is None else round(value, 4) for value in metrics),
                    *(e.num_parameters, of_model["trainable_parameters"], latency, e.seconds[unit]),
                    result["versions"].get("commit") or "",
                ]
            )
    return csv_table(rows)


def _place(e: Experiment) -> tuple:
    """Place in a report: long streams first, frozen backbones before prompts, teachers before students."""
    methods = (
        place_in(["none", *PROMPT_METHODS], e.prompt_method),
        place_in(["", *DISTILLATION_METHODS], e.distillation or ""),
    )
    classifier = place_in(CLASSIFIER_TITLES, e.classifier)
    return e.benchmark, -e.stream["num_tasks"], *methods, e.has_joint_teacher, e.note, classifier, e.origin
