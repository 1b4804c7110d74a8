"""Kills a run with SIGKILL at random moments, resumes it, and compares its end with that of an uninterrupted run.

    python recipes/crash_test.py --kills 20 --extra="--max_samples_per_class 4 --num_epochs 2 --checkpoint_every 5"

Each trial starts a run, kills it at a moment drawn from the seed, and resumes it to its end. Equal means equal in
every bit: the weights of both models, `metrics.jsonl` and `results.json` but for times.
"""

import json
import random
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from cdl_hf.training.parser import parse

TRAIN = Path(__file__).with_name("train.py")


@dataclass
class CrashTestArguments:
    """The trials."""

    kills: int = field(default=20, metadata={"help": "number of trials", "min": 1})
    seed: int = field(default=0, metadata={"help": "seed of the moments", "min": 0})
    extra: str = field(
        default="--max_samples_per_class 4 --num_epochs 2 --checkpoint_every 5",
        metadata={"help": "arguments of train.py, in one text: --extra='--num_tasks 5'"},
    )


def main() -> None:
    (args,) = parse((CrashTestArguments,), description=__doc__)
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        began = time.monotonic()
        start(args, whole).wait()
        duration = time.monotonic() - began
        expected = outcome(whole)
        print(f"uninterrupted: {duration:.0f} s", flush=True)
        equal = 0
        for trial in range(args.kills):
            killed = Path(folder) / f"killed_{trial}"
            process = start(args, killed)
            moment = moments.uniform(0, duration)
            try:
                process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            checkpoints = sorted(path.name for path in killed.glob("checkpoints/*"))
            begun = (killed / "args.yaml").is_file()
            code = start(args, killed, "--resume" if begun else "--overwrite").wait()
            same = code == 0 and outcome(killed) == expected
            equal += same
            at = checkpoints[-1] if checkpoints else "no checkpoint"
            print(f"kill {trial + 1} after {moment:.1f} s, at {at}: {'equal' if same else 'DIFFERENT'}", flush=True)
    print(f"{equal} of {args.kills} kills ended as the uninterrupted run")
    sys.exit(equal != args.kills)


def start(args: CrashTestArguments, folder: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, str(TRAIN), *shlex.split(args.extra), "--output_dir", str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def outcome(folder: Path) -> dict[str, object]:
    """Everything of a finished run that must not depend on when it was killed."""
    results = json.loads((folder / "results.json").read_text())
    for name in ("seconds", "latency_ms", "args"):  # the latter names the folder
        del results[name]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    weights = {role: (folder / role / "model.safetensors").read_bytes() for role in ("teacher", "student")}
    return {"results": results, "metrics": lines, **weights}


if __name__ == "__main__":
    main()
