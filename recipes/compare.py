"""Runs of recipes/train.py over a grid of axes (a YAML file), and a table of what they came to.

    python recipes/compare.py recipes/quickdraw100/grid.yaml --output_dir runs/compare
    python recipes/compare.py recipes/quickdraw100/grid.yaml --output_dir runs/look --only coda_prompt none kdp seed0

A teacher is trained once and serves all its students; heads that are computed take what was trained. Finished runs are
skipped, so that the same command goes on where it was stopped. A run that another process is making, such as the same
command on another machine, is left to it: the others come first, and it is waited for at the end. A run that fails is
told at the end and stops no other.
table.md in the output folder is written anew after every run. recipes/report.py makes a report of the runs.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cdl_hf.cli import cli_error, parse, to_dict
from cdl_hf.comparison.grid import PlannedRun, read_grid
from cdl_hf.comparison.statistics import MeanStd
from cdl_hf.escaping import markdown_name
from cdl_hf.training.arguments import RUN, HubArguments, with_present_names
from cdl_hf.training.interruptions import EX_TEMPFAIL
from cdl_hf.training.run_lock import RunLock
from cdl_hf.utils import write_text

TRAIN = Path(__file__).with_name("train.py")
REFUSED, STOPPED = 2, EX_TEMPFAIL  # exit codes of train.py
PAUSE = 5.0  # seconds between two looks at runs that others are making
TAIL = 4000  # bytes of a run's messages that are kept, for the last of them


@dataclass
class CompareArguments:
    """The grid."""

    grid: str = field(
        metadata={"help": "YAML file of axes; cdl_hf/training/grid.py tells its form", "positional": True}
    )
    output_dir: str = field(metadata={"help": "folder of all runs"})
    only: list[str] = field(
        default_factory=list,
        metadata={"help": "values of axes to keep (seeds as seed0); an axis without any of them is kept whole"},
    )
    list_jobs: bool = field(default=False, metadata={"help": "list the jobs and stop there"})
    job: int | None = field(
        default=None,
        metadata={
            "help": "only this job of --list_jobs, a teacher and what is made of it: for arrays of jobs",
            "min": 1,
        },
    )


@dataclass
class Problem:
    """Why a run is not there: `kind` is refused, failed or left out."""

    kind: str
    reason: str


class Stopped(Exception):
    """A signal came: the run under way is saved."""


class InUse(Exception):
    """Another process is making this run."""


def main() -> None:
    (args,) = parse((CompareArguments,), description=__doc__)
    runs = Path(args.output_dir)
    try:
        groups = read_grid(Path(args.grid), args.only)
        if args.job is not None and args.job > len(groups):
            raise ValueError(f"--job {args.job}: there are {len(groups)} jobs (--list_jobs tells them)")
    except ValueError as error:
        cli_error(str(error))
    planned = [run for group in groups.values() for run in group]
    for run in planned:
        run.resolved(runs)  # what is wrong in the file is told before anything is trained
    if args.list_jobs:
        print("\n".join(f"{job:3d}  {line}" for job, line in enumerate(listed(groups, runs), 1)))
        return

    runs.mkdir(parents=True, exist_ok=True)
    runner = Runner(runs)
    table = Path(args.output_dir) / "table.md"
    unfinished = runs / f".table-{socket.gethostname()}-{os.getpid()}.md"  # several may write it at once
    to_do = [run for job, group in enumerate(groups.values(), 1) for run in group if args.job in (None, job)]
    told = set()
    while to_do:
        waiting = []
        for run in to_do:
            try:
                runner.finish(run)
            except InUse as held:
                waiting.append(run)
                if held.args[0] not in told:
                    told.add(held.args[0])
                    print(f"{held.args[0]} is being made by another process: the others come first.", flush=True)
                continue
            except Stopped:
                print(f"Stopped in {run.name}, which is saved; the same command goes on.", file=sys.stderr)
                sys.exit(STOPPED)
            write_text(unfinished, tabled(planned, runs, runner.problems) + "\n")
            unfinished.replace(table)
        if len(waiting) == len(to_do):
            try:
                pause(PAUSE)
            except Stopped:
                print("Stopped while another process is at work; the same command goes on.", file=sys.stderr)
                sys.exit(STOPPED)
        to_do = waiting
    print(tabled(planned, runs, runner.problems))
    for kind in ("refused", "left out", "failed"):
        names = [name for name, problem in runner.problems.items() if problem.kind == kind]
        if names:
            print(f"\n{kind}:", *(f"  {name}: {runner.problems[name].reason}" for name in names), sep="\n")
    if any(problem.kind != "refused" for problem in runner.problems.values()):
        sys.exit(1)


class Runner:
    """Runs train.py for what is not finished.

    Args:
        runs: Folder of all runs.

    Attributes:
        problems: Of the runs that are not to be had, why, by name.
    """

    def __init__(self, runs: Path):
        self.runs = runs
        self.problems: dict[str, Problem] = {}

    def finish(self, run: PlannedRun, *, with_states: bool = False) -> bool:
        """Whether a run is finished, after running it where it is not.

        Args:
            with_states: What it had learnt after each task is needed as well. Where only results were kept, it is
                trained again.

        Raises:
            Stopped: A signal came.
            InUse: Another process is making it, or the run whose states it takes.
        """
        if run.name in self.problems:
            return False
        if is_finished(run, self.runs):
            if changed := changed_arguments(run, self.runs):
                self.problems[run.name] = Problem(
                    "failed", f"it is finished, with other arguments ({changed}): remove its folder, or choose another"
                )
                return False
            if not with_states or self._has_states(run):
                return True
            print(f"{run.name} is trained again: its results are here, but not its states.", flush=True)
        if run.source is not None and not self.finish(run.source, with_states=True):
            kind = "refused" if self.problems[run.source.name].kind == "refused" else "left out"
            self.problems[run.name] = Problem(kind, f"there is no {run.source.name}")
            return False
        return self._train(run)

    def _has_states(self, run: PlannedRun) -> bool:
        folder = self.runs / run.name
        tasks = results_of(run, self.runs)["stream"]["num_tasks"]
        return len(list((folder / "states" / run.role).glob("task_*.safetensors"))) == tasks

    def _train(self, run: PlannedRun) -> bool:
        folder = self.runs / run.name
        if RunLock(folder).is_taken():
            raise InUse(run.name)
        begun = (folder / "args.yaml").is_file() and not is_finished(run, self.runs)
        try:
            changed = begun and changed_arguments(
                run, self.runs
            )  # which --resume_from_checkpoint would take for what is not given
            told = f"it is begun, with other arguments ({changed})"
        except SystemExit:  # the parser has said what is wrong
            changed = told = "it is begun, and its args.yaml is damaged"
        if changed:
            self.problems[run.name] = Problem("failed", f"{told}: remove its folder, or choose another")
            return False
        command = [sys.executable, str(TRAIN), *run.command_line(self.runs), "--output_dir", str(folder)]
        command.append("--resume_from_checkpoint" if begun else "--overwrite_output_dir")
        print(shlex.join(command), flush=True)
        code, last = call(command)
        if code == 0:
            return True
        if code == REFUSED and RunLock(folder).is_taken():  # it has been begun elsewhere in the meantime
            raise InUse(run.name)
        kind = "refused" if code == REFUSED and run.source is not None and not begun else "failed"
        self.problems[run.name] = Problem(kind, f"{last} (exit code {code})" if kind == "failed" else last)
        return False


def pause(seconds: float) -> None:
    """Waits.

    Raises:
        Stopped: SIGTERM or SIGINT came.
    """

    def stop(number, frame):
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        time.sleep(seconds)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def call(command: list[str]) -> tuple[int, str]:
    """Runs a command; its exit code and the last line of its messages, which are passed on as they come.

    It does not outlive this process: train.py notices that compare.py has ended, whatever has ended it.

    Raises:
        Stopped: SIGTERM or SIGINT came, and the command has ended.
    """
    came = []
    process = subprocess.Popen(command, stderr=subprocess.PIPE)

    def stop(number, frame):
        came.append(number)
        process.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    tail = b""
    try:
        while told := os.read(process.stderr.fileno(), TAIL):
            sys.stderr.buffer.write(told)
            sys.stderr.flush()
            tail = (tail + told)[-TAIL:]
        code = process.wait()
    finally:
        if process.poll() is None:  # the messages cannot be passed on
            process.terminate()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if came or code == STOPPED:
        raise Stopped
    lines = [line for line in tail.decode("utf-8", "replace").replace("\r", "\n").splitlines() if line.strip()]
    return code, lines[-1].strip().removeprefix("train.py: error: ") if lines else "without a message"


def results_of(run: PlannedRun, runs: Path) -> dict[str, Any] | None:
    """What the run came to; None where it has not come to an end, or its file is damaged."""
    try:
        return json.loads((runs / run.name / "results.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def is_finished(run: PlannedRun, runs: Path) -> bool:
    """Whether there are results, and the model or at least no checkpoint from which it could be written again."""
    folder = runs / run.name
    model = (folder / run.role / "config.json").is_file() or not (folder / "checkpoints").is_dir()
    return model and results_of(run, runs) is not None


def changed_arguments(run: PlannedRun, runs: Path) -> str:
    """How a run's arguments differ from those of the grid, in words; empty where they do not.

    An argument that train.py did not have yet when the run was made counts with its default.
    """
    from cdl_hf.training.fingerprint import HARMLESS, ROUNDING, changes  # seconds to import

    of_the_call = {
        "dry_run",
        "overwrite_output_dir",
        "resume_from_checkpoint",
        "teacher_run",
        "student_run",
        "cache_teacher_outputs",
    }
    of_the_call |= {each.name for each in fields(HubArguments)}
    results = results_of(run, runs)
    record = str(runs / run.name / "args.yaml")
    before = to_dict(parse(RUN, ["--config", record])) if results is None else with_present_names(results["args"])
    told = changes(to_dict(parse(RUN, [])) | before, run.resolved(runs))
    return "; ".join(words for name, words in told.items() if name not in HARMLESS | ROUNDING | of_the_call)


def listed(groups: dict[str, list[PlannedRun]], runs: Path) -> list[str]:
    """Of each job its teacher, and how many runs it has and had."""
    return [
        f"{teacher}: {len(group)} runs, {sum(is_finished(run, runs) for run in group)} of them finished"
        for teacher, group in groups.items()
    ]


def tabled(planned: list[PlannedRun], runs: Path, problems: dict[str, Problem]) -> str:
    """A Markdown table: of each setting mean and standard deviation over the seeds that are finished."""
    settings: dict[str, list[PlannedRun]] = {}
    for run in planned:
        settings.setdefault(run.setting, []).append(run)
    lines = ["| runs | A_N (%) | forgetting (cdl, points) | seeds |", "|---|---:|---:|---|"]
    for setting, of_seeds in settings.items():
        found = {
            run.seed: results_of(run, runs)[run.role]
            for run in of_seeds
            if is_finished(run, runs) and run.name not in problems
        }
        accuracy = MeanStd.of({seed: r["average_accuracy"] for seed, r in found.items()}) if found else ""
        forgetting = MeanStd.of({seed: r["forgetting"]["cdl"] for seed, r in found.items()}) if found else ""
        kinds = {problems[run.name].kind for run in of_seeds if run.name in problems}
        seeds = ", ".join([f"{len(found)} of {len(of_seeds)}", *sorted(kinds)])
        lines.append(f"| {markdown_name(setting)} | {accuracy} | {forgetting} | {seeds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
