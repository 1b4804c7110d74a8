"""recipes/compare.py on tiny models."""

import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.slow
def test_grid_is_run_once_and_told_in_a_table(command, tmp_path):
    presets = tmp_path / "presets"
    presets.mkdir()
    pairs = zip(command[::2], command[1::2], strict=True)
    lines = [f"{name.removeprefix('--')}: {value}" for name, value in pairs]
    (presets / "coda_prompt.yaml").write_text("\n".join(lines))
    grid = ["--presets", presets, "--seeds", "0", "--distillation", "none", "kd", "--output_dir", tmp_path / "grid"]
    compare = [sys.executable, RECIPES / "compare.py", *grid]

    first = subprocess.run(compare, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    rows = (tmp_path / "grid" / "table.md").read_text().splitlines()
    learners = [row.split("|")[2].strip() for row in rows[2:]]
    assert learners[:3] == ["teacher", "student alone", "student, kd"]
    assert learners[3:] == ["nearest class mean, teacher's backbone", "nearest class mean, student's backbone"]
    assert (tmp_path / "grid" / "coda_prompt.png").stat().st_size > 0

    again = subprocess.run(compare, capture_output=True, text=True)
    assert "train.py" not in again.stdout  # nothing is run twice
    assert again.stdout.strip().endswith(rows[-1])
