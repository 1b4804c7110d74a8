"""recipes/compare.py: what it runs, skips and reports. train.py is a fake, except in the last test."""

import json
import multiprocessing
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml
from tiny_runs import run_recipe

from cdl_hf.arguments.config import RUN
from cdl_hf.cli import parse, to_dict
from cdl_hf.commands.compare import main as compare_grid
from cdl_hf.comparison import runner
from cdl_hf.runs.lock import RunLock

FORK = multiprocessing.get_context("fork")
FIGURES = {"average_accuracy": 41.25, "forgetting": {"cdl": 3.5}}
TEACHER = ["--num_tasks", "3", "--prompt_method", "apt", "--stages", "teacher"]
GRID = """
arguments: {num_tasks: 3}
seeds: [0]
grids:
  all:
    teachers: {prompts: {apt: {prompt_method: apt}}}
    students:
      cdl_prompt: {distillation: cdl_prompt}
      kd: {distillation: kd}
    classifiers: {ncm: {classifier: ncm}}
"""


def pretend_to_train(argv: list[str]) -> tuple[int, str]:
    """What train.py leaves, without training."""
    arguments = to_dict(parse(RUN, argv))
    if arguments["distillation"] == "cdl_prompt":
        return 2, "cdl_prompt maps prompts, and apt has none"
    folder, role = Path(arguments["output_dir"]), arguments["stages"]
    (folder / "states" / role).mkdir(parents=True, exist_ok=True)
    for task in range(3):
        (folder / "states" / role / f"task_{task:03d}.safetensors").touch()
    results = {"stream": {"num_tasks": 3}, "args": arguments, "seconds": {role: 60.0}, role: FIGURES}
    (folder / "results.json").write_text(json.dumps(results))
    return 0, ""


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """Runs compare.py on the grid; what was trained, what was printed, the exit code."""
    (tmp_path / "grid.yaml").write_text(GRID)

    def run(*more: str):
        trained = []

        def call(line: list[str]) -> tuple[int, str]:
            trained.append(Path(line[line.index("--output_dir") + 1]).name)
            return pretend_to_train(line[4:])

        monkeypatch.setattr(runner, "call", call)
        files = [str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / "runs")]
        monkeypatch.setattr(sys, "argv", ["compare.py", *files, *more])
        code = 0
        try:
            compare_grid()
        except SystemExit as end:
            code = end.code
        return trained, capsys.readouterr(), code

    return run


def test_grid_is_run_once_and_a_table_is_written(compare, tmp_path):
    trained, printed, code = compare()
    assert trained == [f"apt-{name}-seed0" for name in ("teacher", "cdl_prompt", "kd", "teacher-ncm", "kd-ncm")]
    rows = (tmp_path / "runs" / "table.md").read_text().splitlines()[2:]
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:5]] for row in rows}
    assert cells["apt-kd"] == ["41.25", "3.50", "1 of 1"]
    # What train.py refuses is listed with its reason, and the other runs do not suffer.
    assert cells["apt-cdl_prompt"] == ["", "", "0 of 1, refused"]
    assert cells["apt-cdl_prompt-ncm"][2] == "0 of 1, refused"
    assert "  apt-cdl_prompt-seed0: cdl_prompt maps prompts, and apt has none\n" in printed.out
    assert code == 0

    trained, printed, code = compare()
    assert trained == ["apt-cdl_prompt-seed0"]  # refused again; nothing else is run
    assert printed.out.count("1 of 1") == 4


def test_progress_is_counted_with_the_time_left(compare):
    trained, printed, code = compare("--only", "kd")
    assert "\nrun 1 of 4: apt-teacher-seed0\n" in printed.out
    assert "\nrun 4 of 4: apt-kd-ncm-seed0, about 1 min left\n" in printed.out
    trained, printed, code = compare()  # four are finished
    assert "\nrun 5 of 6: apt-cdl_prompt-seed0, about 2 min left\n" in printed.out


