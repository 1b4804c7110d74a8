"""Pictures of what learners come to, through matplotlib's objects alone: no pyplot, no display, no global state.

Names and titles are shown as they are: neither `$`, `_` nor a backslash is taken for mathematics.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..utils import atomic_write
from .accuracy_matrix import AccuracyMatrix
from .pareto import pareto_front

# told apart by color-blind readers, and dark enough for the names written in them
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#AA4499", "#000000", "#7F4F24", "#6A8CAF"),
    *("#8A6D00", "#5B3A8C", "#B3003B", "#3F6F00"),
)
MARKERS = "osD^vPX<>ph"
LITERAL: Any = {
    "text.parse_math": False,
    "text.usetex": False,
    "svg.hashsalt": "cdl_hf",
}  # whatever a user's file says
REFERENCE_COLOR = "#666666"
REFERENCE_DASHES = ((5, 3), (2, 2), (8, 3, 2, 3))


@matplotlib.rc_context(LITERAL)
def plot_accuracy_over_tasks(
    curves: Mapping[str, AccuracyMatrix],
    path: str | PathLike,
    title: str | None = None,
    *,
    classes_per_task: Sequence[int] | None = None,
    references: Mapping[str, float] | None = None,
) -> None:
    """Draw the average accuracy over the tasks seen so far, after every task.

    Args:
        curves: matrices by name, which is written at the end of the line with the last value.
        path: file to write; its suffix chooses the format.
        title: above the picture.
        classes_per_task: puts the number of classes seen on the horizontal axis, in place of the number of tasks.
        references: horizontal lines, accuracy in % by name.
    """
    references = references or {}
    averages = {name: matrix.average_accuracies for name, matrix in curves.items()}
    num_tasks = max(map(len, averages.values()))
    steps = np.arange(1, num_tasks + 1) if classes_per_task is None else np.cumsum(classes_per_task)[:num_tasks]

    figure = Figure(figsize=(6.8, 3.8))
    axes = figure.add_subplot()
    ends = []  # (x, value, name, color) of what is labelled at the right
    for index, (name, values) in enumerate(averages.items()):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        axes.plot(steps[: len(values)], values, color=color, marker=marker, markersize=5, linewidth=1.8)
        ends.append((steps[len(values) - 1], values[-1], name, color))
    margin = 0.03 * (steps[-1] - steps[0]) or 0.5
    for index, (name, value) in enumerate(references.items()):
        dashes = (0, REFERENCE_DASHES[index % len(REFERENCE_DASHES)])
        axes.axhline(value, color=REFERENCE_COLOR, linewidth=1.2, linestyle=dashes, zorder=1)
        ends.append((steps[-1] + margin, value, name, REFERENCE_COLOR))

    shown = [*references.values(), *(value for values in averages.values() for value in values)]
    axes.set_ylim(max(math.floor(min(shown) / 10 - 0.2) * 10, 0), min(math.ceil(max(shown) / 10 + 0.2) * 10, 101))
    axes.set_xlim(steps[0] - margin, steps[-1] + margin)
    axes.set_xticks(steps[::-1][:: math.ceil(num_tasks / 10)])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    axes.set_xlabel("Tasks learnt" if classes_per_task is None else "Classes seen")
    axes.set_ylabel("Average accuracy on seen classes (%)")
    axes.set_title(_shown(title or ""), fontsize=11)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _label_ends(axes, sorted(ends, key=lambda end: end[1]))
    _save(figure, path, bbox_inches="tight")


def _save(figure: Figure, path: str | PathLike, **how: Any) -> None:
    """Writes the same file each time, whole: an SVG's names are not random, and it does not tell the time."""
    form = Path(path).suffix.removeprefix(".")
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is drawn for what the font does not have
        figure.savefig(content, format=form, dpi=200, metadata={"Date": None} if form == "svg" else None, **how)
    with atomic_write(Path(path)) as file:
        file.write(content.getbuffer())


def _shown(text: object) -> str:
    """A text that is not ours, on one line: what no font can draw is shown as an escape."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(text).split()))
    return text.encode("utf-8", "backslashreplace").decode()


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write names and values in a column at the right, near the height of their values but not on one another."""
    low, high = axes.get_ylim()
    heights = _spread([(value - low) / (high - low) for _, value, _, _ in ends], gap=0.065)
    for (x, value, name, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{_shown(name)}  {value:.1f}%",
            xy=(x, value),
            xytext=(1.06, height),
            textcoords="axes fraction",
            verticalalignment="center",
            fontsize=9.5,
            color=color,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 2},
        )


