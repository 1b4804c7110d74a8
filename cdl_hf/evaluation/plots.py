"""Plots of accuracies, differences, costs and confusions, made with matplotlib's objects: no pyplot, no display.

Names and titles are shown literally: `$`, `_` and backslashes are not math. In an SVG, text is text, and each point of
a cost plot has its name as a title. Pictures for a report are narrow, so that they can be read on a phone.
"""

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from ..utils import atomic_write
from .accuracy_matrix import AccuracyMatrix
from .pareto import pareto_front

# Distinguishable with protanopia and deuteranopia, and dark enough for text on white
COLORS = ("#0072B2", "#B94A00", "#000000", "#6A1B7A", "#00604A", "#B5476F", "#5F5FF0", "#780000")
MARKERS = "osD^vPX<>ph"
LINES = ("-", "--", "-.", ":")
# override a user's matplotlibrc
LITERAL: Any = {
    **{"text.parse_math": False, "text.usetex": False, "svg.hashsalt": "cdl_hf", "svg.fonttype": "none"},
}
GRAY = "#666666"
NARROW = 4.6  # inches: on a phone, 10 points are still 10 pixels


@matplotlib.rc_context(LITERAL)
def plot_accuracy_over_tasks(
    curves: Mapping[str, AccuracyMatrix],
    path: str | PathLike,
    title: str | None = None,
    *,
    classes_per_task: Sequence[int] | None = None,
    tasks: str = "tasks",
) -> None:
    """Plot the average accuracy over the tasks seen so far, after every task.

    Args:
        curves: name -> matrix; the name is written at the end of the line with the last value.
        path: file to write; its suffix sets the format.
        title: title of the plot.
        classes_per_task: if given, the horizontal axis shows the number of classes seen, not of tasks.
        tasks: what the tasks are called: `"tasks"` or `"domains"`.
    """
    averages = {name: matrix.average_accuracies for name, matrix in curves.items()}
    num_tasks = max(map(len, averages.values()))
    steps = np.arange(1, num_tasks + 1) if classes_per_task is None else np.cumsum(classes_per_task)[:num_tasks]
    figure = Figure(figsize=(6.8, 3.8))
    axes = figure.add_subplot()
    _draw_curves(
        axes, {name: (steps[: len(values)].tolist(), values) for name, values in averages.items()}, title or ""
    )
    axes.set_xticks(steps[::-1][:: math.ceil(num_tasks / 10)])
    axes.set_xlabel(f"{tasks.capitalize()} learned" if classes_per_task is None else "Classes seen")
    axes.set_ylabel(f"Average accuracy on seen {'classes' if tasks == 'tasks' else tasks} (%)")
    _save(figure, path, bbox_inches="tight")


@matplotlib.rc_context(LITERAL)
def plot_online_accuracy(curves: Mapping[str, Sequence[tuple[int, float]]], path: str | PathLike, title: str) -> None:
    """Plot the accuracy over the training images shown.

    Args:
        curves: name -> (training images shown, accuracy in %) of each measurement.
        path: file to write; its suffix sets the format.
        title: title of the plot.
    """
    figure = Figure(figsize=(6.8, 3.8))
    axes = figure.add_subplot()
    _draw_curves(
        axes, {name: ([n for n, _ in curve], [value for _, value in curve]) for name, curve in curves.items()}, title
    )
    axes.set_xlabel("Training images shown")
    axes.set_ylabel("Accuracy on the classes seen so far (%)")
    _save(figure, path, bbox_inches="tight")


def _draw_curves(axes: Axes, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str) -> None:
    """Accuracies (%) over something that grows, from 0 to 100%, each with its name and last value at its end."""
    ends = []  # (x, value, name, color) of the labels at the right
    for index, (name, (x, values)) in enumerate(curves.items()):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        line, size = LINES[index % len(LINES)], 5 if len(x) <= 30 else 2
        axes.plot(x, values, line, color=color, marker=marker, markersize=size, linewidth=1.8)
        ends.append((x[-1], values[-1], name, color))
    first, last = min(x[0] for x, _ in curves.values()), max(x[-1] for x, _ in curves.values())
    margin = 0.03 * (last - first) or 0.5
    axes.set_ylim(0, 101)  # the same in the pictures of all runs
    axes.set_xlim(first - margin, last + margin)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    axes.set_title(_shown(title), fontsize=11)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _label_ends(axes, sorted(ends, key=lambda end: end[1]))


