"""The runs of a comparison: each is one call of `cdl-hf train`, made if it is not finished yet."""

import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..arguments.config import RUN
from ..arguments.sets import affecting, not_of_the_run, paths, planned, recorded_defaults, with_present_names
from ..cli import parse, to_dict
from ..escaping import markdown_name
from ..runs.interruptions import EX_TEMPFAIL
from ..runs.lock import RunLock
from ..utils import write_text
from .grid import PlannedRun
from .progress import Progress
from .statistics import MeanStd

TABLE = "table.md"
# -P keeps the current folder, in which a file may have the name of a library, off sys.path.
TRAIN = [sys.executable, "-P", "-m", "cdl_hf.commands.train"]
REFUSED = 2  # exit code of a run for mistakes in its arguments
POLL_SECONDS = 5.0  # between two looks at runs that other processes are making
TAIL_BYTES = 4000  # of a run's messages, of which the last line is reported

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """Why a run is not finished: `kind` is refused, failed or left out."""

    kind: str
    reason: str


class Interrupted(Exception):
    """SIGTERM or SIGINT came; the current run, if there is one, is saved."""


class InUse(Exception):
    """Another process is making the run that is named."""


class GridRunner:
    """Trains what is not finished.

    Args:
        folder: Folder of all runs.
        runs: All runs of the comparison, sources before those that read their states.

    Attributes:
        problems: Why runs are not finished, by name.
    """

    def __init__(self, folder: Path, runs: Sequence[PlannedRun]):
        self.folder, self.runs = folder, runs
        self.problems: dict[str, Problem] = {}
        self._progress = Progress([], runs, {})

    def run(self, to_do: Sequence[PlannedRun]) -> None:
        """Finishes these runs in their order; those that other processes are making come last.

        After each run that was made, and at the end, `table.md` in the folder is written.

        Raises:
            Interrupted: A signal came.
        """
        self._progress = Progress(to_do, self.runs, self._seconds_of_finished())
        announced: set[str] = set()
        while to_do:
            waiting = []
            for run in to_do:
                try:
                    self.finish(run)
                except InUse as error:
                    waiting.append(run)
                    if (name := str(error)) not in announced:
                        announced.add(name)
                        logger.info("%s is being made by another process: the others come first", name)
                except Interrupted:
                    raise Interrupted(f"interrupted in {run.name}, which is saved") from None
                else:
                    self._progress.finish(run)
            if len(waiting) == len(to_do):
                pause(POLL_SECONDS)
            to_do = waiting
        self._write_table()

    def finish(self, run: PlannedRun, *, needs_states: bool = False) -> bool:
        """Makes a run unless it is finished.

        Args:
            needs_states: Whether its states are needed too; if only its results were kept, it is made again.

        Returns:
            Whether the run is finished.

        Raises:
            Interrupted: A signal came.
            InUse: Another process is making this run, or one whose states it reads.
        """
        if run.name in self.problems:
            return False
        if is_finished(run, self.folder):
            if changed := changed_arguments(run, self.folder):
                reason = f"it is finished, with other arguments ({changed}): remove its folder, or choose another"
                self.problems[run.name] = Problem("failed", reason)
                return False
            if not needs_states or self._has_states(run):
                return True
            logger.info("%s is made again: it has results, but no states", run.name)
        if run.source is not None and not self.finish(run.source, needs_states=True):
            kind = "refused" if self.problems[run.source.name].kind == "refused" else "left out"
            self.problems[run.name] = Problem(kind, f"there is no {run.source.name}")
            return False
        return self._make(run, needs_states)

    def table(self) -> str:
        """A Markdown table: mean and standard deviation of each experiment over the finished seeds."""
        experiments: dict[str, list[PlannedRun]] = {}
        for run in self.runs:
            experiments.setdefault(run.experiment, []).append(run)
        lines = ["| runs | A_N (%) | forgetting (cdl, points) | seeds |", "|---|---:|---:|---|"]
        for experiment, runs in experiments.items():
            found = {
                run.seed: results[run.role]
                for run in runs
                if run.name not in self.problems and (results := finished_results(run, self.folder)) is not None
            }
            accuracy = MeanStd.of({seed: r["average_accuracy"] for seed, r in found.items()}) if found else ""
            forgetting = MeanStd.of({seed: r["forgetting"]["cdl"] for seed, r in found.items()}) if found else ""
            kinds = {self.problems[run.name].kind for run in runs if run.name in self.problems}
            seeds = ", ".join([f"{len(found)} of {len(runs)}", *sorted(kinds)])
            lines.append(f"| {markdown_name(experiment)} | {accuracy} | {forgetting} | {seeds} |")
        return "\n".join(lines)

    def _make(self, run: PlannedRun, needs_states: bool) -> bool:
        folder = self.folder / run.name
        if RunLock(folder).is_taken():
            raise InUse(run.name)
        if is_finished(run, self.folder) and (not needs_states or self._has_states(run)):
            return True  # by another process, in the meantime
        is_begun = (folder / "args.yaml").is_file() and not is_finished(run, self.folder)
        if is_begun and (difference := self._difference(run)):
            self.problems[run.name] = Problem("failed", f"{difference}: remove its folder, or choose another")
            return False
        command = [*TRAIN, *run.command_line(self.folder), "--output_dir", str(folder)]
        command.append("--resume_from_checkpoint" if is_begun else "--overwrite_output_dir")
        logger.info("\n%s\n%s", self._progress.describe(run), shlex.join(command))
        start = time.monotonic()
        code, message = call(command)
        if code == 0:
            self._progress.finish(run, time.monotonic() - start)
            self._write_table()
            return True
        if code == REFUSED and RunLock(folder).is_taken():  # another process has begun it in the meantime
            raise InUse(run.name)
        kind = "refused" if code == REFUSED and run.source is not None and not is_begun else "failed"
        self.problems[run.name] = Problem(kind, f"{message} (exit code {code})" if kind == "failed" else message)
        self._write_table()
        return False

    def _difference(self, run: PlannedRun) -> str:
        """Why a run that is begun cannot be resumed; resuming would keep its own arguments where none are given."""
        try:
            changed = changed_arguments(run, self.folder)
        except SystemExit:  # the parser has printed what is wrong
            return "it is begun, and its args.yaml is damaged"
        return f"it is begun, with other arguments ({changed})" if changed else ""

    def _has_states(self, run: PlannedRun) -> bool:
        results = read_results(run, self.folder)
        states = (self.folder / run.name / "states" / run.role).glob("task_*.safetensors")
        return results is not None and len(list(states)) == results["stream"]["num_tasks"]

    def _seconds_of_finished(self) -> dict[str, float]:
        results = {run.name: finished_results(run, self.folder) for run in self.runs}
        return {name: sum(found.get("seconds", {}).values()) for name, found in results.items() if found is not None}

    def _write_table(self) -> None:
        unfinished = self.folder / f".table-{socket.gethostname()}-{os.getpid()}.md"  # several may write it at once
        write_text(unfinished, self.table() + "\n")
        unfinished.replace(self.folder / TABLE)


