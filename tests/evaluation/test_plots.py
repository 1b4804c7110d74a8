import itertools
import os
import subprocess
import sys
import xml.etree.ElementTree

import matplotlib
import numpy as np
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from cdl_hf.evaluation import AccuracyMatrix
from cdl_hf.evaluation.plots import (
    COLORS,
    _spread,
    plot_accuracy_against_cost,
    plot_accuracy_matrices,
    plot_accuracy_over_tasks,
    plot_confusion,
    plot_differences,
)

SVG = "{http://www.w3.org/2000/svg}"


def matrix(num_tasks, start=80, slope=2, seen=None):
    """R[i,j] = start - slope (i - j) %."""
    made = AccuracyMatrix(num_tasks)
    for i in range(seen or num_tasks):
        for j in range(i + 1):
            made.update(i, j, max(start - slope * (i - j), 0), 100)
    return made


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written."""
    figures = []
    savefig = Figure.savefig

    def remember(self, *arguments, **settings):
        figures.append(self)
        savefig(self, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def colors_in(path):
    return len(PIL.Image.open(path).convert("RGB").getcolors(10**6))


def boxes(figure, texts):
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [Text.get_window_extent(text, renderer) for text in texts]  # not an annotation's, which has its arrow in it


@pytest.mark.parametrize(("num_tasks", "seen"), [(1, 1), (2, 2), (10, 10), (20, 20), (20, 7)])
def test_curves(tmp_path, drawn, num_tasks, seen):
    curves = {"teacher": matrix(num_tasks, 90, 1, seen), "student": matrix(num_tasks, 60, 3, seen)}
    plot_accuracy_over_tasks(curves, tmp_path / "curves.png", "Title", classes_per_task=[5] * num_tasks)
    assert colors_in(tmp_path / "curves.png") > 10
    (axes,) = drawn[0].axes
    for line, made in zip(axes.lines, curves.values(), strict=False):
        assert line.get_xdata().tolist() == [5 * (i + 1) for i in range(seen)]
        assert line.get_ydata() == pytest.approx([np.mean(row) for row in made.rows])
    assert {text.get_text() for text in axes.texts} == {
        f"teacher  {curves['teacher'].average_accuracy:.1f}%",
        f"student  {curves['student'].average_accuracy:.1f}%",
    }
    low, high = axes.get_ylim()
    assert all(low <= value <= high for line in axes.lines for value in line.get_ydata())
    assert 1 <= len(axes.get_xticks()) <= 10 and axes.get_xticks()[0] == 5 * seen
    assert axes.get_title() == "Title" and axes.get_xlabel() == "Classes seen" and "%" in axes.get_ylabel()


def test_labels_stand_beside_the_data_and_apart(tmp_path, drawn):
    curves = {f"method {index}": matrix(5, 80 - index % 2, 1) for index in range(7)}
    plot_accuracy_over_tasks(curves, tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    found = boxes(drawn[0], axes.texts)
    assert len(found) == 7 and all(box.x0 > axes.bbox.x1 for box in found)
    for one, other in itertools.combinations(found, 2):
        assert one.y1 <= other.y0 or other.y1 <= one.y0
    assert axes.get_xlabel() == "Tasks learned"


@pytest.mark.parametrize("num_tasks", [1, 10, 20])
def test_matrices(tmp_path, drawn, num_tasks):
    matrices = {"teacher": matrix(num_tasks, 90, 1), "student": matrix(num_tasks, 60, 3, seen=(num_tasks + 1) // 2)}
    plot_accuracy_matrices(matrices, tmp_path / "matrices.png")
    assert colors_in(tmp_path / "matrices.png") > 10
    *panels, bar = drawn[0].axes
    assert [axes.get_title() for axes in panels] == ["teacher", "student"] and "%" in bar.get_ylabel()
    for axes, made in zip(panels, matrices.values(), strict=True):
        (image,) = axes.images
        cells = image.get_array().filled(np.nan)
        for (i, j), value in np.ndenumerate(cells):
            assert value == made.rows[i][j] if i < made.tasks_seen and j <= i else np.isnan(value)
        assert len(axes.texts) == sum(map(len, made.rows))
        assert image.get_clim() == (0, 90)
        for text in axes.texts:
            j, i = text.get_position()
            assert text.get_text() == f"{made.rows[i][j]:.0f}"
        width = axes.bbox.width / num_tasks
        assert max(box.width for box in boxes(drawn[0], axes.texts)) < width, "numbers fit their cells"


def test_matrix_of_zeros(tmp_path, drawn):
    plot_accuracy_matrices({"student": matrix(2, 0)}, tmp_path / "matrices.png")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["0"] * 3


def test_empty_matrix_is_refused(tmp_path):
    with pytest.raises(ValueError):
        plot_accuracy_matrices({"student": AccuracyMatrix(2)}, tmp_path / "matrices.png")
    with pytest.raises(ValueError):
        plot_accuracy_over_tasks({"student": AccuracyMatrix(2)}, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_no_global_state():
    code = "import sys, cdl_hf.evaluation.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_suffix_chooses_the_format(tmp_path):
    plot_accuracy_over_tasks({"student": matrix(2)}, tmp_path / "curves.pdf")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.5], [0.5]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.48, 0.5, 0.9], [0.44, 0.54, 0.9]),
        # the middle pair pushes into the first, so that all three share one middle
        ([0.40, 0.5, 0.5], [0.46666667 - 0.1, 0.46666667, 0.46666667 + 0.1]),
    ],
)
def test_spread(heights, expected):
    assert _spread(heights, gap=0.1) == pytest.approx(expected)


@pytest.mark.parametrize(("sizes", "ticks"), [([3, 2], 5), ([1], 1), ([50, 75], 2)])
def test_confusion(tmp_path, drawn, sizes, ticks):
    count = sum(sizes)
    counts = np.eye(count, dtype=int) * 4
    counts[0, -1] += 12
    names = [f"class {i}" for i in range(count)]
    plot_confusion(counts, tmp_path / "confusion.png", "mine", class_names=names, classes_per_task=sizes)
    (axes, bar) = drawn[0].axes
    shares = np.asarray(axes.images[0].get_array())
    assert shares[0, -1] == (75 if count > 1 else 100) and shares[-1, -1] == 100
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == ticks
    assert len(axes.lines) == 2 * (len(sizes) - 1)
    assert colors_in(tmp_path / "confusion.png") > 2


def test_accuracy_against_cost_numbers_what_nothing_beats_and_names_each_point(tmp_path, drawn):
    large_name = "large, with a name that is too long for one line and stays in view at its right"
    points = {
        ("l2p", "teacher"): {large_name: (4e6, 50.0)},
        ("l2p", "student"): {"small": (1e6, 30.0), "waste<ful>": (2e6, 29.0)},
        ("apt", "student"): {"other": (2e6, 45.0)},
    }
    for name in ("one.svg", "two.svg"):
        plot_accuracy_against_cost(points, tmp_path / name, "Title", "Parameters", 2.5)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert all(len(line) <= 52 for line in drawn[0].get_supxlabel().splitlines())
    assert drawn[0].get_supxlabel().endswith("right  50.0%")
    (axes,) = drawn[0].axes
    *front, chance = axes.texts
    assert chance.get_text() == "chance 2.5%" and chance.get_position()[1] == 2.5 and axes.get_ylim()[0] == 0
    numbers = {text.get_text(): text.xy for text in front}
    assert numbers == {"1": (1e6, 30.0), "2": (2e6, 45.0), "3": (4e6, 50.0)}
    drawn_points = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    large, small, _, other = drawn_points.values()
    assert large.get_color() == small.get_color() != other.get_color()
    assert large.get_marker() != small.get_marker() == other.get_marker()
    root = xml.etree.ElementTree.parse(tmp_path / "one.svg").getroot()
    titles = {group.get("id"): group.findtext(f"{SVG}title") for group in root.iter(f"{SVG}g")}
    named = [titles[gid] for gid in drawn_points]
    assert named == [f"{large_name}: 50.0%", "small: 30.0%", "waste<ful>: 29.0%", "other: 45.0%"]


def test_differences_have_a_row_with_name_interval_and_marker(tmp_path, drawn):
    rows = {"KD $x$": (0.5, 0.2, True), "DKD": (-0.25, 1.5, False), "one run": (3.0, None, False)}
    plot_differences(rows, tmp_path / "a.svg", "KD adds half a point", "difference (points)", (-2, 4))
    (axes,) = drawn[0].axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["KD $x$", "+0.50 [+0.30, +0.70]", "DKD", "-0.25 [-1.75, +1.25]", "one run", "+3.00"]
    ends = [line.get_xdata() for line in axes.lines if line.get_marker() == "|"]
    assert ends == [pytest.approx([0.3, 0.7]), pytest.approx([-1.75, 1.25])]
    filled = [line.get_markerfacecolor() != "white" for line in axes.lines if line.get_marker() == "o"]
    assert filled == [True, False, False]
    assert axes.get_xlim() == (-2, 4)
    text = (tmp_path / "a.svg").read_text()
    assert ">+0.50 [+0.30, +0.70]</text>" in text and "KD $x$" in text  # not paths: it can be searched and read aloud


# Linear RGB as people with protanopia and deuteranopia see it: Machado, Oliveira and Fernandes, 2009, severity 1
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(color):
    rgb = np.array(matplotlib.colors.to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE Lab of linear sRGB, for daylight (D65)."""
    xyz = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_colors_can_be_told_apart(vision):
    seen = [lab(np.array(VISION[vision]) @ linear(color)) for color in COLORS]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) >= 10


