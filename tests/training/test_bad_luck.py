"""What is nobody's fault stops a run in one sentence; what it has saved is whole, and it goes on to the same end."""

import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same_run, metrics_without_times

from cdl_hf.distillation import TrainingObjective
from cdl_hf.runs import checkpointing


@pytest.fixture
def stopped(train, capsys):
    """Runs recipes/train.py, which must stop with code 1; the one line that says why."""

    def run(*arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train(*arguments)
        assert stop.value.code == 1
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("Stopped: ")
        return message

    return run


def fail_in_calls(monkeypatch, function, fails) -> None:
    """Lets the n-th call of an objective's `forward`, counted from 1, go through `function` if `fails(n, images)`."""
    forward, calls = TrainingObjective.forward, itertools.count(1)

    def failing(self, pixel_values, labels, **known):
        output = forward(self, pixel_values, labels, **known)
        return function(output) if fails(next(calls), len(pixel_values)) else output

    monkeypatch.setattr(TrainingObjective, "forward", failing)


def not_finite(output):
    return {**output, "loss": output["loss"] * torch.nan}


def out_of_memory(output):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("parts", [1, 2])
def test_loss_that_is_not_finite_stops_the_run_before_the_step(train, stopped, command, tmp_path, monkeypatch, parts):
    command = [*command, "--stages", "teacher", "--gradient_accumulation_steps", parts]
    train(*command, "--output_dir", tmp_path / "whole")
    with monkeypatch.context() as patch:
        # 3 steps an epoch, 2 epochs a task: step 8 is the second task's second
        fail_in_calls(patch, not_finite, lambda call, images: call == 8 * parts)
        message = stopped(*command, "--output_dir", tmp_path / "run")
    for told in ("teacher's loss", "task 2/3", "epoch 1, step 2", "learning rate 0.01", "--learning_rate"):
        assert told in message
    assert str(tmp_path / "run" / "checkpoints") in message
    train(*command, "--output_dir", tmp_path / "run", "--resume_from_checkpoint")
    assert metrics_without_times(tmp_path / "run") == metrics_without_times(tmp_path / "whole")


def test_student_whose_loss_is_not_finite_leaves_the_checkpoint_before_its_teachers_step(
    train, stopped, command, tmp_path, monkeypatch
):
    command = [*command, "--schedule", "same_step", "--distillation", "none"]
    train(*command, "--output_dir", tmp_path / "whole")
    with monkeypatch.context() as patch:
        # teacher and student in turn: call 16 is the student's of the second task's second step
        fail_in_calls(patch, not_finite, lambda call, images: call == 16)
        message = stopped(*command, "--output_dir", tmp_path / "run")
    assert "student's loss" in message and "task 2/3" in message and "epoch 1, step 2" in message
    saved = checkpointing.load_newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert saved["task"] == 1 and saved["state"] is None  # the teacher alone has taken the second step
    train(*command, "--output_dir", tmp_path / "run", "--resume_from_checkpoint")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_full_disk_stops_the_run_and_keeps_what_it_saved(train, stopped, command, tmp_path, monkeypatch):
    command = [*command, "--num_train_epochs", 1]
    train(*command, "--output_dir", tmp_path / "whole")
    write, written = Path.write_bytes, itertools.count(1)

    def fill_up(path, content):
        if path.name == "state.pt" and next(written) >= 3:  # the third checkpoint is cut short
            write(path, bytes(content[:100]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill_up)
        message = stopped(*command, "--output_dir", tmp_path / "run")
    assert "No space left on device" in message and "--resume_from_checkpoint" in message
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2
    train(*command, "--output_dir", tmp_path / "run", "--resume_from_checkpoint")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_full_memory_is_told_with_the_batch_to_try_next(train, stopped, command, tmp_path, monkeypatch):
    command = [*command, "--stages", "teacher", "--output_dir", tmp_path / "run"]
    with monkeypatch.context() as patch:
        fail_in_calls(patch, out_of_memory, lambda call, images: call > 10 and images > 2)
        message = stopped(*command, "--save_steps", 5)
        for told in (
            "task 2/3 teacher",
            "4 images at a time",
            "--gradient_accumulation_steps 2",
            "--auto_find_batch_size",
        ):
            assert told in message
        train(*command, "--resume_from_checkpoint", "--gradient_accumulation_steps", 2)
        assert (tmp_path / "run" / "results.json").exists()
    message = stopped_in_evaluation(monkeypatch, stopped, command, tmp_path)
    assert "evaluation after task 1" in message and "--eval_batch_size" in message


def stopped_in_evaluation(monkeypatch, stopped, command, tmp_path) -> str:
    from cdl_hf.training import trainer

    class Evaluator:
        def __init__(self, *settings):
            pass

        def __call__(self, models, tasks, **options):
            out_of_memory(None)

    monkeypatch.setattr(trainer, "Evaluator", Evaluator)
    return stopped(*command, "--output_dir", tmp_path / "other")


def test_auto_batch_size_keeps_the_batch_and_computes_it_in_parts(train, stopped, command, tmp_path, monkeypatch):
    command = [*command, "--stages", "teacher", "--num_train_epochs", 1]
    train(*command, "--output_dir", tmp_path / "plenty")
    command += ["--auto_find_batch_size", "--output_dir", tmp_path / "run"]
    train(*command)  # where there is room, trying leaves no trace
    assert metrics_without_times(tmp_path / "run") == metrics_without_times(tmp_path / "plenty")
    command += ["--overwrite_output_dir"]
    with monkeypatch.context() as patch:
        fail_in_calls(patch, out_of_memory, lambda call, images: images > 1)
        train(*command)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["gradient_accumulation_steps"] == {"teacher": 4}
    for one, other in zip(*map(metrics_without_times, (tmp_path / "plenty", tmp_path / "run")), strict=True):
        if one["event"] == "epoch":
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    with monkeypatch.context() as patch:
        fail_in_calls(patch, out_of_memory, lambda call, images: True)
        assert "not even one image" in stopped(*command)


def test_an_image_that_goes_during_the_run_is_named(stopped, command, drawings, tmp_path, monkeypatch):
    images = tmp_path / "drawings"
    shutil.copytree(drawings, images)
    evaluated = TrainingObjective.eval

    def remove(self):  # between the first stage and the second
        (images / "train" / "class_1" / "0.png").unlink(missing_ok=True)
        return evaluated(self)

    monkeypatch.setattr(TrainingObjective, "eval", remove)
    message = stopped(*command, "--dataset", images, "--output_dir", tmp_path / "run")
    assert "class_1/0.png" in message and "--resume_from_checkpoint" in message


def test_token_is_in_no_file_and_in_no_message(train, command, tmp_path, monkeypatch, capsys):
    token = "hf_" + "NeverWriteThisToken".ljust(34, "x")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, token)
    train(*command, "--num_train_epochs", 1, "--output_dir", tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in files if token.encode() in path.read_bytes()]
    printed = capsys.readouterr()
    assert token not in printed.out + printed.err
