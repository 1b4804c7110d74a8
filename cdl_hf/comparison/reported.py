"""Figures reported by papers, from the `reported.csv` beside the presets of a data set.

A row is one figure: paper, table, dataset, preset, teacher, student, prompt_method, distillation, metric, value, note.
`preset` names the file that holds the paper's hyper-parameters and backbones; a model without a teacher has
distillation `none`, and a teacher has neither student nor distillation.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from ..arguments.config import RUN
from ..cli import parse, to_dict

METRICS = ("A_N", "F_N")


@dataclass(frozen=True)
class ReportedFigure:
    """A row; all values are texts as in the file, `value` in % or points."""

    paper: str
    table: str
    dataset: str
    preset: str
    teacher: str
    student: str
    prompt_method: str
    distillation: str
    metric: str
    value: str
    note: str


def read_reported(file: Path) -> list[ReportedFigure]:
    """The rows of a `reported.csv`.

    Raises:
        ValueError: It lacks a column, or has one that is unknown.
    """
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        expected = [f.name for f in fields(ReportedFigure)]
        if rows.fieldnames != expected:
            raise ValueError(f"{file}: the columns must be {', '.join(expected)}, got {rows.fieldnames}")
        return [ReportedFigure(**row) for row in rows]


def reported_pairs(
    files: Iterable[Path], dataset: str, teacher: str, student: str, num_tasks: int
) -> dict[tuple[str, str | None], str]:
    """`A_N / F_N` by prompt method and distillation (`None` for the teacher) for a data set, backbones and tasks.

    Where two tables have a figure for the same setting, that of the first counts.

    Args:
        files: Each a `reported.csv`, with its presets in the same folder.
        dataset: Name of the data set.
        teacher, student, num_tasks: Names of the backbones and number of tasks, as in the presets.
    """
    found: dict[tuple[str, str | None], dict[str, str]] = {}
    for file in files:
        rows = [row for row in read_reported(file) if row.dataset == dataset]
        settings = {preset: _setting(file.with_name(f"{preset}.yaml")) for preset in {row.preset for row in rows}}
        table_of: dict[tuple[str, str | None], str] = {}
        for row in rows:
            key = row.prompt_method, row.distillation or None
            if (
                settings[row.preset] == (teacher, student, num_tasks)
                and table_of.setdefault(key, row.table) == row.table
            ):
                found.setdefault(key, {})[row.metric] = row.value
    return {key: " / ".join(figures[metric] for metric in METRICS) for key, figures in found.items()}


def page_tables(file: Path) -> dict[str, str]:
    """The rows of a `reported.csv` as Markdown tables by title: prompt methods in rows, distillation in columns."""
    tables: dict[str, dict[tuple[str, str], dict[str, dict[str, str]]]] = {}
    for row in read_reported(file):
        pair = f"`{row.preset}`", f"`{row.prompt_method}`"
        cells = tables.setdefault(row.table, {}).setdefault(pair, {})
        cells.setdefault(_column(row), {})[row.metric] = row.value
    return {title: _table(rows) for title, rows in tables.items()}


def _column(row: ReportedFigure) -> str:
    return f"`{row.distillation}`" if row.distillation else "teacher"


def _table(rows: dict[tuple[str, str], dict[str, dict[str, str]]]) -> str:
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [["preset", "prompts", *columns], ["---", "---", *["---:"] * len(columns)]]
    for (preset, prompt_method), cells in rows.items():
        figures = [
            " / ".join(cells[column][metric] for metric in METRICS) if column in cells else "" for column in columns
        ]
        lines.append([preset, prompt_method, *figures])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _setting(preset: Path) -> tuple[str, str, int]:
    arguments = to_dict(parse(RUN, ["--config", str(preset)]))
    return arguments["teacher"], arguments["student"], arguments["num_tasks"]
