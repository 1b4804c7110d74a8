"""Resuming and overwriting on the command line, a run's own args.yaml, and the damage that is noticed."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_runs import assert_same_run, metrics_without_times

from cdl_hf.runs.checkpointing import save_checkpoint
from cdl_hf.runs.interruptions import Stopped
from cdl_hf.runs.lock import RunLock
from cdl_hf.training import trainer as trainer_module

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """Nothing may catch it."""


@pytest.fixture
def refused(train, capsys):
    """Runs recipes/train.py, which must refuse; its sentence."""

    def run(*arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train(*arguments)
        assert stop.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run


@pytest.fixture
def copied_run(finished_run, tmp_path) -> Path:
    """A finished run of its own."""
    return shutil.copytree(finished_run, tmp_path / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "bit":
        content[len(content) // 2] ^= 1
    path.write_bytes(content if kind == "bit" else b"" if kind == "emptied" else content[:-7])


def test_the_hint_after_a_stop_works_as_printed(train, command, finished_run, tmp_path, monkeypatch, capsys):
    """Whatever the run's arguments were, and whatever its folder is called."""
    folder = tmp_path / "my run"
    saved = []

    def save_and_stop(*args):
        save_checkpoint(*args)
        saved.append(args[1])
        if len(saved) == 3:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "save_checkpoint", save_and_stop)
        with pytest.raises(SystemExit) as stop:
            train(*command, "--output_dir", folder)
    assert stop.value.code == os.EX_TEMPFAIL
    hint = capsys.readouterr().err.partition("resume with ")[2].strip().removesuffix(".")
    train(*shlex.split(hint))
    assert "Resuming in task" in capsys.readouterr().out
    assert_same_run(finished_run, folder)
    assert yaml.safe_load((folder / "args.yaml").read_text())["num_tasks"] == 3
    card = (folder / "student" / "README.md").read_text()
    assert (
        "--learning_rate 0.01" in card and "--resume_from_checkpoint" not in card
    )  # the command that makes the model


def test_a_runs_args_yaml_says_nothing_of_the_call(command, refused, copied_run):
    record = copied_run / "args.yaml"
    assert not {"overwrite", "resume", "dry_run"} & yaml.safe_load(record.read_text()).keys()
    record.write_text(record.read_text() + "overwrite: true\nresume: false\ndry_run: true\n")  # of an earlier version
    before = files(copied_run)
    copy = shutil.copy(record, copied_run.parent / "mine.yaml")
    for config in (record, copy):
        assert "is not empty" in refused("--config", config, "--seed", "1", "--output_dir", copied_run)
    assert files(copied_run) == before


@pytest.mark.parametrize("kind", ["emptied", "cut", "bit"])
def test_damaged_states_are_named_on_resume_and_by_students(command, refused, copied_run, kind):
    path = copied_run / "states" / "teacher" / "task_001.safetensors"
    damage(path, kind)
    before = files(copied_run)
    assert f"{path} is damaged" in refused("--output_dir", copied_run, "--resume_from_checkpoint")
    student = ["--stages", "student", "--teacher_run", copied_run, "--output_dir", copied_run.parent / "student"]
    message = refused(*command, *student)
    assert "task_001.safetensors" in message and "is damaged" in message
    assert files(copied_run) == before and not (copied_run.parent / "student").exists()


def test_with_no_whole_checkpoint_nothing_is_started_over(refused, copied_run):
    for path in (copied_run / "checkpoints").glob("*/state.pt"):
        damage(path, "cut")
    before = files(copied_run)
    with pytest.warns(UserWarning, match="damaged"):
        message = refused("--output_dir", copied_run, "--resume_from_checkpoint")
    assert "no checkpoint in" in message and "--overwrite_output_dir" in message
    assert files(copied_run) == before


def test_a_finished_run_without_checkpoints_keeps_its_metrics(refused, copied_run):
    shutil.rmtree(copied_run / "checkpoints")
    before = files(copied_run)
    assert "is finished, and its checkpoints are gone" in refused(
        "--output_dir", copied_run, "--resume_from_checkpoint"
    )
    assert files(copied_run) == before


def test_results_come_last(train, command, finished_run, tmp_path, monkeypatch):
    """A run that ends while it writes its models or their cards is not finished, and goes on to the same end."""
    from cdl_hf.runs import model_card

    def killed(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(model_card, "complete_model_folder", killed)
        with pytest.raises(Killed):
            train(*command, "--output_dir", tmp_path / "run")
    assert (tmp_path / "run" / "accuracy.png").is_file() and not (tmp_path / "run" / "results.json").exists()
    train("--output_dir", tmp_path / "run", "--resume_from_checkpoint")
    assert_same_run(finished_run, tmp_path / "run")
    mask = os.umask(0)
    os.umask(mask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o666 & ~mask}
    assert modes["model.safetensors"] == modes["results.json"]


def test_a_home_folder_is_put_in_everywhere(train, command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "mine.yaml"
    config.write_text("output_dir: ~/run\nstages: teacher\nnum_epochs: 1\ndistillation: none\n")
    train(
        *command,
        "--config",
        "~/mine.yaml",
        "--prompt_method",
        "none",
        "--num_train_epochs",
        "0",
        "--classifier",
        "ncm",
    )
    assert (tmp_path / "run" / "results.json").is_file()
    assert yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())["output_dir"] == str(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--resume_from_checkpoint", "--overwrite_output_dir"])
def test_a_run_that_is_under_way_is_left_alone_until_it_is_killed(command, tmp_path, how):
    run = [sys.executable, ROOT / "recipes" / "train.py", *command, "--output_dir", tmp_path / "run"]
    with subprocess.Popen([*run, "--num_train_epochs", "500", "--dataloader_num_workers", "1"]) as process:
        try:
            while not metrics(tmp_path / "run"):
                assert process.poll() is None
            other = subprocess.run([*run, how], capture_output=True, text=True)
            assert other.returncode == 2 and f"another run (process {process.pid} on " in other.stderr
            assert process.poll() is None
        finally:
            process.kill()
    assert not RunLock(tmp_path / "run").is_taken()
    more = (
        ["--overwrite_output_dir", "--num_train_epochs", "1"]
        if how == "--overwrite_output_dir"
        else ["--resume_from_checkpoint", "--dry_run"]
    )
    assert subprocess.run([*run, *more]).returncode == 0


def metrics(folder: Path) -> list[dict]:
    return metrics_without_times(folder) if (folder / "metrics.jsonl").is_file() else []