def pause(seconds: float) -> None:
    """Waits.

    Raises:
        Interrupted: SIGTERM or SIGINT came.
    """

    def stop(number, frame):
        raise Interrupted("interrupted while another process is at work")

    with _handling(stop):
        time.sleep(seconds)  # between two looks at a lock of another process, which gives no sign when it is free


def call(command: list[str]) -> tuple[int, str]:
    """Runs a command, and passes its messages on as they come.

    It does not outlive this process: a run notices that its parent has ended, for whatever reason. Where stderr is
    no terminal, progress bars are drawn once a minute.

    Returns:
        The exit code and the last line of the messages.

    Raises:
        Interrupted: SIGTERM or SIGINT came, and the command has ended.
    """
    signals = []
    environment = dict(os.environ)
    if not sys.stderr.isatty():
        environment.setdefault("TQDM_MININTERVAL", "60")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None

    def stop(number, frame):
        signals.append(number)
        process.terminate()

    tail = b""
    with _handling(stop):
        try:
            while message := os.read(process.stderr.fileno(), TAIL_BYTES):
                sys.stderr.buffer.write(message)
                sys.stderr.flush()
                tail = (tail + message)[-TAIL_BYTES:]
            code = process.wait()
        finally:
            if process.poll() is None:  # the messages could not be passed on
                process.terminate()
                process.wait()
    if signals or code == EX_TEMPFAIL:
        raise Interrupted
    lines = [line for line in tail.decode("utf-8", "replace").replace("\r", "\n").splitlines() if line.strip()]
    return code, lines[-1].strip().removeprefix("train.py: error: ") if lines else "without a message"


def read_results(run: PlannedRun, folder: Path) -> dict[str, Any] | None:
    """The run's `results.json`; `None` if it is missing or damaged."""
    try:
        return json.loads((folder / run.name / "results.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def finished_results(run: PlannedRun, folder: Path) -> dict[str, Any] | None:
    """Results of a finished run; `None` if it lacks its model but has a checkpoint, from which this can be written."""
    path = folder / run.name
    is_whole = (path / run.role / "config.json").is_file() or not (path / "checkpoints").is_dir()
    return read_results(run, folder) if is_whole else None


def is_finished(run: PlannedRun, folder: Path) -> bool:
    return finished_results(run, folder) is not None


def changed_arguments(run: PlannedRun, folder: Path) -> str:
    """How a run's arguments differ from those of the grid, as a phrase; empty if they do not.

    An argument that is newer than the run has the value that the run had without it.
    """
    from ..runs.fingerprint import changes  # seconds to import

    ignored = affecting("rounding", "files", "nothing") | not_of_the_run() | (paths() & planned())
    results = read_results(run, folder)
    if results is None:
        record = folder / run.name / "args.yaml"
        parsed = to_dict(parse(RUN, ["--config", str(record)]))  # which checks it
        written = with_present_names(yaml.safe_load(record.read_text(encoding="utf-8")) or {})
        before = recorded_defaults() | {name: value for name, value in parsed.items() if name in written}
    else:
        before = recorded_defaults() | with_present_names(results["args"])
    changed = changes(before, run.resolved(folder))
    return "; ".join(words for name, words in changed.items() if name not in ignored)


def describe_jobs(groups: dict[str, list[PlannedRun]], folder: Path) -> Iterable[str]:
    """A line for each job: its teacher, how many runs it has, and how many of them are finished."""
    for teacher, runs in groups.items():
        yield f"{teacher}: {len(runs)} runs, {sum(is_finished(run, folder) for run in runs)} of them finished"


@contextmanager
def _handling(stop: Any) -> Iterator[None]:
    """Within the block `stop` handles SIGTERM and SIGINT."""
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
