"""Classes that a visitor teaches the models of a run."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import arguments, run_recipe

from cdl_hf.demo.inputs import Input
from cdl_hf.demo.rendering import render_answers, render_taught
from cdl_hf.demo.run_facts import read_facts
from cdl_hf.demo.run_models import RunModels
from cdl_hf.demo.taught import MAX_CLASSES, MAX_IMAGES

STRIPES = torch.zeros(3, 16, 16, dtype=torch.uint8).index_fill(1, torch.arange(0, 16, 4), 255)
QUICK = ("--prompt_method", "none", "--num_train_epochs", "0", "--save_statistics")


@pytest.fixture(scope="module", params=[("ncm", "none"), ("ranpac", "analytic")], ids=["ncm", "analytic"])
def run(request, pair, drawings, tmp_path_factory):
    classifier, distillation = request.param
    folder = tmp_path_factory.mktemp("taught") / "run"
    methods = ("--classifier", classifier, "--distillation", distillation)
    run_recipe("train", *arguments(pair, drawings), *QUICK, *methods, "--output_dir", folder)
    return folder


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_visitor_teaches_a_class_and_no_one_else_sees_it(run):
    before, models = content_of(run), RunModels(run)
    facts, last = read_facts(run, models), models.num_tasks - 1
    models.predict(STRIPES, 0)  # another visitor looks at an earlier task
    taught = models.taught()
    for _ in range(2):
        taught.learn(" stripes ", models.transform.normalize(STRIPES[None]))
    assert len(taught.images["stripes"]) == 2 and taught.added_bytes > 0
    text = render_answers(models, facts, last, Input(STRIPES), taught)
    assert "Teacher: stripes" in text and "Student: stripes" in text and "7 classes" in text
    assert "and what you have taught" in text and "accuracy on the 6 classes of the run" in text
    assert "stripes (2 images)" in render_taught(models, taught)
    for others in (render_answers(models, facts, last, Input(STRIPES)), render_taught(models, None)):
        assert "stripes" not in others
    assert "stripes" not in render_answers(models, facts, 0, Input(STRIPES), taught)  # it comes after the last task
    assert "stripes" not in models.taught().class_names and content_of(run) == before


def test_an_image_of_a_known_class_adds_no_class(run):
    models = RunModels(run)
    taught = models.taught()
    taught.learn("class_0", models.transform.normalize(STRIPES[None]))
    assert taught.class_names == models.class_names and taught.added_bytes == 0
    facts, last = read_facts(run, models), models.num_tasks - 1
    text = render_answers(models, facts, last, Input(STRIPES), taught)
    assert "and what you have taught: 6 classes" in text
    assert text != render_answers(models, facts, last, Input(STRIPES))  # it changes what the models say


def test_what_cannot_be_taught_has_a_reason(run, finished_run):
    taught, pixels = RunModels(run).taught(), torch.zeros(1, 3, 16, 16)
    for name in ("", "  ", "a" * 41):
        with pytest.raises(ValueError, match="a name of at most 40 characters"):
            taught.learn(name, pixels)
    taught.images = {str(i): [pixels] for i in range(MAX_CLASSES)}
    with pytest.raises(ValueError, match="at most 20 classes"):
        taught.learn("one more", pixels)
    taught.images = {"class_0": [pixels] * MAX_IMAGES}
    with pytest.raises(ValueError, match="at most 200 images"):
        taught.learn("class_0", pixels)
    models = RunModels(finished_run)
    assert "heads of this run are trained" in render_taught(models, None)


def test_a_run_without_statistics_says_so(run, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("statistics.safetensors"))
    needs_them = (run / "teacher" / "statistics.safetensors").is_file()
    assert ("has not kept what its models need" in RunModels(copied).cannot_learn) == needs_them
