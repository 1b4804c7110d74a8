"""Seconds from starting train.py to the end of its first training step."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(script: Path, config: str, repeats: int) -> dict[str, float | list[float]]:
    """Starts train.py through `accelerate launch` and ends it once it has saved a checkpoint after its first step.

    Args:
        script: Path of train.py.
        config: The run's arguments in YAML.
        repeats: Number of starts.

    Returns:
        `seconds`, the median, and `rounds`, the seconds of each start.

    Raises:
        ValueError: The run ended before its first step; the message has the last line that it wrote.
    """
    rounds = [_start(script, config) for _ in range(repeats)]
    return {"seconds": statistics.median(rounds), "rounds": rounds}


def _start(script: Path, config: str) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run.yaml").write_text(config, encoding="utf-8")
        launch = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            str(script),
            "--config",
            str(folder / "run.yaml"),
        ]
        command = [*launch, "--output_dir", str(folder / "run"), "--save_steps", "1"]
        with (folder / "log").open("w") as log:
            began = time.perf_counter()
            # a session of its own, so that the run can be ended together with its launcher
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            try:
                while not any((folder / "run" / "checkpoints").glob("[!.]*")):
                    if process.poll() is not None:
                        lines = (folder / "log").read_text(encoding="utf-8").strip().splitlines()
                        raise ValueError(f"train.py ended before its first step: {lines[-1] if lines else ''}")
                    time.sleep(0.01)  # the polling interval bounds the measurement error
                return time.perf_counter() - began
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
