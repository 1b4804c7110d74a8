"""A report of finished runs: report.md, results.csv and report.html, one page that needs nothing else.

    python recipes/report.py runs/compare --output_dir recipes/quickdraw100/report

The `results.json` of every run in the folder is first stored under runs/ in the output folder; the report is made of
what is stored there, in the same bytes each time. findings.md in the output folder, where there is one, is put in;
HTML in it is shown as text. Needs the extra [report].
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reports.naming import order
from reports.page import as_page
from reports.results import latencies, measure_latency, store, stored
from reports.scene import Scene
from reports.tables import as_csv

from cdl_hf.cli import cli_error, parse
from cdl_hf.comparison.experiments import Setting, settings_of
from cdl_hf.escaping import markdown_name
from cdl_hf.utils import write_text


@dataclass
class ReportArguments:
    """The report."""

    runs: str = field(metadata={"help": "folder with the folders of runs", "positional": True})
    output_dir: str = field(metadata={"help": "folder of the report and of the stored results"})
    measure_latency: bool = field(
        default=False, metadata={"help": "time one image on a saved model of each setting, and store that as well"}
    )


def main() -> None:
    (args,) = parse((ReportArguments,), description=__doc__)
    if find_spec("markdown_it") is None:
        cli_error("markdown-it-py not installed: pip install 'cdl_hf[report]'")
    runs, output = Path(args.runs), Path(args.output_dir)
    try:
        if not any(runs.glob("*/results.json")):
            raise ValueError(f"{runs} has no folder of a finished run, with a results.json")
        store(runs, output / "runs")
        if args.measure_latency:
            measure_latency(runs, output / "runs")
        settings = settings_of(stored(output / "runs"))
        build(settings, latencies(output / "runs", settings), output)
    except ValueError as error:
        cli_error(str(error))
    print(f"{output / 'report.md'}, report.html and results.csv tell of {len(settings)} settings.")


def build(settings: list[Setting], measured: dict[tuple[str, str], dict[str, Any]], output: Path) -> None:
    """Writes report.md with its pictures, results.csv and report.html.

    Raises:
        ValueError: findings.md has a picture that is not there.
    """
    settings = sorted(settings, key=order)
    scenes: dict[tuple, list[Setting]] = {}
    for setting in settings:
        scenes.setdefault(setting.scene, []).append(setting)
    findings = output / "findings.md"
    parts = [introduction(settings)]
    if findings.is_file():
        parts.append(findings.read_text(encoding="utf-8").strip())
    for number, members in enumerate(scenes.values(), 1):
        parts += Scene(members, measured, output, f"-{number}" if len(scenes) > 1 else "").sections()
    parts.append(how_it_was_made(settings, measured))
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(output / "report.md", text)
    write_text(output / "results.csv", as_csv(settings, measured))
    write_text(output / "report.html", as_page(text, output))


def introduction(settings: list[Setting]) -> str:
    runs = {name for s in settings for name in s.runs.values()}
    told = (
        "A_N is the accuracy over all classes after the last task, each task with equal weight; no task is given at "
        "test time. Forgetting is in points, by the definition `cdl`. After ± stands the standard deviation over the "
        "seeds. In brackets is the 95% confidence interval of a difference: Student's t over the differences of runs "
        "with the same seed, not corrected for the number of comparisons. A figure is **bold** where it is the best "
        "of its kind and the interval of its difference to every other leaves out zero; with three seeds that takes "
        "a difference of two and a half times the differences' standard deviation."
    )
    files = "Each figure is in [results.csv](results.csv), and the `results.json` of each run under [runs](runs)."
    return "\n\n".join([f"# Report of {len(runs)} runs", told, files])


def how_it_was_made(settings: list[Setting], measured: Mapping) -> str:
    versions = {json.dumps(result["versions"], sort_keys=True) for s in settings for result in s.results.values()}
    told = [
        ", ".join(f"{name} {number}" for name, number in json.loads(text).items() if number)
        for text in sorted(versions)
    ]
    return "\n\n".join(
        [
            "## How it was made",
            "```\npython recipes/compare.py GRID.yaml --output_dir RUNS\n"
            f"python recipes/report.py RUNS --output_dir REPORT{' --measure_latency' if measured else ''}\n```",
            "Arguments are in each `results.json`. From what is stored the report is rebuilt by "
            "`python recipes/report.py REPORT/runs --output_dir REPORT`. Versions: "
            + markdown_name("; ".join(told))
            + ".",
        ]
    )


if __name__ == "__main__":
    main()
