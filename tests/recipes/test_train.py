"""recipes/train.py as its users meet it: help, mistakes, several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_help_imports_nothing_heavy():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', '--help']\n"
        "try: runpy.run_path('recipes/train.py', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'slow to answer'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("--dataset", "--teacher", "--prompt_method", "--distillation", "--learning_rate", "--resume"):
        assert name in done.stdout


def launch(command: list[str], output_dir: Path, processes: int) -> list[dict]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*launcher, ROOT / "recipes" / "train.py", *command, "--output_dir", output_dir],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [[], ["--store_answers", "--head", "ranpac", "--ranpac_width", "24"]], ids=["linear", "ranpac"]
)
def test_two_processes_learn_what_one_does(command, tmp_path, extra):
    one, two = (launch([*command, *extra], tmp_path / str(processes), processes) for processes in (1, 2))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a["event"] == b["event"]
        if a["event"] == "epoch":
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    matrices = [json.loads((tmp_path / n / "results.json").read_text())["student"] for n in ("1", "2")]
    assert matrices[0]["accuracy_matrix"] == matrices[1]["accuracy_matrix"]
