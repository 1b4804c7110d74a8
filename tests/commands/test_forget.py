"""`cdl-hf forget`: what a finished run or a saved model knows afterwards."""

import errno
import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from tiny_runs import arguments, run_recipe

from cdl_hf.hub.learned_models import LearnedModels
from cdl_hf.hub.saved_models import load_saved_model

COMPUTED = ("--prompt_method", "none", "--distillation", "none", "--num_train_epochs", "0", "--num_tasks", "2")


@pytest.fixture(scope="module")
def begin(pair, drawings, tmp_path_factory):
    """Makes a run of two tasks of three classes."""

    def run(*more: str):
        folder = tmp_path_factory.mktemp("begun") / "run"
        run_recipe("train", *arguments(pair, drawings), *COMPUTED, *more, "--output_dir", folder)
        return folder

    return run


@pytest.fixture(scope="module")
def ranpac_run(begin):
    return begin("--classifier", "ranpac", "--save_statistics")


def test_class_means_forget_without_images(begin, tmp_path, capsys):
    run = begin("--classifier", "ncm")
    (tmp_path / ".new").mkdir()  # is of someone else
    classes = ("class_1", "class_4", "class_1")
    run_recipe("forget", run, "--classes", *classes, "--output_dir", tmp_path / "new")
    assert "forgot 2 classes: class_1, class_4; 4 are left" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new", "new"]
    for role in ("teacher", "student"):
        saved, earlier = load_saved_model(tmp_path / "new" / role), load_saved_model(run / role)
        assert saved.class_names == ["class_0", "class_2", "class_3", "class_5"]
        assert torch.equal(saved.model.classifier.sums, earlier.model.classifier.sums[[0, 2, 3, 5]])
    record = json.loads((tmp_path / "new" / "learned.json").read_text())
    assert record["learned"] == [{"forgotten_classes": ["class_1", "class_4"]}]
    assert "| forgot class\\_1, class\\_4 | " in (tmp_path / "new" / "student" / "README.md").read_text()


def test_the_card_of_a_model_that_forgets_twice_says_what_it_is(begin, tmp_path, monkeypatch):
    run = begin("--classifier", "ncm")
    run_recipe("forget", run / "teacher", "--classes", "class_1", "--output_dir", tmp_path / "first")
    monkeypatch.chdir(tmp_path / "first")
    run_recipe("forget", ".", "--classes", "class_2", "--output_dir", tmp_path / "second")
    card = (tmp_path / "second" / "README.md").read_text()
    assert f"# {run.name}-teacher\n\nThe teacher of a run" in card and f"from `{run.name}`" in card
    assert "| forgot class\\_1 | " in card and "| forgot class\\_2 | " in card


def test_models_that_cannot_be_saved_leave_nothing(ranpac_run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LearnedModels, "_write_card", full)
    with pytest.raises(OSError, match="No space left"):
        LearnedModels.load(str(ranpac_run)).save(tmp_path / "new", Accelerator(), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [False, True])
def test_ranpac_forgets_by_the_images_it_learned_from(ranpac_run, drawings, tmp_path, given):
    new = tmp_path / "new"
    dataset = ["--dataset", drawings] if given else []
    run_recipe("forget", ranpac_run, "--classes", "class_5", *dataset, "--output_dir", new)
    run = load_saved_model(ranpac_run / "student", statistics=True).model.classifier
    without = load_saved_model(new / "student", statistics=True).model.classifier
    assert len(without.weight) == 5
    torch.testing.assert_close(without.sums.sums, run.sums.sums[:, :5])  # those of the other classes' images
    assert without.sums.gram.trace() < run.sums.gram.trace()


def test_ranpac_finds_the_part_of_the_images_that_it_learned_from(begin, tmp_path):
    part = ("--validation_fraction", "0.3", "--max_samples_per_class", "5")
    run = begin("--classifier", "ranpac", "--save_statistics", *part)
    run_recipe("forget", run / "student", "--classes", "class_5", "--output_dir", tmp_path / "new")
    assert len(load_saved_model(tmp_path / "new").class_names) == 5


def test_what_cannot_forget_is_refused(ranpac_run, drawings, tmp_path, capsys):
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            run_recipe("forget", *words, "--output_dir", tmp_path / "new")
        assert stop.value.code == 2 and not (tmp_path / "new").exists()
        return capsys.readouterr().err

    by_class = (ranpac_run, "--classes", "class_5")
    alone = shutil.copytree(ranpac_run / "student", tmp_path / "alone")
    assert "RanPAC has mixed the images of all classes" in refused(alone, *by_class[1:])
    other = ("--dataset", drawings, "--train_split", "test")
    assert "7 of the 7 images of class_5 that" in refused(*by_class, *other)
    assert (
        "not the images of the classes to remove that RanPAC was fitted on, or not in the same precision"
        in refused(alone, *by_class[1:], *other)
    )
    assert "does not know the class 'cat'" in refused(ranpac_run, "--classes", "cat")
    assert "test_fraction needs dataset" in refused(*by_class, "--test_fraction", "0.5")
    assert "has no training images of the classes to forget" in refused(
        ranpac_run, "--classes", "cat", "--dataset", drawings
    )
