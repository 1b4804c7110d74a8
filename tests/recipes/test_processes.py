"""recipes/train.py in the processes that launchers start: one result, one set of files, one end."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import assert_same_run

from cdl_hf.runs.checkpointing import load_newest_checkpoint

ROOT = Path(__file__).parents[2]
MINUTE = 60
pytestmark = pytest.mark.slow


@pytest.fixture
def start():
    """Starts a script, by default recipes/train.py, in so many processes; none outlives the test."""
    started = []

    def run(processes: int, *arguments, script: Path = ROOT / "recipes" / "train.py") -> subprocess.Popen:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        process = subprocess.Popen(
            [*launcher, script, *map(str, arguments)],
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
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


@pytest.fixture
def start_runs(start, tmp_path):
    """Starts runs, one after the other in the same processes; see several_runs.py."""

    def run(processes: int, runs: list[dict]) -> subprocess.Popen:
        file = tmp_path / f"runs_{processes}.json"
        runs = [{"environment": {}, "resumes": None, **each} for each in runs]
        file.write_text(json.dumps([{**each, "arguments": [*map(str, each["arguments"])]} for each in runs]))
        return start(processes, file, script=Path(__file__).with_name("several_runs.py"))

    return run


def wait_for(process: subprocess.Popen) -> None:
    out, err = process.communicate(timeout=10 * MINUTE)
    assert process.returncode == 0, out + err


def read(folder: Path) -> tuple[list[dict], dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((folder / "results.json").read_text())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


METHODS = {
    "linear": [],
    "ranpac": ["--cache_teacher_outputs", "--classifier", "ranpac", "--ranpac_width", "24"],
    "lora": ["--prompt_method", "lora", "--lora_merging", "fisher", "--distillation", "kd"],
}


def test_two_processes_learn_what_one_does(start_runs, train, command, tmp_path, monkeypatch):
    """Two tasks of 9 training and 9 test images: neither divides by the batch, nor the last batch by the processes.

    An epoch is one step of 8 images, so that the losses are those of the steps.
    """
    command = [*command, "--num_tasks", "2", "--max_samples_per_class", "3", "--batch_size", "8"]
    command += ["--num_train_epochs", "4", "--eval_batch_size", "6"]
    commands = {name: [*command, *extra, "--output_dir"] for name, extra in METHODS.items()}
    two = start_runs(2, [{"arguments": [*words, tmp_path / "2" / name]} for name, words in commands.items()])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name, words in commands.items():
        train(*words, tmp_path / "1" / name)
    wait_for(two)
    for name in METHODS:
        (one, results), (two, other_results) = (read(tmp_path / processes / name) for processes in ("1", "2"))
        events = (["epoch"] * 8 + ["evaluation"]) * 2
        assert [line["event"] for line in one] == [line["event"] for line in two] == events, name
        for a, b in zip(one, two, strict=True):
            if a["event"] == "epoch":
                assert a["loss"] == pytest.approx(b["loss"], rel=1e-4), name
        for role in ("teacher", "student"):
            assert results["stream"]["test"] == [9, 9]
            assert results[role]["accuracy_matrix"] == other_results[role]["accuracy_matrix"], (name, role)
        assert files(tmp_path / "1" / name) == files(tmp_path / "2" / name)


def test_backbones_in_shards_give_the_same_run(start_runs, command, tmp_path):
    """As accelerate_configs/fsdp.yaml asks for it."""
    command = [*command, "--num_tasks", "2", "--num_train_epochs", "1", "--classifier_alignment", "--output_dir"]
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    resumed = [*command, tmp_path / "resumed", "--resume_from_checkpoint"]
    runs = [
        {"arguments": [*command, tmp_path / "whole"]},
        {"arguments": [*command, tmp_path / "shards"], "environment": fsdp},
        {"arguments": resumed, "environment": fsdp, "resumes": str(tmp_path / "shards")},
    ]
    wait_for(start_runs(2, runs))
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
    assert_same_run(tmp_path / "shards", tmp_path / "resumed")
    assert files(tmp_path / "whole") == files(tmp_path / "shards") == files(tmp_path / "resumed")


def test_mistake_that_one_process_meets_ends_all_and_is_told_once(start, command, tmp_path):
    (tmp_path / "file").write_text("mine")
    process = start(2, *command, "--output_dir", tmp_path / "file" / "run")
    _, err = process.communicate(timeout=MINUTE)
    assert process.returncode != 0
    told = [line for line in err.splitlines() if line.startswith("train.py: error: ")]
    assert len(told) == 1 and "cannot be written to" in told[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_process_that_dies_ends_the_others_with_the_cause(start, command, tmp_path, rank):
    process = start(2, *command, "--num_train_epochs", "5000", "--save_steps", "5", "--output_dir", tmp_path / "run")
    while not list((tmp_path / "run" / "checkpoints").glob("[!.]*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[rank]), signal.SIGKILL)
    _, err = process.communicate(timeout=MINUTE)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in err  # torchrun's word
    assert "Stopped: another process of this run has ended" in err and "--resume_from_checkpoint" in err
    assert "recipes/train.py" not in "".join(line for line in err.splitlines() if line.startswith("  File"))
    assert load_newest_checkpoint(tmp_path / "run" / "checkpoints")["steps"] >= 5


HEADS = {
    # its loss relates all images of a batch
    "linear": ["--distillation", "dist", "--cache_teacher_outputs", "--eval_steps", "1"],
    "ncm": ["--classifier", "ncm"],
    # on the same features: its regression makes much of the rounding of trained prompts
    "ranpac": [
        *("--classifier", "ranpac", "--ranpac_width", "24", "--prompt_method", "none"),
        *("--distillation", "analytic", "--analytic_width", "16", "--num_train_epochs", "0"),
    ],
    "aligned": ["--classifier_alignment"],
}


def test_two_and_three_processes_give_every_head_as_one_does(start_runs, train, command, tmp_path, monkeypatch):
    """128 test images at a time, by default, and 14 training images a task are no multiples of 3."""
    command = [*command, "--num_train_epochs", "1", "--batch_size", "6"]
    commands = {head: [*command, *extra, "--output_dir"] for head, extra in HEADS.items()}
    for processes in (2, 3):
        place = tmp_path / str(processes)
        wait_for(start_runs(processes, [{"arguments": [*words, place / head]} for head, words in commands.items()]))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for head, words in commands.items():
        train(*words, tmp_path / "1" / head)
        one, results = read(tmp_path / "1" / head)
        for processes in ("2", "3"):
            other, other_results = read(tmp_path / processes / head)
            for ours, theirs in zip(one, other, strict=True):
                if ours["event"] == "epoch":
                    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), (head, processes)
            for role in ("teacher", "student"):
                places = (tmp_path / name / head / role / "model.safetensors" for name in ("1", processes))
                ours, theirs = map(load_file, places)
                assert ours.keys() == theirs.keys()
                for name in ours:  # Adam makes a whole step of a gradient that is 0 but for rounding
                    assert torch.allclose(ours[name], theirs[name], rtol=1e-2, atol=2e-2), (head, processes, name)
                shares = (r[role]["average_accuracy"] for r in (results, other_results))
                assert next(shares) == pytest.approx(next(shares), abs=100 / 24)  # one of the 24 test images
                if head == "linear":
                    curves = [r[role]["online_accuracy"] for r in (results, other_results)]
                    assert [images for images, _ in curves[0]] == [images for images, _ in curves[1]]
                    assert results[role]["a_auc"] == pytest.approx(other_results[role]["a_auc"], abs=100 / 8)


@pytest.mark.parametrize(("launcher", "number"), [("accelerate", signal.SIGTERM), ("compare", signal.SIGKILL)])
def test_a_run_saves_and_ends_with_its_launcher(command, tmp_path, launcher, number):
    folder = tmp_path / "runs" / "run"
    if launcher == "accelerate":
        program = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", ROOT / "recipes" / "train.py"]
        program += [*command, "--num_train_epochs", "5000", "--output_dir", folder]
    else:
        pairs = zip(command[::2], command[1::2], strict=True)
        given = {name.removeprefix("--"): value for name, value in pairs} | {"num_train_epochs": "5000"}
        grid = {"all": {"teachers": {"prompts": {"coda": {}}}, "students": {"kd": {"distillation": "kd"}}}}
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"arguments": given, "seeds": [0], "grids": grid}))
        program = [ROOT / "recipes" / "compare.py", tmp_path / "grid.yaml", "--output_dir", tmp_path / "runs"]
    with (tmp_path / "messages").open("w") as messages:
        process = subprocess.Popen(
            [sys.executable, *map(str, program)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=messages,
            stderr=messages,
            start_new_session=True,
        )
    try:
        while not list((tmp_path / "runs").rglob("metrics.jsonl")):
            assert process.poll() is None, (tmp_path / "messages").read_text()
            time.sleep(0.05)
        (run,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        assert process.wait(MINUTE) == -number
        run.wait(MINUTE)
    finally:
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
    (checkpoints,) = (tmp_path / "runs").rglob("checkpoints")
    assert load_newest_checkpoint(checkpoints)["state"]["step"] is not None
    if launcher == "accelerate":
        assert "Interrupted. The run is saved; resume with --output_dir" in (tmp_path / "messages").read_text()


def test_a_run_in_the_background_outlives_its_shell(command, tmp_path):
    line = shlex.join(map(str, [sys.executable, ROOT / "recipes" / "train.py", *command, "--num_train_epochs", "1"]))
    line += f" --output_dir {shlex.quote(str(tmp_path / 'run'))} >/dev/null 2>&1 & echo $!"
    shell = subprocess.run(
        ["sh", "-c", f"nohup {line}"], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    run = psutil.Process(int(shell.stdout))
    run.wait(5 * MINUTE)
    assert (tmp_path / "run" / "results.json").is_file()
