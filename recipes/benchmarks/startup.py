"""How long one waits until a run has done its first step."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "train.py"


def measure(config: str, repeats: int) -> dict[str, float | list[float]]:
    """Starts train.py, as `accelerate launch` does, and ends it when it has saved a checkpoint after its first step.

    Args:
        config: The run's arguments in YAML.
        repeats: Starts.

    Returns:
        `seconds`, the median, and `rounds`, each of them.

    Raises:
        RuntimeError: The run ended before; with the last line it wrote.
    """
    rounds = [_start(config) for _ in range(repeats)]
    return {"seconds": statistics.median(rounds), "rounds": rounds}


def _start(config: str) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run.yaml").write_text(config, encoding="utf-8")
        launch = [sys.executable, "-m", "accelerate.commands.launch", str(TRAIN), "--config", str(folder / "run.yaml")]
        command = [*launch, "--output_dir", str(folder / "run"), "--save_steps", "1"]
        with (folder / "log").open("w") as log:
            began = time.perf_counter()
            # in a session of its own, so that the launcher does not leave the run behind
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            try:
                while not any((folder / "run" / "checkpoints").glob("[0-9]*")):
                    if process.poll() is not None:
                        lines = (folder / "log").read_text(encoding="utf-8").strip().splitlines()
                        raise RuntimeError(f"train.py ended before its first step: {lines[-1] if lines else ''}")
                    time.sleep(0.01)  # how often it looks bounds the error of what it measures
                return time.perf_counter() - began
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
