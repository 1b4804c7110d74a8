"""The page of each kind of run, as HTML."""

import shutil

import pytest
import torch
from tiny_runs import arguments, run_recipe

from cdl_hf.demo.inputs import Input
from cdl_hf.demo.page import Visit, _task, build_page
from cdl_hf.demo.rendering import render_answers, render_classes, render_header, render_tasks
from cdl_hf.demo.run_facts import read_facts
from cdl_hf.demo.run_models import RunModels

IMAGE = Input(torch.zeros(3, 16, 16, dtype=torch.uint8))


@pytest.fixture(scope="module")
def shown(finished_run):
    models = RunModels(finished_run)
    return models, read_facts(finished_run, models)


def test_answers_name_what_is_known_and_what_is_new(shown):
    text = render_answers(*shown, 1, IMAGE)
    assert "After task 2 of 3: 4 classes, the newest are class_2, class_3." in text
    assert text.count("<li>") == 2 * 4 and text.count("<b>new</b>") == 2 * 2
    assert text.index("Teacher: class") < text.index("Student: class") and "data:image/png;base64," in text
    assert text.count("% accuracy on the 4 classes so far") == 2


def test_a_problem_stands_alone(shown):
    text = render_answers(*shown, 1, Input(problem="The file <b> is empty."))
    assert "The file &lt;b&gt; is empty." in text and "%" not in text and "<img" not in text


def test_the_header_names_run_data_and_models(shown, finished_run, drawings):
    text = render_header(*shown)
    for part in (finished_run.name, drawings.name, "6 classes", "3 tasks", "Teacher: teacher, ", "% average accuracy"):
        assert part in text
    assert str(finished_run.parent) not in text and str(drawings.parent) not in text


def test_names_of_classes_are_no_markup(shown):
    models, facts = shown
    names, models.class_names = models.class_names, ["<script>", "b & c", *models.class_names[2:]]
    try:
        for text in (render_answers(models, facts, 0, IMAGE), render_classes(models)):
            assert "&lt;script&gt;" in text and "<script>" not in text and "b &amp; c" in text
    finally:
        models.class_names = names


KINDS = {"all": (3, True), "one task": (1, False), "teacher": (3, True), "student": (3, True), "no states": (3, False)}


@pytest.fixture(scope="module")
def runs(pair, drawings, finished_run, tmp_path_factory):
    """A finished run of each kind, by its name."""
    folder = tmp_path_factory.mktemp("runs")
    few = (*arguments(pair, drawings), "--num_train_epochs", "1", "--max_samples_per_class", "2")
    run_recipe("train", *few, "--num_tasks", "1", "--output_dir", folder / "one task")
    for name, left_out in (("teacher", "student"), ("student", "teacher"), ("no states", "states")):
        shutil.copytree(finished_run, folder / name, ignore=shutil.ignore_patterns(left_out, "checkpoints"))
    (folder / "no states" / "results.json").unlink()
    return {path.name: path for path in folder.iterdir()} | {"all": finished_run}


@pytest.mark.parametrize("name", KINDS)
def test_the_page_of_every_kind_of_run(runs, name):
    pytest.importorskip("gradio", reason="needs gradio: pip install '.[demo]'")
    models = RunModels(runs[name])
    assert (models.num_tasks, models.has_all_tasks) == KINDS[name]
    facts = read_facts(runs[name], models)
    last = models.num_tasks
    text = render_answers(models, facts, last - 1, IMAGE)
    assert f"After task {last} of {last}" in text and ("the newest are" in text) == (last > 1)
    assert f'max="{last}"' in render_tasks(models)
    page = build_page(models, facts)
    assert ("tasks" in {block.elem_id for block in page.blocks.values()}) == models.has_all_tasks


@pytest.mark.parametrize("value", [2.5, None, "", "2", 0, 4, True])
def test_only_tasks_of_the_run_are_shown(value):
    with pytest.raises(ValueError, match="task must be a whole number from 1 to 3, got"):
        _task(value, 3)
    assert _task(3, 3) == 2


def test_the_open_tab_is_shown():
    drawing, upload = Input(warning="drawing"), Input(warning="upload", as_drawing=Input(warning="inverted"))
    visit = Visit(0, True, drawing, upload)
    assert visit.shown == drawing
    assert Visit(0, False, drawing, upload).shown == upload
    assert Visit(0, False, drawing, upload, as_drawing=True).shown.warning == "inverted"
    assert Visit(0, False).shown is None