def test_lost_states_are_made_again_only_where_they_are_needed(compare, tmp_path):
    compare("--only", "kd")
    runs = tmp_path / "runs"
    for name in ("teacher", "kd"):
        shutil.rmtree(runs / f"apt-{name}-seed0" / "states")
    assert compare("--only", "kd")[0] == []  # the results are enough
    shutil.rmtree(runs / "apt-kd-ncm-seed0")
    trained, printed, code = compare("--only", "kd")
    assert trained == ["apt-teacher-seed0", "apt-kd-seed0", "apt-kd-ncm-seed0"]
    assert code == 0
    assert compare("--only", "kd")[0] == []


def test_a_finished_run_with_other_arguments_is_reported_and_not_used(compare, tmp_path):
    compare("--only", "kd")
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.replace("distillation: kd}", "distillation: kd, alpha: 0.75}"))
    trained, printed, code = compare("--only", "kd")
    assert (trained, code) == ([], 1)
    assert "alpha was 0.5, is now 0.75" in printed.out
    assert "0 of 1, failed" in printed.out


def test_a_teacher_that_fails_fails_the_grid(compare, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.replace("{num_tasks: 3}", "{num_tasks: 3, distillation: cdl_prompt}"))
    trained, printed, code = compare("--only", "kd")
    assert (trained, code) == (["apt-teacher-seed0"], 1)
    assert "  apt-kd-seed0: there is no apt-teacher-seed0" in printed.out


def test_an_argument_that_is_newer_than_a_run_had_its_default_then(compare, tmp_path):
    compare("--only", "kd")
    results = tmp_path / "runs" / "apt-kd-seed0" / "results.json"
    content = json.loads(results.read_text())
    del content["args"]["ranpac_width"]
    del content["args"]["analytic_groups"]  # whose default has changed, but which is of no use to this run
    results.write_text(json.dumps(content))
    assert compare("--only", "kd")[::2] == ([], 0)


def wait_in(folder, channel):
    RunLock(folder).acquire()
    channel.send("begun")
    channel.recv()  # when it is to end
    results = {"stream": {"num_tasks": 3}, "args": to_dict(parse(RUN, TEACHER)), "teacher": FIGURES}
    (folder / "states" / "teacher").mkdir(parents=True)
    for task in range(3):
        (folder / "states" / "teacher" / f"task_{task:03d}.safetensors").touch()
    (folder / "results.json").write_text(json.dumps(results))


def test_a_run_that_another_process_is_making_is_waited_for_last(compare, tmp_path, monkeypatch):
    """Here everything needs it; nothing is trained twice, and nothing is reported as failed."""
    folder = tmp_path / "runs" / "apt-teacher-seed0"
    folder.mkdir(parents=True)
    here, there = FORK.Pipe()
    other = FORK.Process(target=wait_in, args=(folder, there))
    other.start()
    here.recv()

    def pause(seconds):
        here.send("end")
        other.join()

    monkeypatch.setattr(runner, "pause", pause)
    trained, printed, code = compare("--only", "kd")
    assert (trained, code) == (["apt-kd-seed0", "apt-teacher-ncm-seed0", "apt-kd-ncm-seed0"], 0)
    assert printed.out.count("apt-teacher-seed0 is being made by another process") == 1
    assert printed.out.count("1 of 1") == 4


def test_a_run_that_another_process_finishes_meanwhile_is_not_made_again(compare, monkeypatch):
    """Between the look at its results and the look at its lock."""
    compare("--only", "kd")
    is_finished, seen = runner.is_finished, set()

    def later(run, folder):
        if run.name not in seen:
            seen.add(run.name)
            return False
        return is_finished(run, folder)

    monkeypatch.setattr(runner, "is_finished", later)
    trained, _, code = compare("--only", "kd")
    assert (trained, code) == ([], 0)


def test_an_output_that_is_a_file_is_refused(compare, tmp_path):
    (tmp_path / "runs").touch()
    trained, printed, code = compare()
    assert (trained, code) == ([], 2) and "cannot be made" in printed.err


