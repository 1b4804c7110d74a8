"""Runs that are killed in every writing place go on to the same end; real processes on tiny models."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KINDS = 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "more"),
    [
        (
            KINDS,
            ["--prompt_method", "l2p", "--cache_teacher_outputs", "--classifier", "ranpac", "--ranpac_width", "24"],
        ),
        # the kinds that find a state which a checkpoint lacks: in a step and between two stages
        (2, ["--prompt_method", "dualprompt", "--classifier_alignment"]),
        (2, ["--prompt_method", "apt", "--distillation", "kd"]),
        (2, ["--prompt_method", "lora", "--lora_merging", "fisher", "--distillation", "features"]),
    ],
    ids=["l2p", "dualprompt", "apt", "lora"],  # CODA-Prompt in tests/training/test_trainer.py
)
def test_killed_runs_end_as_the_uninterrupted_one(command, kills, more):
    extra = shlex.join([*command, *more, "--num_tasks", "2", "--num_train_epochs", "1", "--save_steps", "2"])
    recipe = [sys.executable, ROOT / "recipes" / "crash_test.py", "--kills", str(kills), f"--extra={extra}"]
    done = subprocess.run(recipe, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} of {kills} runs ended equal to the uninterrupted one" in done.stdout
