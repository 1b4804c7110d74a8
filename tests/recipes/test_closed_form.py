"""recipes/closed_form.py on tiny models, and the table that the page shows of the stored figures."""

import json
from pathlib import Path

import pytest
from tiny_runs import load_recipe, run_recipe

ROOT = Path(__file__).parents[2]


def test_a_teacher_whose_classifier_reads_more_on_fewer_images(pair, drawings, tmp_path):
    sizes = ["--num_tasks", "3", "--orders", "1", "--seeds", "1", "--ranpac_width", "16", "--analytic_width", "12"]
    given = [*sizes, "--max_samples_per_class", "4"]
    found = []
    for more in ([], ["--teacher_layers", "2", "--teacher_patch_means"]):
        backbones = ["--teacher", pair[0], "--student", pair[1]]
        output = ["--output", tmp_path / f"{len(more)}.json"]
        run_recipe("closed_form", "--dataset", drawings, *backbones, *given, *more, *output)
        found.append(json.loads((tmp_path / f"{len(more)}.json").read_text())["accuracy"])
    one, other = found
    assert one["own: all layers"] == other["own: all layers"] and one != other


def test_tasks_that_the_classes_do_not_make_are_refused(pair, drawings, capsys):
    with pytest.raises(SystemExit):
        run_recipe(
            "closed_form", "--dataset", drawings, "--teacher", pair[0], "--student", pair[1], "--num_tasks", "40"
        )
    assert "cannot be divided into 40 tasks" in capsys.readouterr().err


def test_heads_and_controls_of_a_tiny_pair(pair, drawings, tmp_path, capsys):
    sizes = ["--num_tasks", "4", "--orders", "2", "--seeds", "2", "--ranpac_width", "16", "--analytic_width", "12"]
    backbones = ["--teacher", pair[0], "--student", pair[1]]
    run_recipe("closed_form", "--dataset", drawings, *backbones, *sizes, "--output", tmp_path / "all.json")
    content = json.loads((tmp_path / "all.json").read_text())
    assert all(len(scores) == 4 for scores in content["accuracy"].values())
    assert content["accuracy"]["teacher"] != content["accuracy"]["own: last token"]
    shown = capsys.readouterr().out
    assert all(f"| {head} |" in shown for head in content["accuracy"]) and content["versions"]["torch"]


def test_differences_to_another_student(pair, drawings, tmp_path, capsys):
    sizes = ["--num_tasks", "4", "--orders", "1", "--seeds", "1", "--ranpac_width", "16", "--analytic_width", "12"]
    given = ["--dataset", drawings, "--teacher", pair[0], *sizes]
    run_recipe("closed_form", *given, "--student", pair[1], "--output", tmp_path / "small.json")
    own = json.loads((tmp_path / "small.json").read_text())["accuracy"]
    best = max((head for head in own if head.startswith("own")), key=lambda head: sum(own[head].values()))
    capsys.readouterr()
    given += ["--student", pair[0], "--reference", tmp_path / "small.json", "--output", tmp_path / "large.json"]
    run_recipe("closed_form", *given)
    shown = capsys.readouterr().out
    assert f"difference to {best} of the reference" in shown
    (one,) = json.loads((tmp_path / "large.json").read_text())["accuracy"]["teacher"].values()
    (row,) = [line for line in shown.splitlines() if line.startswith("| teacher |")]
    assert f"{one - sum(own[best].values()):+.2f}" in row
    for more, told in (
        (["--orders", "2"], "cannot be compared: it has orders 1, not 2"),
        ([], "is no file of --output"),
    ):
        if not more:
            (tmp_path / "small.json").write_text("{}")
        with pytest.raises(SystemExit):
            run_recipe("closed_form", *given, *more)
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(ROOT.glob("recipes/*/closed_form*.json")), ids=lambda file: file.parent.name)
def test_the_page_shows_the_stored_figures(file):
    stored = json.loads(file.read_text())
    page = (file.parent / "README.md").read_text(encoding="utf-8")
    reference = stored["args"].get("reference")
    others = None if reference is None else json.loads((ROOT / reference).read_text())["accuracy"]
    assert load_recipe("closed_form").table(stored["accuracy"], others) in page
