"""A report of experiments: report.md with its pictures, results.csv, and report.html as one self-contained page."""

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from jinja2 import Environment

from ..catalogue import DISTILLATION_METHODS, PROMPT_METHODS
from ..escaping import csv_table
from ..evaluation import METRICS, metric_in
from ..utils import write_text
from .experiments import CLASSIFIER_TITLES, Experiment
from .sections import BenchmarkChapter, Latencies, grouped, how_it_was_made, introduction, place_in

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; font-size: .85rem }
th, td { border: 1px solid #d0d7de; padding: .3rem .6rem; white-space: nowrap } th { background: #f6f8fa }
img { max-width: 100% }
code { background: #f6f8fa; padding: .1rem .3rem } pre code { display: block; overflow-x: auto }
</style>
</head>
<body>
{{ body | safe }}</body>
</html>
"""


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
    benchmarks = grouped(experiments, lambda e: e.benchmark)
    parts = [introduction(experiments)]
    findings = output / "findings.md"
    if findings.is_file():
        parts.append(findings.read_text(encoding="utf-8").strip())
    for number, members in enumerate(benchmarks.values(), 1):
        suffix = f"-{number}" if len(benchmarks) > 1 else ""
        parts += BenchmarkChapter(members, measured, reported, output, suffix).sections()
    parts.append(how_it_was_made(experiments, measured))
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(output / "report.md", text)
    write_text(output / "results.csv", as_csv(experiments, measured))
    write_text(output / "report.html", as_page(text, output))


def as_csv(experiments: Iterable[Experiment], measured: Latencies) -> str:
    """A line for each model of each run."""
    rows: list[list[str | int | float]] = [
        [
            *("run", "seed", "dataset", "num_tasks", "class_order", "teacher", "student", "role"),
            *("prompt_method", "learner", "classifier"),
            *(name.replace(".", "_") for name in METRICS),
            *("parameters", "trainable_parameters", "latency_ms", "seconds"),
        ]
    ]
    for e in experiments:
        latency = measured.get((e.name, e.role), {}).get("milliseconds", "")
        for seed, result in e.results.items():
            of_model = result[e.role]
            metrics = (metric_in(of_model, name) for name in METRICS)
            rows.append(
                [
                    *(e.name, seed, e.benchmark.source, e.stream["num_tasks"], e.benchmark.class_order),
                    *(e.args["teacher"], e.args["student"], e.role, e.prompt_method, e.learner, e.classifier),
                    *("" if value is None else round(value, 4) for value in metrics),
                    *(e.num_parameters, of_model["trainable_parameters"], latency, e.seconds[seed]),
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
    return e.benchmark, -e.stream["num_tasks"], *methods, e.has_joint_teacher, e.note, classifier


def as_page(markdown: str, folder: Path) -> str:
    """One HTML page that embeds its pictures. HTML in the Markdown is shown as text, but for line breaks.

    Raises:
        ValueError: A picture cannot be read.
    """
    from markdown_it import MarkdownIt
    from markdown_it.common.utils import escapeHtml

    def embedded(match: re.Match) -> str:
        picture = folder / unquote(match[1])
        kind = {".svg": "svg+xml", ".png": "png"}[picture.suffix]
        try:
            content = base64.b64encode(picture.read_bytes()).decode()
        except OSError as error:
            raise ValueError(f"the picture {picture} cannot be read: {error.strerror}") from error
        return f'src="data:image/{kind};base64,{content}"'

    def shown(renderer, tokens, index, options, env) -> str:
        html = tokens[index].content
        return html if html == "<br>" else escapeHtml(html)

    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    for kind in ("html_inline", "html_block"):
        parser.add_render_rule(kind, shown)
    body = re.sub(r'src="(?!https?:)([^"]+\.(?:svg|png))"', embedded, parser.render(markdown))
    page = Environment(autoescape=True, keep_trailing_newline=True).from_string(PAGE)
    return page.render(title=markdown.splitlines()[0].lstrip("# "), body=body)
