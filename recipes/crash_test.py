"""Crash test: runs killed with SIGKILL at random moments, resumed, and compared with an uninterrupted run.

    python recipes/crash_test.py --kills 20
    python recipes/crash_test.py --kills 10 --extra="--prompt_method l2p --num_tasks 3 --cache_teacher_outputs"

The kills take turns: in a step, between two stages, in an evaluation, and while each kind of file is written, with
half or all of it on disk but not yet renamed. The seed determines which step, stage or file. `--extra` chooses the
methods. Equal means bit for bit: the weights of both models, the state after each task, cached teacher outputs,
`metrics.jsonl`, and `results.json` except for times.
"""

import json
import multiprocessing
import os
import random
import runpy
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from safetensors.numpy import load_file

from cdl_hf.cli import argument, parse

TRAIN = Path(__file__).with_name("train.py")
# Runs are forked from a process that has imported what takes seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["cdl_hf.training.trainer", "cdl_hf.training.results", "cdl_hf.evaluation.plots"])
# Kinds of files: how their paths within the run's folder begin, and how often they are flushed at least
FILES: dict[str, tuple[tuple[str, ...], int]] = {
    "arguments": (("args",), 2),
    "metrics": (("metrics",), 4),
    "checkpoints": (("checkpoints/",), 8),
    "states": (("states/",), 6),
    "pictures": (("accuracy", "matrices"), 2),
    "models": (("teacher", "student"), 8),
    "results": (("results",), 1),
}
KINDS = ("in a step", "between stages", "in an evaluation", *(f"writing {name}" for name in FILES))


@dataclass
class CrashTestArguments:
    """The trials."""

    kills: int = argument("Number of trials", 20, min=1)
    seed: int = argument("Seed of the random moments", 0, min=0)
    extra: str = argument(
        "Arguments of train.py, in one string: --extra='--num_tasks 5'",
        "--num_tasks 4 --max_samples_per_class 2 --num_train_epochs 2 --save_steps 3",
    )


@dataclass
class Moment:
    """When to kill: in the n-th flush of a kind of file, or some seconds after the n-th line of metrics."""

    kind: str
    number: int
    seconds: float = 0.0
    half: bool = False  # of the file that is being written

    @classmethod
    def draw(cls, kind: str, metrics: list[dict], chance: random.Random) -> "Moment":
        """A random moment of this kind in a complete run with these metrics."""
        if kind.startswith("writing"):
            _, most = FILES[kind.removeprefix("writing ")]
            return cls(kind, chance.randint(1, most), half=chance.random() < 0.5)
        epochs = [i for i, line in enumerate(metrics) if line["event"] == "epoch"]
        last = [i for i in epochs if metrics[i]["epoch"] == max(metrics[j]["epoch"] for j in epochs)]
        if kind == "between stages":  # a stage's last line is written, its checkpoint not yet
            return cls(kind, chance.choice(last) + 1)
        if kind == "in an evaluation":  # it follows the task's last stage
            before = [i for i in last if metrics[i + 1]["event"] == "evaluation"]
            return cls(kind, chance.choice(before) + 1, chance.uniform(0.0, 0.2))
        line = chance.choice(epochs)
        return cls(kind, line, chance.uniform(0.0, metrics[line]["seconds"]))

    def wait(self, process: BaseProcess, folder: Path) -> None:
        """Returns at the moment, or when the run has ended."""
        if self.kind.startswith("writing"):
            return process.join()  # it kills itself
        while process.is_alive() and number_of_lines(folder) < self.number:
            time.sleep(0.001)  # far less than a step: the moment is hit, and the run keeps its core
        time.sleep(self.seconds)

    def arm(self, folder: Path) -> None:
        """Makes this process, which becomes the run, die before it flushes a file to disk."""
        (begins, _), flush, left = FILES[self.kind.removeprefix("writing ")], os.fsync, [self.number]

        def flush_or_die(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_relative_to(folder) and str(path.relative_to(folder)).replace(".", "", 1).startswith(begins):
                left[0] -= 1
                if left[0] == 0:
                    if path.is_file() and self.half and path.suffix != ".jsonl":
                        os.truncate(path, path.stat().st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
            flush(descriptor)

        os.fsync = flush_or_die


def main() -> None:
    (args,) = parse((CrashTestArguments,), description=__doc__)
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        if finish(start(args, folder / "whole")):
            sys.exit(f"The uninterrupted run failed; see the error of: python recipes/train.py {args.extra}")
        print(f"uninterrupted: {time.monotonic() - began:.0f} s", flush=True)
        metrics = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
        equal = 0
        for trial in range(args.kills):
            moment = Moment.draw(KINDS[trial % len(KINDS)], metrics, chance)
            equal += survives(args, folder / f"killed_{trial}", moment, folder / "whole", f"kill {trial + 1}")
    print(f"{equal} of {args.kills} runs ended equal to the uninterrupted one")
    sys.exit(equal != args.kills)


def survives(args: CrashTestArguments, folder: Path, moment: Moment, whole: Path, name: str) -> bool:
    """Kills a run at the moment, resumes it, and returns whether it ends equal to the complete run."""
    process = start(args, folder, moment=moment)
    moment.wait(process, folder)
    process.kill()
    was_killed = finish(process) != 0
    lines, checkpoints = number_of_lines(folder), [path.name for path in (folder / "checkpoints").glob("[!.]*")]
    begun = (folder / "args.yaml").is_file()
    code = finish(start(args, folder, "--resume_from_checkpoint" if begun else "--overwrite_output_dir"))
    same = was_killed and code == 0 and outcome(folder) == outcome(whole)
    found = f"after {lines} lines of metrics, newest checkpoint {max(checkpoints, default='none')}"
    print(f"{name}, {moment.kind}: {found}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return same


def start(args: CrashTestArguments, folder: Path, *more: str, moment: Moment | None = None) -> BaseProcess:
    arguments = [*shlex.split(args.extra), "--output_dir", str(folder), *more]
    process = FORKS.Process(target=train, args=(arguments, folder, moment))
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    """Waits for a process to end, and returns its exit code."""
    process.join()
    return process.exitcode


def train(arguments: list[str], folder: Path, moment: Moment | None) -> None:
    """Runs `python recipes/train.py` without output; it dies if the moment is while a file is written."""
    if moment is not None and moment.kind.startswith("writing"):
        moment.arm(folder)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


def number_of_lines(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def outcome(folder: Path) -> dict[str, object]:
    """Everything in a finished run that must not depend on when it was killed."""
    results = json.loads((folder / "results.json").read_text())
    for name in ("seconds", "latency_ms", "args"):  # the arguments name the folder
        del results[name]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    models = {role: tensors(folder / role / "model.safetensors") for role in ("teacher", "student")}
    states = folder / "states"
    learned = {str(file.relative_to(states)): tensors(file) for file in states.rglob("*.safetensors")}
    cached = {str(file.relative_to(states)): file.read_bytes() for file in states.rglob("*.npy")}
    return {"results": results, "metrics": lines, "models": models, "states": learned, "cached": cached}


def tensors(file: Path) -> dict[str, bytes]:
    """The bytes of a file's tensors; the order of its metadata may differ."""
    return {name: tensor.tobytes() for name, tensor in load_file(file).items()}


if __name__ == "__main__":
    main()
