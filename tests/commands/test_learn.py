"""`cdl-hf learn`: what a finished run or a saved model learns afterwards."""

import json
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import arguments, run_recipe
from transformers import pipeline

from cdl_hf.arguments.config import CDLConfig, DistillationArguments
from cdl_hf.data import eval_transform
from cdl_hf.demo.run_facts import read_facts
from cdl_hf.demo.run_models import RunModels
from cdl_hf.demo.space import write_space
from cdl_hf.hub.saved_models import load_saved_model
from cdl_hf.models import PromptViTForImageClassification
from cdl_hf.training.further_learning import FurtherLearning

COMPUTED = ("--prompt_method", "none", "--distillation", "none", "--num_train_epochs", "0")


def part_of(drawings: Path, folder: Path, classes: range) -> Path:
    """A data set of some of the classes."""
    for split in ("train", "test"):
        for label in classes:
            shutil.copytree(drawings / split / f"class_{label}", folder / split / f"class_{label}")
    return folder


@pytest.fixture(scope="module")
def parts(drawings, tmp_path_factory) -> tuple[Path, Path]:
    """The first four of the six classes, and the others."""
    folder = tmp_path_factory.mktemp("parts")
    return part_of(drawings, folder / "first", range(4)), part_of(drawings, folder / "new", range(4, 6))


@pytest.fixture(scope="module")
def begin(pair, parts, tmp_path_factory):
    """Makes a run of two tasks of two classes."""

    def run(*more: str) -> Path:
        folder = tmp_path_factory.mktemp("begun") / "run"
        run_recipe("train", *arguments(pair, parts[0]), "--num_tasks", "2", *more, "--output_dir", folder)
        return folder

    return run


@pytest.fixture(scope="module")
def analytic_run(begin) -> Path:
    """Of closed-form distillation, with what further classes need."""
    return begin(*COMPUTED, "--distillation", "analytic", "--classifier", "ranpac", "--save_statistics")


def test_a_run_learns_what_a_longer_one_learns(begin, pair, parts, drawings, tmp_path, capsys):
    """In every bit with class means, in another process and without the earlier images."""
    ncm = (*COMPUTED, "--classifier", "ncm")
    whole = tmp_path / "whole"
    run_recipe("train", *arguments(pair, drawings), *ncm, "--output_dir", whole)
    run_recipe("learn", begin(*ncm), "--dataset", parts[1], "--output_dir", tmp_path / "new")
    for role in ("teacher", "student"):
        ours, theirs = (load_saved_model(folder / role) for folder in (tmp_path / "new", whole))
        assert ours.class_names == theirs.class_names
        assert torch.equal(ours.model.classifier.sums, theirs.model.classifier.sums)
    record = (tmp_path / "new" / "learned.json").read_text()
    assert str(tmp_path) not in record and str(parts[1].parent) not in record
    printed = capsys.readouterr().out
    assert "2 new classes: class_4, class_5" in printed and "of 8 other images of these classes" in printed
    assert "among all 6 classes" in printed


