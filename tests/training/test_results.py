"""What a run prints at its end."""

import json
import shlex

import pytest
import yaml
from tiny_models import tiny_model

from cdl_hf.arguments.config import RUN
from cdl_hf.cli import parse, to_dict
from cdl_hf.data import open_image
from cdl_hf.training.results import next_steps, table


@pytest.mark.parametrize("changed", [{}, {"cache_teacher_outputs": True}, {"schedule": "same_step"}])
def test_the_command_for_another_classifier_is_one_that_train_takes(finished_run, tmp_path, changed):
    results = json.loads((finished_run / "results.json").read_text())
    args = yaml.safe_load((finished_run / "args.yaml").read_text()) | changed
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "args.yaml").write_text(yaml.safe_dump(args))
    (line,) = (line for line in next_steps(results, tmp_path / "a run", []).splitlines() if "cdl-hf train" in line)
    words = shlex.split(line, comments=True)
    found = to_dict(parse(RUN, words[2:]))
    assert found["classifier"] == "ranpac" and found["student_run"] == str(tmp_path / "a run")
    assert found["output_dir"] is None and found["stages"] == "student"


def test_models_of_drawings_are_shown_a_drawing_to_predict(finished_run):
    results = json.loads((finished_run / "results.json").read_text())
    results["args"]["dataset"] = "quickdraw100"
    (line,) = (line for line in next_steps(results, finished_run, []).splitlines() if "cdl-hf predict" in line)
    assert open_image(shlex.split(line)[-1]).size == (28, 28)


LEARNERS = {
    "linear": lambda: tiny_model("l2p"),
    "ncm": lambda: tiny_model("none", head="ncm"),
    "ranpac": lambda: tiny_model("none", head="ranpac"),
    "fisher": lambda: tiny_model("lora", lora_merging="fisher"),
}


@pytest.mark.parametrize(
    ("learner", "changed", "can_learn"),
    [
        ("linear", {}, True),
        ("linear", {"classifier_alignment": True}, False),
        ("ncm", {}, True),
        ("ranpac", {}, False),
        ("ranpac", {"save_statistics": True}, True),
        ("fisher", {}, False),
        ("fisher", {"save_statistics": True}, True),
    ],
)
def test_further_classes_are_offered_to_a_run_that_can_learn_them(finished_run, learner, changed, can_learn):
    results = json.loads((finished_run / "results.json").read_text())
    results["args"] |= changed
    assert ("cdl-hf learn" in next_steps(results, finished_run, [LEARNERS[learner]()])) is can_learn


def test_further_classes_are_not_offered_where_a_pool_cannot_grow(finished_run):
    results = json.loads((finished_run / "results.json").read_text())
    grows, full = (tiny_model("coda_prompt", tasks=3, pool_size=size) for size in (6, 30))
    grows.add_classes(["new"])
    with pytest.raises(ValueError, match="pool cannot grow"):
        full.add_classes(["new"])
    assert "cdl-hf learn" in next_steps(results, finished_run, [grows])
    assert "cdl-hf learn" not in next_steps(results, finished_run, [grows, full])


@pytest.mark.parametrize("changed", [{"classifier_alignment": True}, {"push_to_hub": True}, {"classifier": "ncm"}])
def test_no_other_classifier_is_offered_where_it_would_be_refused_or_pushed(finished_run, changed):
    results = json.loads((finished_run / "results.json").read_text())
    results["args"] |= changed
    assert "cdl-hf train" not in next_steps(results, finished_run, [])


def test_the_table_compares_with_guessing_and_the_frozen_backbone(finished_run):
    results = json.loads((finished_run / "results.json").read_text())
    shown = table(results)
    assert "guessing" in shown and "16.67" in shown and "RanPAC on the frozen backbone" in shown
    del results["baseline"]
    assert "guessing" not in table(results)