def test_a_signal_interrupts_the_waiting(compare, tmp_path, monkeypatch):
    monkeypatch.setattr(RunLock, "is_taken", lambda self: True)
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: signal.raise_signal(signal.SIGTERM))
    assert compare()[::2] == ([], 75)


def test_a_finished_run_that_lacks_its_model_or_whose_results_are_damaged_is_resumed(compare, tmp_path):
    compare("--only", "kd")
    arguments = to_dict(parse(RUN, [*TEACHER, "--cache_teacher_outputs"]))
    folder = tmp_path / "runs" / "apt-teacher-seed0"
    (folder / "args.yaml").write_text(yaml.safe_dump({k: v for k, v in arguments.items() if v is not None}))
    assert compare("--only", "kd")[0] == []  # results are enough
    (folder / "checkpoints").mkdir()
    trained, printed, code = compare("--only", "kd")
    assert trained == ["apt-teacher-seed0"] and "--resume_from_checkpoint" in printed.out
    (folder / "teacher").mkdir()
    (folder / "teacher" / "config.json").touch()
    assert compare("--only", "kd")[0] == []
    (folder / "results.json").write_text("")
    trained, printed, code = compare("--only", "kd")
    assert trained == ["apt-teacher-seed0"] and "--resume_from_checkpoint" in printed.out


def test_a_begun_run_is_not_resumed_with_other_arguments(compare, tmp_path):
    """What the grid no longer says, --resume_from_checkpoint would take from the run's own arguments."""
    folder = tmp_path / "runs" / "apt-teacher-seed0"
    folder.mkdir(parents=True)
    (folder / "args.yaml").write_text("alpha: 0.75\nprompt_method: apt\nnum_tasks: 3\n")
    trained, printed, code = compare("--only", "kd")
    assert (trained, code) == ([], 1) and "it is begun, with other arguments (kd_alpha was 0.75" in printed.out


def test_a_damaged_record_of_a_begun_run_stops_no_other(compare, tmp_path):
    folder = tmp_path / "runs" / "apt-kd-ncm-seed0"
    folder.mkdir(parents=True)
    (folder / "args.yaml").write_text("alpha: 0.75\nprompt_me")
    trained, printed, code = compare("--only", "kd")
    assert (trained, code) == (["apt-teacher-seed0", "apt-kd-seed0", "apt-teacher-ncm-seed0"], 1)
    assert "apt-kd-ncm-seed0: it is begun, and its args.yaml is damaged: remove its folder" in printed.out
    assert f"{folder / 'args.yaml'}: this file is not valid YAML" in printed.err


def test_jobs(compare):
    trained, printed, code = compare("--list_jobs")
    assert (trained, code) == ([], 0)
    assert printed.out.strip() == "1  apt-teacher-seed0: 6 runs, 0 of them finished"
    trained, printed, code = compare("--job", "2")
    assert (trained, code) == ([], 2)
    assert "--job 2: " in printed.err


def test_a_wrong_argument_is_reported_before_anything_is_trained(compare, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.replace("classifier: ncm", "classifiers: ncm"))
    trained, printed, code = compare()
    assert (trained, code) == ([], 2)
    assert "unknown argument --classifiers; did you mean --classifier?" in printed.err


@pytest.mark.slow
def test_grid_of_real_runs(command, tmp_path, monkeypatch):
    pairs = zip(command[::2], command[1::2], strict=True)
    arguments = "\n".join(f"  {name.removeprefix('--')}: {value}" for name, value in pairs)
    (tmp_path / "grid.yaml").write_text(GRID.replace("arguments: {num_tasks: 3}", f"arguments:\n{arguments}"))

    def call(line: list[str]) -> tuple[int, str]:
        try:
            run_recipe("train", *line[4:])
        except SystemExit as end:
            return end.code, "refused"
        return 0, ""

    monkeypatch.setattr(runner, "call", call)
    files = [str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["compare.py", *files])
    compare_grid()
    table = (tmp_path / "runs" / "table.md").read_text()
    assert table.count("1 of 1") == 4
    assert table.count("0 of 1, refused") == 2