def _save(figure: Figure, path: str | PathLike, titles: Mapping[str, str] | None = None, **how: Any) -> None:
    """Writes the file atomically, with the same bytes each time: an SVG has no random ids and no date.

    Args:
        figure: the figure.
        path: file to write.
        titles: titles of elements of an SVG by their `gid`, which a browser shows when one points at them.
        how: arguments of `savefig`.
    """
    form = Path(path).suffix.removeprefix(".")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is drawn instead
        figure.savefig(buffer, format=form, dpi=200, metadata={"Date": None} if form == "svg" else None, **how)
    content = buffer.getvalue()
    for gid, title in (titles or {}).items() if form == "svg" else ():
        start = f'<g id="{gid}">'
        content = content.replace(start.encode(), f"{start}<title>{escape(_shown(title))}</title>".encode(), 1)
    with atomic_write(Path(path)) as file:
        file.write(content)


def _shown(text: object) -> str:
    """Untrusted text on one line, with characters that cannot be printed as escapes."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(text).split()))
    return text.encode("utf-8", "backslashreplace").decode()


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes names and values in a column at the right, near the height of their values but not overlapping."""
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
def plot_differences(
    differences: Mapping[str, tuple[float, float | None, bool]],
    path: str | PathLike,
    title: str,
    axis: str,
    limits: tuple[float, float],
) -> None:
    """Plot differences to a reference as a forest plot: a row for each, with its name and its interval.

    Args:
        differences: name -> (mean, half the width of the interval or `None`, whether it is significant); significant
            ones have a filled marker.
        path: file to write; its suffix sets the format.
        title: title of the plot.
        axis: name of the axis with its unit.
        limits: ends of the axis.
    """
    count = len(differences)
    lines = textwrap.wrap(_shown(title), 52)
    figure = Figure(figsize=(NARROW, 0.8 + 0.44 * count + 0.22 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for row, (name, (mean, half_width, is_significant)) in enumerate(differences.items()):
        value = f"{mean:+.2f}"
        if half_width is not None:
            value += f" [{mean - half_width:+.2f}, {mean + half_width:+.2f}]"
            axes.plot([mean - half_width, mean + half_width], [row, row], color=COLORS[0], linewidth=1.8, marker="|")
        fill = COLORS[0] if is_significant else "white"
        axes.plot([mean], [row], "o", markersize=7, markeredgewidth=1.6, color=COLORS[0], markerfacecolor=fill)
        across = axes.get_yaxis_transform()
        axes.text(0.01, row - 0.42, _shown(name), transform=across, va="center", fontsize=10)
        axes.text(0.99, row - 0.42, value, transform=across, va="center", ha="right", fontsize=10)
        if row:
            axes.axhline(row - 0.68, color="#E4E4E4", linewidth=0.8, zorder=0)
    axes.axvline(0, color=GRAY, linewidth=1.2, linestyle="--", zorder=1)
    axes.set_xlim(*limits)
    axes.set_ylim(count - 0.62, -0.72)
    axes.set_yticks([])
    axes.set_xlabel(_shown(axis), fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title("\n".join(lines), fontsize=11, loc="left")
    _save(figure, path)


@matplotlib.rc_context(LITERAL)
def plot_accuracy_against_cost(
    points: Mapping[tuple[str, str], Mapping[str, tuple[float, float]]],
    path: str | PathLike,
    title: str,
    cost: str,
    chance: float,
) -> None:
    """Plot accuracy, from 0 on, against cost.

    Points on the Pareto front are numbered in order of cost, and named below.

    Args:
        points: group -> name -> (cost, accuracy in %). A group is a pair of words: the first sets the color, the
            second the marker. In an SVG, a point has its name as a title.
        path: file to write; its suffix sets the format.
        title: title of the plot.
        cost: name of the costs with their unit; the axis is logarithmic.
        chance: accuracy (%) of guessing, drawn as a line.
    """
    lines = textwrap.wrap(_shown(title), 52)
    every = {name: point for members in points.values() for name, point in members.items()}
    front = pareto_front(every)
    names = [
        line
        for number, name in enumerate(front, 1)
        for line in textwrap.wrap(f"{number}  {_shown(name)}  {every[name][1]:.1f}%", 52, subsequent_indent="    ")
    ]
    height = 4.4 + 0.2 * (len(lines) + math.ceil(len(points) / 2) + len(names))
    figure = Figure(figsize=(NARROW, height), layout="constrained")
    axes = figure.add_subplot()
    hues, shapes = ({words[i]: None for words in points} for i in (0, 1))
    titles: dict[str, str] = {}
    for words, members in points.items():
        color = COLORS[[*hues].index(words[0]) % len(COLORS)]
        marker = MARKERS[[*shapes].index(words[1]) % len(MARKERS)]
        style: dict[str, Any] = {"color": color, "marker": marker, "alpha": 0.8, "markeredgewidth": 0}
        axes.plot([], [], linestyle="", markersize=6, label=_shown(", ".join(words)), **style)
        for name, (x, y) in members.items():
            gid = f"point-{len(titles) + 1}"
            titles[gid] = f"{name}: {y:.1f}%"
            axes.plot([x], [y], markersize=6, gid=gid, **style)
    costs, accuracies = zip(*(every[name] for name in front), strict=True)
    axes.step(costs, accuracies, where="post", color=GRAY, linewidth=1.2, linestyle="--", zorder=1)
    for number, name in enumerate(front, 1):
        offset: dict[str, Any] = {"xytext": (-4, 5), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"{number}", xy=every[name], fontsize=10, weight="bold", **offset)
    axes.axhline(chance, color=GRAY, linewidth=1, linestyle=":", zorder=1)
    axes.text(0.99, chance, f"chance {chance:.3g}%", transform=axes.get_yaxis_transform(), ha="right", va="bottom")
    axes.set_ylim(bottom=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_in_words))
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axes.xaxis.set_minor_formatter(FuncFormatter(_in_words))
    axes.tick_params(axis="x", which="both", labelsize=9)
    axes.set_xlabel(_shown(cost))
    axes.set_ylabel("Average accuracy after the last task (%)")
    figure.suptitle("\n".join(lines), fontsize=11, x=0.01, ha="left")
    figure.supxlabel("\n".join(names), fontsize=10, x=0.02, ha="left")
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.14, 1), "ncols": 2}
    axes.legend(**place, fontsize=10, frameon=False, handletextpad=0.1, columnspacing=1)
    _save(figure, path, titles)


