"""A run's folder: who may work in it, what may be removed from it, and what it says of itself."""

import errno
import json
import multiprocessing
import os
import signal
from datetime import datetime
from pathlib import Path

import pytest

from cdl_hf.runs import folder as run_folder
from cdl_hf.runs import lock as run_lock
from cdl_hf.runs.folder import RunFolder
from cdl_hf.runs.lock import FolderInUse, RunLock

FORK = multiprocessing.get_context("fork")
ARGUMENTS = "prompt_method: apt\ndistillation: kd\n"


def hold(folder: Path, channel) -> None:
    RunLock(folder).acquire()
    wait(channel)


def wait(channel) -> None:
    channel.send("begun")
    signal.pause()


@pytest.fixture
def another_process():
    """Another process that is at work in a folder, until it is killed."""
    started = []

    def work_in(folder: Path):
        here, there = FORK.Pipe()
        process = FORK.Process(target=hold, args=(folder, there))
        process.start()
        started.append(process)
        assert here.recv() == "begun"
        return process

    yield work_in
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(RunLock.acquire, "__defaults__", (0.0,))


def begin(path: Path, **how) -> RunFolder:
    return RunFolder.open(str(path), "run", **how).create()


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of an earlier run."""
    with begin(tmp_path / "run") as folder:
        folder.write_arguments({"command_line": []}, ARGUMENTS)
    return folder.path


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {run_lock.NAME}


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_a_folder_in_which_a_run_is_at_work_is_refused_until_its_end(run, another_process, how):
    other = another_process(run)
    with pytest.raises(ValueError, match=f"{run} is in use: another run .process {other.pid} on .* is at work"):
        RunFolder.open(str(run), "run", **{how: True})
    assert contents(run) == {"args.yaml", "args_given.json"}
    assert RunLock(run).is_taken()
    other.kill()
    other.join()  # the kernel has released the lock; its file is still there
    assert (run / run_lock.NAME).is_file() and not RunLock(run).is_taken()
    RunFolder.open(str(run), "run", **{how: True}).close()


def test_of_two_that_begin_in_one_new_folder_one_is_refused(tmp_path, another_process):
    folder = RunFolder.open(str(tmp_path / "run"), "run")
    (tmp_path / "run").mkdir()
    another_process(tmp_path / "run")
    with pytest.raises(ValueError, match="in use"):
        folder.create()


def test_one_that_has_come_and_gone_between_open_and_create_is_not_mixed_with(tmp_path):
    folder = RunFolder.open(str(tmp_path / "run"), "run")
    with begin(tmp_path / "run") as faster:
        faster.write_results({})
    with pytest.raises(ValueError, match="another run was faster"):
        folder.create()


def test_default_folders_of_one_moment_differ(tmp_path, monkeypatch):
    class Now:
        @staticmethod
        def now():
            return datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder, "datetime", Now)
    folders = [RunFolder.open(None, "data-apt-kd-seed7") for _ in range(8)]
    for folder in folders:
        folder.create().close()
    assert len(list((tmp_path / "runs").iterdir())) == 8
    assert all("seed7-20260102-030405" in folder.path.name for folder in folders)
    with pytest.raises(ValueError, match="is there already"):
        RunFolder(folders[0].path, is_new=True).create()


def test_a_worker_that_outlives_its_run_does_not_keep_the_lock(run):
    with RunFolder.open(str(run), "run", resume=True):
        here, there = FORK.Pipe()
        worker = FORK.Process(target=wait, args=(there,))
        worker.start()
        here.recv()
    try:
        descriptor = os.open(run / run_lock.NAME, os.O_RDWR)
        run_lock._lock(descriptor)
        os.close(descriptor)
    finally:
        worker.kill()
        worker.join()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_a_run_says_so_and_goes_on(tmp_path, monkeypatch, code):
    def lacking(descriptor):
        raise OSError(code, "no locks")

    monkeypatch.setattr(run_lock, "_lock", lacking)
    with pytest.warns(UserWarning, match="has no locks"):
        begin(tmp_path / "run")
    with pytest.warns(UserWarning, match="has no locks"):
        assert not RunLock(tmp_path / "run").is_taken()


def test_a_lock_file_that_was_removed_in_between_is_made_anew(run, monkeypatch):
    locked = run_lock._lock
    removed = []

    def lock(descriptor):
        locked(descriptor)
        if not removed:
            removed.append((run / run_lock.NAME).unlink())

    monkeypatch.setattr(run_lock, "_lock", lock)
    RunLock(run).acquire()
    assert (run / run_lock.NAME).is_file()
    RunLock(run).release()


def test_the_lock_alone_does_not_fill_a_folder(tmp_path):
    begin(tmp_path / "run").close()
    (tmp_path / "run" / ".DS_Store").touch()
    begin(tmp_path / "run").close()
    begin(tmp_path / "run", overwrite=True).close()


@pytest.mark.parametrize(
    "files", [["student/thesis.tex"], ["logs/run.txt", "results.json"], ["args.yaml", "states/a"]]
)
def test_what_was_never_a_runs_is_not_overwritten(tmp_path, files):
    for name in files:
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / name).write_text("epochs: 3")
    before = contents(tmp_path)
    for _ in range(2):  # what is refused does not become a run's
        with pytest.raises(ValueError, match="was never a run's"):
            begin(tmp_path / "work", overwrite=True)
        with pytest.raises(ValueError, match="nothing to resume"):
            begin(tmp_path / "work", resume=True)
    assert contents(tmp_path) == before and not (tmp_path / "work" / run_lock.NAME).exists()


def test_checkpoints_of_another_program_are_no_sign_of_a_run(tmp_path):
    (tmp_path / "work" / "checkpoints" / "last").mkdir(parents=True)
    (tmp_path / "work" / "checkpoints" / "last" / "state.pt").touch()
    for options in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match="never a run's|nothing to resume"):
            begin(tmp_path / "work", **options)
    assert (tmp_path / "work" / "checkpoints" / "last" / "state.pt").exists()


@pytest.mark.parametrize("sign", ["args.yaml", "results.json", "checkpoints/000000000012/state.pt"])
def test_runs_of_earlier_versions_are_overwritten(tmp_path, sign):
    folder = tmp_path / "run"
    for name in (sign, "student/model.safetensors", ".results.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(ARGUMENTS if name == "args.yaml" else '{"prompt_method": 1, "distillation": 2}')
    begin(folder, overwrite=True).close()
    assert contents(folder) == set()


def test_what_a_link_leads_to_is_not_removed(run, tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "large disk" / "mine").touch()
    (run / "checkpoints").symlink_to(tmp_path / "large disk")
    begin(run, overwrite=True).close()
    assert (tmp_path / "large disk" / "mine").exists() and contents(run) == set()


def test_a_resumed_run_keeps_the_arguments_as_they_were_given_first(run):
    with begin(run, resume=True) as folder:
        folder.write_arguments({"command_line": ["--resume_from_checkpoint"]}, ARGUMENTS + "seed: 1\n")
        assert folder.given() == {"command_line": []} and "seed" in (run / "args.yaml").read_text()


@pytest.mark.parametrize("record", ["", '{"command_line": ["--se', "[]", '{"commaod_line": []}', "\0" * 20])
def test_a_damaged_record_of_the_command_is_told_and_replaced(run, record):
    (run / "args_given.json").write_text(record)
    with begin(run, resume=True) as folder:
        with pytest.warns(UserWarning, match="args_given.json is damaged"):
            folder.write_arguments({"command_line": ["--resume_from_checkpoint"]}, ARGUMENTS)
        assert folder.given() == {"command_line": ["--resume_from_checkpoint"]}


def test_a_lock_that_cannot_be_signed_is_a_lock(run, monkeypatch, another_process):
    """On a full disk; and it is given back."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert not RunLock(run).is_taken()
        RunLock(run).acquire()
    RunLock(run).release()
    another_process(run)
    assert RunLock(run).is_taken()


def test_metrics_are_cut_to_what_a_checkpoint_remembers(run):
    folder = begin(run, resume=True)
    folder.log(a=1)
    length = folder.logged_bytes()
    folder.log(a=2)
    folder.cut_log(length)
    assert (run / "metrics.jsonl").read_text() == '{"a": 1}\n'


@pytest.mark.parametrize("left", [0, 9, 13])
def test_metrics_that_are_too_short_are_not_filled_with_zeros(run, left):
    folder = begin(run, resume=True)
    folder.log(a=1)
    folder.log(a=2)
    length = folder.logged_bytes()
    os.truncate(run / "metrics.jsonl", left)
    with pytest.warns(UserWarning, match=f"is {length - left} bytes shorter"):
        folder.cut_log(length)
    folder.log(a=3)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"a": 1}] * (left > 0) + [{"a": 3}]


def test_a_lock_is_taken_once_in_a_process_and_by_one_process(run, another_process):
    RunLock(run).acquire()
    RunLock(run).acquire()
    RunLock(run).release()
    another_process(run)
    with pytest.raises(FolderInUse):
        RunLock(run).acquire()
