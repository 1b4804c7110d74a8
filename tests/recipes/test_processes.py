"""recipes/train.py in two processes that torchrun starts: one result, one set of files, one end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import assert_same_run

from cdl_hf.training.checkpointing import load_newest_checkpoint

ROOT = Path(__file__).parents[2]
MINUTE = 60
pytestmark = pytest.mark.slow


@pytest.fixture
def start():
    """Starts recipes/train.py in so many processes; none outlives the test."""
    started = []

    def run(processes: int, *arguments, **environment: str) -> subprocess.Popen:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        process = subprocess.Popen(
            [*launcher, ROOT / "recipes" / "train.py", *map(str, arguments)],
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def read(folder: Path) -> tuple[list[dict], dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((folder / "results.json").read_text())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "extra", [[], ["--store_answers", "--head", "ranpac", "--ranpac_width", "24"]], ids=["linear", "ranpac"]
)
def test_two_processes_learn_what_one_does(start, command, tmp_path, extra):
    """Two tasks of 9 training and 9 test images: neither divides by the batch, nor the last batch by the processes.

    An epoch is one step of 8 images, so that the losses are those of the steps.
    """
    command = [*command, "--num_tasks", "2", "--max_samples_per_class", "3", "--batch_size", "8"]
    command += ["--num_epochs", "4", "--eval_batch_size", "6", *extra]
    for processes in (1, 2):
        process = start(processes, *command, "--output_dir", tmp_path / str(processes))
        _, err = process.communicate()
        assert process.returncode == 0, err
    (one, results), (two, other_results) = (read(tmp_path / name) for name in ("1", "2"))
    assert [line["event"] for line in one] == [line["event"] for line in two] == (["epoch"] * 8 + ["evaluation"]) * 2
    for a, b in zip(one, two, strict=True):
        if a["event"] == "epoch":
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    for role in ("teacher", "student"):
        assert results["stream"]["test"] == [9, 9]
        assert results[role]["accuracy_matrix"] == other_results[role]["accuracy_matrix"]
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_backbones_in_shards_give_the_same_run(start, command, tmp_path):
    """As accelerate_configs/fsdp.yaml asks for it."""

    def run(name: str, *more: str, **environment: str) -> None:
        process = start(2, *command, "--output_dir", tmp_path / name, *more, **environment)
        _, err = process.communicate()
        assert process.returncode == 0, err

    command = [*command, "--num_tasks", "2", "--num_epochs", "1", "--classifier_alignment"]
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    run("whole")
    run("shards", **fsdp)
    (whole, results), (shards, other_results) = (read(tmp_path / name) for name in ("whole", "shards"))
    assert len(whole) == len(shards) == 6
    for a, b in zip(whole, shards, strict=True):
        if a["event"] == "epoch":
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    for role in ("teacher", "student"):
        assert results[role]["accuracy_matrix"] == other_results[role]["accuracy_matrix"]
        assert results[role]["parameters"] == other_results[role]["parameters"]
        ours, theirs = (load_file(tmp_path / name / role / "model.safetensors") for name in ("whole", "shards"))
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
    ours, theirs = (files(tmp_path / name) for name in ("whole", "shards"))
    assert ours == theirs

    shutil.copytree(tmp_path / "shards", tmp_path / "resumed")
    for name in (max((tmp_path / "resumed" / "checkpoints").iterdir()), "teacher", "student"):
        shutil.rmtree(tmp_path / "resumed" / name)
    run("resumed", "--resume", **fsdp)  # from between the last task's stages
    assert_same_run(tmp_path / "shards", tmp_path / "resumed")
    assert files(tmp_path / "resumed") == theirs


def test_mistake_that_one_process_meets_ends_all_and_is_told_once(start, command, tmp_path):
    (tmp_path / "file").write_text("mine")
    process = start(2, *command, "--output_dir", tmp_path / "file" / "run")
    _, err = process.communicate(timeout=MINUTE)
    assert process.returncode != 0
    told = [line for line in err.splitlines() if line.startswith("train.py: error: ")]
    assert len(told) == 1 and "cannot be written to" in told[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_process_that_dies_ends_the_others_with_the_cause(start, command, tmp_path, rank):
    process = start(2, *command, "--num_epochs", "5000", "--checkpoint_every", "5", "--output_dir", tmp_path / "run")
    while not list((tmp_path / "run" / "checkpoints").glob("[0-9]*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[rank]), signal.SIGKILL)
    _, err = process.communicate(timeout=MINUTE)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in err  # torchrun's word
    assert "Stopped: another process of this run has ended" in err and "--resume" in err
    assert "recipes/train.py" not in "".join(line for line in err.splitlines() if line.startswith("  File"))
    assert load_newest_checkpoint(tmp_path / "run" / "checkpoints")["steps"] >= 5