def _in_words(value: float, position: int | None = None) -> str:
    """Label of a tick on an axis of costs, such as 2M for two million."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _spread(heights: list[float], gap: float) -> list[float]:
    """Moves ascending heights at least `gap` apart; groups that would overlap stay centered."""
    groups: list[list[float]] = []

    def bottom(group: list[float]) -> float:
        return sum(group) / len(group) - gap * (len(group) - 1) / 2

    for height in heights:
        groups.append([height])
        while len(groups) > 1 and bottom(groups[-1]) < bottom(groups[-2]) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [bottom(group) + gap * place for group in groups for place in range(len(group))]


@matplotlib.rc_context(LITERAL)
def plot_accuracy_matrices(
    matrices: Mapping[str, AccuracyMatrix], path: str | PathLike, domains: Sequence[str] | None = None
) -> None:
    """Plot accuracy matrices side by side with one color scale.

    Args:
        matrices: name -> matrix; the name is the title.
        path: file to write; its suffix sets the format.
        domains: domain of each task, if the tasks are domains.
    """
    num_tasks = max(matrix.tasks_seen for matrix in matrices.values())
    highest = max(value for matrix in matrices.values() for row in matrix.rows for value in row) or 1.0
    colors = matplotlib.colormaps["YlGnBu"]
    side, what = max(0.36 * num_tasks, 1.5), "task" if domains is None else "domain"
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
        names = ticks + 1 if domains is None else [_shown(name) for name in domains[:num_tasks]]
        axes.set_xticks(ticks, names, fontsize=8, rotation=0 if domains is None else 90)
        axes.set_yticks(ticks, names, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(f"Test images of {what}", fontsize=9)
        axes.set_title(_shown(name), fontsize=11)
    panels[0].set_ylabel(f"After training {what}", fontsize=9)
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
    """Plot a confusion matrix, each row as percentages of the images of the true class, with lines between tasks.

    Args:
        matrix: (C, C) counts: rows are true classes, columns predicted classes.
        path: file to write; its suffix sets the format.
        title: title of the plot.
        class_names: C names, shown for up to 120 classes; with more, the tasks are numbered.
        classes_per_task: number of classes of each task; they add up to C.
    """
    shares = 100 * matrix / matrix.sum(1, keepdims=True).clip(min=1)
    count = len(class_names)
    side = min(max(0.2 * count, 3.0), 9.0)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.add_subplot()
    # a square-root scale makes 10% visible beside 100%
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
    axes.set_xlabel("Predicted class" if count <= 120 else "Predicted class, by task")
    axes.set_ylabel("True class" if count <= 120 else "True class, by task")
    axes.set_title(_shown(title), fontsize=11)
    bar = figure.colorbar(image, ax=axes, aspect=40, pad=0.01, ticks=[0, 5, 10, 25, 50, 75, 100])
    bar.set_label("Share of the class's images (%)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    _save(figure, path)
