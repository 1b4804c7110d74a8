"""Kills a run with SIGKILL at random moments, resumes it, and compares its end with that of an uninterrupted run.

    python recipes/crash_test.py --kills 20
    python recipes/crash_test.py --kills 8 --extra="--prompt_method apt --num_tasks 5 --checkpoint_every 3"

The kills fall in turn in a step, between two stages, in an evaluation and in a save, at places drawn from the seed.
Equal means equal in every bit: the weights of both models, what they had learnt after each task, stored answers,
`metrics.jsonl` and `results.json` but for times.
"""

import json
import multiprocessing
import os
import random
import runpy
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from safetensors.numpy import load_file

from cdl_hf.training.parser import parse

TRAIN = Path(__file__).with_name("train.py")
# Runs are forked from a process that has imported what takes seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["cdl_hf.training.trainer", "cdl_hf.training.report", "cdl_hf.evaluation.plots"])
KINDS = ("in a step", "between stages", "in an evaluation", "in a save")


@dataclass
class CrashTestArguments:
    """The trials."""

    kills: int = field(default=20, metadata={"help": "number of trials", "min": 1})
    seed: int = field(default=0, metadata={"help": "seed of the moments", "min": 0})
    extra: str = field(
        default="--num_tasks 4 --max_samples_per_class 2 --num_epochs 2 --checkpoint_every 3",
        metadata={"help": "arguments of train.py, in one text: --extra='--num_tasks 5'"},
    )


@dataclass
class Moment:
    """When to kill: seconds after a run has written so many lines of metrics; if in a save, when it next saves."""

    kind: str
    lines: int
    seconds: float

    @classmethod
    def draw(cls, kind: str, metrics: list[dict], chance: random.Random) -> "Moment":
        """One of this kind among those of a whole run with these metrics."""
        epochs = [i for i, line in enumerate(metrics) if line["event"] == "epoch"]
        last = [i for i in epochs if metrics[i]["epoch"] == max(metrics[j]["epoch"] for j in epochs)]
        if kind == "between stages":  # a stage's last line is written, its checkpoint not yet
            return cls(kind, chance.choice(last) + 1, 0.0)
        if kind == "in an evaluation":  # it follows the task's last stage
            before = [i for i in last if metrics[i + 1]["event"] == "evaluation"]
            return cls(kind, chance.choice(before) + 1, chance.uniform(0.0, 0.2))
        line = chance.choice(epochs)
        return cls(kind, line, chance.uniform(0.0, metrics[line]["seconds"]) if kind == "in a step" else 0.0)

    def wait(self, process: BaseProcess, folder: Path) -> None:
        """Returns at the moment, or when the run has ended."""
        while process.is_alive() and number_of_lines(folder) < self.lines:
            time.sleep(0.001)  # far less than a step: the moment is hit, and the run keeps its core
        time.sleep(self.seconds)
        while self.kind == "in a save" and process.is_alive() and not unfinished_checkpoints(folder):
            time.sleep(0.0002)


def main() -> None:
    (args,) = parse((CrashTestArguments,), description=__doc__)
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        if finish(start(args, folder / "whole")):
            sys.exit(f"The uninterrupted run failed: python recipes/train.py {args.extra} tells why.")
        print(f"uninterrupted: {time.monotonic() - began:.0f} s", flush=True)
        metrics = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
        equal = 0
        for trial in range(args.kills):
            moment = Moment.draw(KINDS[trial % len(KINDS)], metrics, chance)
            equal += survives(args, folder / f"killed_{trial}", moment, folder / "whole", f"kill {trial + 1}")
    print(f"{equal} of {args.kills} kills ended as the uninterrupted run")
    sys.exit(equal != args.kills)


def survives(args: CrashTestArguments, folder: Path, moment: Moment, whole: Path, name: str) -> bool:
    """Kills a run at the moment, resumes it, and tells whether it ends as the whole one."""
    process = start(args, folder)
    moment.wait(process, folder)
    process.kill()
    was_killed = finish(process) != 0
    lines, checkpoints = number_of_lines(folder), [path.name for path in (folder / "checkpoints").glob("[0-9]*")]
    half = unfinished_checkpoints(folder)
    begun = (folder / "args.yaml").is_file()
    code = finish(start(args, folder, "--resume" if begun else "--overwrite"))
    same = was_killed and code == 0 and outcome(folder) == outcome(whole)
    found = f"after {lines} lines of metrics, newest checkpoint {max(checkpoints, default='none')}"
    found += f", {half[0]} half written" if half else ""
    print(f"{name}, {moment.kind}: {found}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return same


def start(args: CrashTestArguments, folder: Path, *more: str) -> BaseProcess:
    process = FORKS.Process(target=train, args=([*shlex.split(args.extra), "--output_dir", str(folder), *more],))
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    """Waits for the end of a process; its exit code."""
    process.join()
    return process.exitcode


def train(arguments: list[str]) -> None:
    """What `python recipes/train.py` does, unseen."""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    sys.argv = [str(TRAIN), *arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


def number_of_lines(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def unfinished_checkpoints(folder: Path) -> list[str]:
    return [path.name for path in (folder / "checkpoints").glob(".*")]


def outcome(folder: Path) -> dict[str, object]:
    """Everything of a finished run that must not depend on when it was killed."""
    results = json.loads((folder / "results.json").read_text())
    for name in ("seconds", "latency_ms", "args"):  # the latter names the folder
        del results[name]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    models = {role: tensors(folder / role / "model.safetensors") for role in ("teacher", "student")}
    states = folder / "states"
    learnt = {str(file.relative_to(states)): tensors(file) for file in states.rglob("*.safetensors")}
    answers = {str(file.relative_to(states)): file.read_bytes() for file in states.rglob("*.npy")}
    return {"results": results, "metrics": lines, "models": models, "learnt": learnt, "answers": answers}


def tensors(file: Path) -> dict[str, bytes]:
    """A file's tensors; what else it holds is in no particular order."""
    return {name: tensor.tobytes() for name, tensor in load_file(file).items()}


if __name__ == "__main__":
    main()