@matplotlib.rc_context(LITERAL)
def plot_accuracy_against_cost(
    points: Mapping[tuple[str, str], Mapping[str, tuple[float, float]]], path: str | PathLike, title: str, cost: str
) -> None:
    """Draw accuracy against cost. What nothing else beats in both is numbered, and named at the right.

    Args:
        points: (cost, accuracy in %) by name, by group; of a group's two words the first has its own color, the
            second its own marker.
        path: file to write; its suffix chooses the format.
        title: above the picture.
        cost: what costs are, with the unit; drawn on a logarithmic axis.
    """
    figure = Figure(figsize=(6.8, 4.6))
    axes = figure.add_subplot()
    hues, shapes = ({words[i]: None for words in points} for i in (0, 1))
    for words, members in points.items():
        color, marker = COLORS[[*hues].index(words[0])], MARKERS[[*shapes].index(words[1])]
        costs, accuracies = zip(*members.values(), strict=True)
        style: dict[str, Any] = {"s": 34, "color": color, "marker": marker, "alpha": 0.8, "linewidths": 0}
        axes.scatter(costs, accuracies, label=_shown(", ".join(words)), **style)
    every = {name: point for members in points.values() for name, point in members.items()}
    front = pareto_front(every)
    costs, accuracies = zip(*(every[name] for name in front), strict=True)
    axes.step(costs, accuracies, where="post", color=REFERENCE_COLOR, linewidth=1.2, linestyle="--", zorder=1)
    for number, name in enumerate(front, 1):
        x, y = every[name]
        axes.annotate(f"{number}", xy=(x, y), xytext=(-3, 5), textcoords="offset points", ha="right", fontsize=8.5)
        axes.annotate(
            f"{number}  {_shown(name)}  {y:.1f}%",
            xy=(1.03, 0.03 + 0.055 * (number - 1)),
            xycoords="axes fraction",
            fontsize=8.5,
            annotation_clip=False,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_in_words))
    axes.xaxis.set_minor_formatter(FuncFormatter(_in_words))
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_xlabel(_shown(cost))
    axes.set_ylabel("Average accuracy after the last task (%)")
    axes.set_title(_shown(title), fontsize=11)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize=8.5, frameon=False)
    _save(figure, path, bbox_inches="tight")


def _in_words(value: float, position: int | None = None) -> str:
    """A tick of an axis of costs: 2M for two million."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _spread(heights: list[float], gap: float) -> list[float]:
    """Move ascending heights apart to at least `gap`, each group that would touch about its own middle."""
    groups: list[list[float]] = []

    def bottom(group: list[float]) -> float:
        return sum(group) / len(group) - gap * (len(group) - 1) / 2

    for height in heights:
        groups.append([height])
        while len(groups) > 1 and bottom(groups[-1]) < bottom(groups[-2]) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [bottom(group) + gap * place for group in groups for place in range(len(group))]


@matplotlib.rc_context(LITERAL)
def plot_accuracy_matrices(matrices: Mapping[str, AccuracyMatrix], path: str | PathLike) -> None:
    """Draw the accuracy matrices side by side, on one scale of colors.

    Args:
        matrices: matrices by name, which is written above each.
        path: file to write; its suffix chooses the format.
    """
    num_tasks = max(matrix.tasks_seen for matrix in matrices.values())
    highest = max(value for matrix in matrices.values() for row in matrix.rows for value in row) or 1.0
    colors = matplotlib.colormaps["YlGnBu"]
    side = max(0.36 * num_tasks, 1.5)
    figure = Figure(figsize=(len(matrices) * (side + 0.5), side), layout="constrained")
    panels = list(figure.subplots(1, len(matrices), squeeze=False)[0])
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        cells = np.full((num_tasks, num_tasks), np.nan)
        for i, row in enumerate(matrix.rows):
            cells[i, : len(row)] = row
            for j, value in enumerate(row):
                brightness = np.dot(colors(value / highest)[:3], (0.299, 0.587, 0.114))
                color = "white" if brightness < 0.5 else "black"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color)
        image = axes.imshow(cells, cmap=colors, vmin=0, vmax=highest)
        ticks = np.arange(num_tasks)
        axes.set_xticks(ticks, ticks + 1, fontsize=8)
        axes.set_yticks(ticks, ticks + 1, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("Test images of task", fontsize=9)
        axes.set_title(_shown(name), fontsize=11)
    panels[0].set_ylabel("After training task", fontsize=9)
    bar = figure.colorbar(image, ax=panels, aspect=25, pad=0.02)
    bar.set_label("Accuracy (%)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    _save(figure, path, bbox_inches="tight")


@matplotlib.rc_context(LITERAL)
def plot_confusion(
    matrix: np.ndarray,
    path: str | PathLike,
    title: str,
    *,
    class_names: Sequence[str],
    classes_per_task: Sequence[int],
) -> None:
    """Draw which classes are taken for which, each row in shares of the true class's images; lines part the tasks.

    Args:
        matrix: (C, C) counts: row is the true class, column the answer.
        path: file to write; its suffix chooses the format.
        title: above the picture.
        class_names: C names, written up to 120 classes; with more, the tasks are numbered.
        classes_per_task: add up to C.
    """
    shares = 100 * matrix / matrix.sum(1, keepdims=True).clip(min=1)
    count = len(class_names)
    side = min(max(0.2 * count, 3.0), 9.0)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.add_subplot()
    # the square root lets a tenth of a class be seen beside the whole of another
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100))
    stops = np.cumsum(classes_per_task)
    for stop in stops[:-1]:
        axes.axhline(stop - 0.5, color="#9AA5B1", linewidth=0.5)
        axes.axvline(stop - 0.5, color="#9AA5B1", linewidth=0.5)
    if count <= 120:
        places, size = np.arange(count, dtype=np.float64), min(9.0, 50 * side / count)
        names = [_shown(name) for name in class_names]
    else:
        places, size = stops - np.array(classes_per_task) / 2 - 0.5, 8.0
        names = [str(task) for task in range(1, len(stops) + 1)]
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("Answer" if count <= 120 else "Answer, by task")
    axes.set_ylabel("True class" if count <= 120 else "True class, by task")
    axes.set_title(_shown(title), fontsize=11)
    bar = figure.colorbar(image, ax=axes, aspect=40, pad=0.01, ticks=[0, 5, 10, 25, 50, 75, 100])
    bar.set_label("Share of the class's images (%)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    _save(figure, path)
