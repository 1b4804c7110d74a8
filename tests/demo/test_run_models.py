"""Models of a run predict as they did after each task."""

import json
import shutil

import PIL.Image
import pytest

from cdl_hf.demo.run_facts import read_facts
from cdl_hf.demo.run_models import RunModels
from cdl_hf.hub.saved_models import load_run


@pytest.fixture(scope="module")
def models(finished_run):
    return RunModels(finished_run)


@pytest.fixture(scope="module")
def pixels(models, drawings):
    return models.transform.pixels(PIL.Image.open(drawings / "test" / "class_3" / "0.png"))


def test_predictions_are_those_of_each_task(models, finished_run, pixels):
    assert models.num_tasks == 3 and models.has_all_tasks and not models.takes_drawings
    last = models.predict(pixels, 2)
    for role, saved in load_run(finished_run).items():
        probabilities = saved.logits(models.transform.normalize(pixels[None]))[0].softmax(0)
        expected = sorted(zip(saved.class_names, probabilities.tolist(), strict=True), key=lambda c: -c[1])[:5]
        assert [name for name, _ in last[role]] == [name for name, _ in expected]
        assert [p for _, p in last[role]] == pytest.approx([p for _, p in expected], abs=1e-6)
    for classes in models.predict(pixels, 0).values():
        assert {name for name, _ in classes} == {"class_0", "class_1"}
        assert sum(p for _, p in classes) == pytest.approx(1)
    assert models.predict(pixels, 2) == last


def test_accuracy_after_the_first_task_is_that_of_the_run(models, finished_run, drawings):
    correct = dict.fromkeys(models.saved, 0)
    for label in (0, 1):
        for file in (drawings / "test" / f"class_{label}").iterdir():
            for role, classes in models.predict(models.transform.pixels(PIL.Image.open(file)), 0).items():
                correct[role] += classes[0][0] == f"class_{label}"
    facts = read_facts(finished_run, models)
    for role, count in correct.items():
        assert facts.models[role].accuracy(0) == pytest.approx(100 * count / 8)


def test_facts_are_those_of_the_results(models, finished_run, drawings):
    facts = read_facts(finished_run, models)
    results = json.loads((finished_run / "results.json").read_text())
    assert (facts.name, facts.dataset) == (finished_run.name, drawings.name)
    assert len(facts.date) == len("2026-01-31")
    for role, model in facts.models.items():
        assert model.accuracies[-1] == pytest.approx(results[role]["average_accuracy"])
        assert model.parameters == results[role]["parameters"] and model.has_probabilities
    assert facts.models["student"].learned == "CODA-Prompt prompts, distilled with KDP"
    assert facts.models["student"].classifier == "trained head, combined with that of its KD tokens"
    assert facts.models["teacher"].learned == "CODA-Prompt prompts"


def test_a_damaged_checkpoint_spoils_no_later_prediction(finished_run, pixels, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    models = RunModels(tmp_path / "run")
    last = models.predict(pixels, 2)
    damaged = tmp_path / "run" / "states" / "student" / "task_000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="damaged"):
        models.predict(pixels, 0)
    assert models.predict(pixels, 2) == last


@pytest.mark.parametrize("content", ["", "[]", "x", "{", "dataset: a", "\0", "!!python/object/apply:os.getcwd []"])
def test_damaged_arguments_are_reported(finished_run, tmp_path, content):
    for role in ("teacher", "student"):
        (tmp_path / role).symlink_to(finished_run / role)
    (tmp_path / "args.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"^[^\n]*args.yaml is damaged: [^\n]*$"):
        RunModels(tmp_path)
