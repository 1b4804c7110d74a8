"""recipes/train.py as its users meet it."""

import subprocess
import sys
from pathlib import Path

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
    for name in (
        "--dataset",
        "--teacher",
        "--prompt_method",
        "--distillation",
        "--learning_rate",
        "--resume_from_checkpoint",
    ):
        assert name in done.stdout