def test_colors_are_dark_enough_for_text():
    for color in COLORS:
        assert 1.05 / (0.05 + XYZ[1] @ linear(color)) >= 4.5, color


def test_curves_differ_in_more_than_color(tmp_path, drawn):
    plot_accuracy_over_tasks({f"method {i}": matrix(3) for i in range(11)}, tmp_path / "a.svg")
    lines = drawn[0].axes[0].lines
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 11


NAMES = ["$a$", "a_b^c", "$\\frac{1}$", "\\alpha", "one $", "two\nlines", "日本", "\ud83d", "a\x00b", "{", "%", "$$"]


def test_names_are_shown_as_they_are(tmp_path, drawn, recwarn):
    """Whatever is in them, and whatever a user's own matplotlibrc says."""
    kinds = {name: matrix(2) for name in NAMES}
    with matplotlib.rc_context({"text.parse_math": True}):
        plot_accuracy_over_tasks(kinds, tmp_path / "a.png", "my $data$ in_$x_{")
        plot_accuracy_matrices(kinds, tmp_path / "b.png")
        counts, parts = np.eye(len(NAMES)), [len(NAMES)]
        plot_confusion(counts, tmp_path / "c.png", "$t$", class_names=NAMES, classes_per_task=parts)
        points = {(name, name): {name: (index + 1.0, index + 1.0)} for index, name in enumerate(NAMES[:11])}
        plot_accuracy_against_cost(points, tmp_path / "d.svg", "$t$", "$cost$ (ms)", 0.5)
        plot_differences(dict.fromkeys(NAMES, (1.0, 1.0, True)), tmp_path / "e.svg", "$t$", "$points$", (0, 2))
    assert [str(warning.message) for warning in recwarn] == []
    for figure in drawn:
        texts = [text.get_text() for text in figure.findobj(Text)]
        for shown in ("$a$", "a_b^c", "$\\frac{1}$", "one $", "two lines", "日本"):
            assert any(shown in text for text in texts)
        assert not any(text.get_parse_math() or text.get_usetex() for text in figure.findobj(Text))
    assert "my $data$ in_$x_{" in [text.get_text() for text in drawn[0].findobj(Text)]


def test_a_picture_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    plot_accuracy_matrices({"student": matrix(2)}, tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        plot_accuracy_matrices({"student": matrix(3)}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
