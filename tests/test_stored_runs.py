"""What version 0.1.0 has left, in the folder beside this file, is loaded, resumed and taken as a teacher."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification

import cdl_hf  # noqa: F401

STORED = Path(__file__).parent / "version_0_1_0"
ROLES = ("teacher", "student")


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A copy of the folder, which is the current one: the runs name their data and backbones from it."""
    folder = tmp_path / "runs"
    shutil.copytree(STORED, folder)
    monkeypatch.chdir(folder)
    return folder


def matrices(results: Path) -> dict[str, list]:
    content = json.loads(results.read_text())
    return {role: content[role]["accuracy_matrix"] for role in ROLES}


def test_a_stopped_run_ends_as_it_would_have(runs, train):
    train("--output_dir", "stopped", "--resume")
    ours, theirs = (matrices(runs / name) for name in ("stopped/results.json", "whole_results.json"))
    assert ours["teacher"] == theirs["teacher"] and ours["student"][:2] == theirs["student"][:2]
    ours, theirs = (
        AutoModelForImageClassification.from_pretrained(runs / name) for name in ("stopped/student", "whole_student")
    )
    assert theirs.logit_scale == 1  # of the probabilities, which had none
    ours = ours.state_dict()
    for name, trained in theirs.state_dict().items():
        if "classifier" not in name and name != "logit_scale":  # computed with a ridge below rounding then
            assert torch.allclose(ours[name], trained, atol=1e-5), name


def test_a_finished_run_writes_its_results_again(runs, train, capsys):
    before = matrices(runs / "finished" / "results.json")
    (runs / "finished" / "results.json").unlink()
    train("--output_dir", "finished", "--resume")
    assert matrices(runs / "finished" / "results.json") == before
    assert "Resuming" not in capsys.readouterr().out  # nothing was left to train


def test_its_teacher_and_cached_outputs_serve_further_students(runs, train):
    given = "--dataset drawings --teacher teacher_backbone --student student_backbone --num_tasks 3 --pool_size 6"
    given += " --prompt_length 4 --prompt_blocks 0 1 --num_epochs 2 --batch_size 4 --learning_rate 0.01"
    given += " --head linear --ranpac_width 32 --classifier_alignment --stages student --teacher_from finished"
    given += " --output_dir again"
    train(*given.split())  # with the names that its flags had then
    assert matrices(runs / "again" / "results.json") == matrices(runs / "finished" / "results.json")