def test_teacher_and_student_of_a_closed_form_learn_again_and_again(analytic_run, parts, tmp_path):
    first = tmp_path / "first"
    run_recipe("learn", analytic_run, "--dataset", parts[1], "--output_dir", first)
    run_recipe("learn", first, "--dataset", parts[0], "--output_dir", tmp_path / "second")  # known classes
    model = PromptViTForImageClassification.from_pretrained(tmp_path / "second" / "student", load_statistics=True)
    assert model.config.classes_per_task == [2, 2, 2] and model.config.seen_classes == 6
    before = PromptViTForImageClassification.from_pretrained(first / "student", load_statistics=True)
    assert not torch.equal(model.analytic.predictor.sums.gram, before.analytic.predictor.sums.gram)
    learned = json.loads((tmp_path / "second" / "learned.json").read_text())["learned"]
    assert [entry["new_classes"] for entry in learned] == [["class_4", "class_5"], []]
    card = (tmp_path / "second" / "student" / "README.md").read_text()
    assert "| learned class\\_4, class\\_5 | 14 |" in card and "| more images of class\\_0," in card
    assert "It knows 6 classes" in card and "{{" not in card and str(tmp_path) not in card
    image = next((parts[1] / "test" / "class_4").iterdir())
    predicted = pipeline("image-classification", str(first / "student"))(str(image))
    assert {entry["label"] for entry in predicted} <= {f"class_{label}" for label in range(6)}
    page = RunModels(first)  # of the demo
    assert page.classes(2) == ["class_4", "class_5"] and not page.has_all_tasks and not page.cannot_learn
    facts = read_facts(first, page)
    assert (facts.name, facts.dataset) == ("first", parts[0].name)
    assert facts.models["student"].learned == "frozen, without prompts, distilled with analytic distillation"
    with pytest.raises(ValueError, match="not the output folder of a run, but one of its models"):
        RunModels(first / "student")
    pytest.importorskip("gradio", reason="a Space names its version: pip install '.[demo]'")
    write_space(first, tmp_path / "space")
    shown = RunModels(tmp_path / "space" / "run")
    assert shown.classes(2) == ["class_4", "class_5"] and not shown.cannot_learn
    own = str(tmp_path.parent)
    assert not [file for file in (tmp_path / "space").rglob("*.[jy]*") if own in file.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods", [("dualprompt", "kd"), ("coda_prompt", "kdp"), ("lora", "fitnets"), ("apt", "none")]
)
def test_trained_heads_learn_by_a_stage(begin, parts, tmp_path, methods):
    prompt_method, distillation = methods
    pool = ("--pool_size", "4") if prompt_method == "coda_prompt" else ()
    run = begin("--prompt_method", prompt_method, "--distillation", distillation, *pool)
    run_recipe("learn", run, "--dataset", parts[1], "--output_dir", tmp_path / "new", "--num_train_epochs", "20")
    taught = {}
    for role in ("teacher", "student"):
        saved, earlier = load_saved_model(tmp_path / "new" / role), load_saved_model(run / role)
        assert saved.model.config.seen_classes == 6
        assert torch.equal(saved.model.head.weight[:4], earlier.model.head.weight)  # no old class is unlearned
        images = [file for label in (4, 5) for file in (parts[1] / "train" / f"class_{label}").iterdir()]
        look = eval_transform(saved.image_processor)
        pixels = torch.stack([look(PIL.Image.open(file).convert("RGB")) for file in images])
        with torch.no_grad():  # in training mode, DualPrompt takes the prompt of this task
            logits = saved.model.train()(pixels).logits[:, 4:]
        taught[role] = int((logits.argmax(1) == torch.tensor([0] * 7 + [1] * 7)).sum())
    if prompt_method == "dualprompt":
        del taught["student"]  # which learns nothing in the run, too
    assert min(taught.values()) >= 11, taught  # of the 14


def test_the_record_names_no_path_of_this_machine(begin, parts, tmp_path):
    unlabeled = parts[0] / "train"
    run = begin(*COMPUTED, "--distillation", "analytic", "--classifier", "ncm", "--unlabeled_dataset", unlabeled)
    with pytest.raises(SystemExit):  # the sums of the closed form were not kept
        run_recipe("learn", run, "--dataset", parts[1], "--output_dir", tmp_path / "new")
    run_recipe("learn", run / "teacher", "--dataset", parts[1], "--output_dir", tmp_path / "new")
    record = (tmp_path / "new" / "learned.json").read_text()
    assert str(parts[0].parent) not in record and '"unlabeled_dataset": "train"' in record


def test_a_saved_model_learns_alone(analytic_run, parts, tmp_path):
    run_recipe("learn", analytic_run / "teacher", "--dataset", parts[1], "--output_dir", tmp_path / "new")
    assert load_saved_model(tmp_path / "new").class_names[4:] == ["class_4", "class_5"]


def test_what_cannot_learn_is_refused(begin, analytic_run, finished_run, parts, tmp_path, capsys):
    def refused(model: Path, dataset: Path = parts[1], output: Path = tmp_path / "new") -> str:
        with pytest.raises(SystemExit) as stop:
            run_recipe("learn", model, "--dataset", dataset, "--output_dir", output)
        assert stop.value.code == 2
        assert not (tmp_path / "new").exists()
        return capsys.readouterr().err

    assert "kd_branch=analytic): give the folder of the run" in refused(analytic_run / "student")
    assert "'class_4' already" in refused(finished_run)
    assert "give the folder of the run" in refused(finished_run / "student")  # its record is one folder up
    with_one = part_of(parts[1], tmp_path / "one", range(4, 5))
    assert "cannot tell one class alone" in refused(begin("--num_train_epochs", "1", "--pool_size", "4"), with_one)
    assert "there is no model" in refused(tmp_path)
    assert "is not empty" in refused(analytic_run, output=analytic_run)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for content in ("[]", "{", '{"arguments": 1}'):
        (damaged / "learned.json").write_text(content)
        assert f"{damaged / 'learned.json'} is damaged" in refused(damaged)
    run = tmp_path / "without"
    shutil.copytree(analytic_run, run)
    (run / "student" / "statistics.safetensors").unlink()
    assert "has no statistics.safetensors, which FeaturePredictor and RanPAC needs" in refused(run)


def test_a_stage_without_epochs_is_refused():
    """A run of an earlier version may record that it trained its linear heads in none."""
    with pytest.raises(ValueError, match="trained no heads"):
        FurtherLearning(
            {"student": tiny_model("none")}, None, DistillationArguments("none"), CDLConfig(num_train_epochs=0), None
        )
