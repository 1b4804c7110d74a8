"""A teacher that has seen all classes at once, and students that learn them task by task."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import arguments, assert_same_run, run_recipe

from cdl_hf.models import PromptViTForImageClassification
from cdl_hf.runs.task_checkpoints import TaskCheckpointReplay
from cdl_hf.training import trainer as trainer_module

AT_ONCE = ("--num_tasks", "1", "--num_train_epochs", "1")


def test_a_teacher_with_the_query_of_another_block_is_refused():
    theirs = {"stream": {}, "networks": [], "train_tasks": None, "query_block": 0, "head": {"aligned": False}}
    checkpoints = SimpleNamespace(
        role="teacher",
        run="runs/a",
        is_joint=lambda stream: False,
        metadata=lambda _: theirs,
        has_prompts=lambda: False,
    )
    with pytest.raises(
        ValueError, match="another query network: pass the same --teacher, --student and --query_block"
    ):
        TaskCheckpointReplay(checkpoints, torch.nn.Module(), {**theirs, "query_block": 1})


@pytest.fixture(scope="module")
def at_once(pair, drawings, tmp_path_factory):
    """A run of both models on one task of all six classes."""
    folder = tmp_path_factory.mktemp("at_once") / "run"
    run_recipe("train", *arguments(pair, drawings), *AT_ONCE, "--output_dir", folder)
    return folder


@pytest.mark.parametrize("prompt_method", ["coda_prompt", "dualprompt", "apt", "lora"])
def test_it_stays_as_it_is(train, command, at_once, tmp_path, capsys, prompt_method):
    command = [*command, "--prompt_method", prompt_method, "--num_train_epochs", "1"]
    if prompt_method != "coda_prompt":
        at_once = tmp_path / "at_once"
        train(*command, *AT_ONCE, "--stages", "teacher", "--output_dir", at_once)
    train(*command, "--stages", "student", "--teacher_run", at_once, "--output_dir", tmp_path / "run")
    before, after = (load_file(run / "teacher" / "model.safetensors") for run in (at_once, tmp_path / "run"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["teacher"]["num_tasks"], results["student"]["num_tasks"]) == (1, 3)
    rows = results["teacher"]["accuracy_matrix"]  # all classes compete from the start, so that no row differs
    assert all(row == rows[2][: len(row)] for row in rows)
    alone = json.loads((at_once / "results.json").read_text())["teacher"]
    assert alone["average_accuracy"] == pytest.approx(results["teacher"]["average_accuracy"])
    teacher = PromptViTForImageClassification.from_pretrained(tmp_path / "run" / "teacher")
    assert teacher(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 6)
    run_recipe("evaluate_run", tmp_path / "run")
    assert "3  class_4, class_5" in capsys.readouterr().out  # by the student's tasks


def test_its_student_follows_it_and_resumes_to_the_same_end(train, command, at_once, tmp_path, monkeypatch):
    command = [*command, "--distillation", "kd", "--save_steps", "2"]
    train(*command, "--output_dir", tmp_path / "along")
    command += ["--stages", "student", "--teacher_run", at_once]
    train(*command, "--output_dir", tmp_path / "whole")
    along, whole = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("along", "whole"))
    assert along.keys() == whole.keys() and not torch.equal(along["head.weight"], whole["head.weight"])

    save, saved = trainer_module.save_checkpoint, []

    def kill_in_the_second_task(*args):
        save(*args)
        saved.append(args)
        if len(saved) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module, "save_checkpoint", kill_in_the_second_task)
    with pytest.raises(SystemExit):
        train(*command, "--output_dir", tmp_path / "killed")
    assert not (tmp_path / "killed" / "results.json").exists()
    monkeypatch.setattr(trainer_module, "save_checkpoint", save)
    train(*command, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_dry_run_knows_it(train, command, at_once, capsys):
    train("--dry_run", *command, "--stages", "student", "--teacher_run", at_once)
    assert "evaluating" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--distillation", "cdl_prompt"], "trained task by task"),
        (["--classifier", "ncm"], "use its --classifier"),
        (["--class_order", "5,4,3,2,1,0"], "another stream"),
        (["--max_samples_per_class", "5"], "another stream"),
    ],
)
def test_what_does_not_go_with_it(train, command, at_once, tmp_path, capsys, change, message):
    with pytest.raises(SystemExit) as stop:
        train(
            *(*command, "--stages", "student", "--teacher_run", at_once),
            *(*change, "--output_dir", tmp_path / "run"),
        )
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_student_of_all_classes_is_none_of_a_stream(train, command, at_once, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(
            *(*command, "--stages", "student", "--student_run", at_once),
            *("--classifier", "ncm", "--output_dir", tmp_path / "run"),
        )
    assert stop.value.code == 2 and "another stream" in capsys.readouterr().err


def test_the_teacher_of_a_run_gets_another_classifier(train, command, finished_run, tmp_path):
    """Nothing is trained, so that the teacher is the only model."""
    given = ("--stages", "teacher", "--teacher_run", finished_run, "--classifier", "ncm")
    train(*command, *given, "--output_dir", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["teacher"]["classifier_values"] > 0 and "student" not in results
    ours, theirs = (load_file(folder / "teacher" / "model.safetensors") for folder in (tmp_path / "run", finished_run))
    prompts = [name for name in theirs if name.startswith("prompt_pool.")]
    assert prompts and all(torch.equal(ours[name], theirs[name]) for name in prompts)
