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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--learnin_rate", "1"], "learning_rate"),
        (["--num_epochs", "many"], "num_epochs"),
        (["--learning_rate", "nan"], "learning_rate"),
        (["--learning_rate", "-1"], "learning_rate"),
        (["--alpha", "1.5"], "alpha"),
        (["--prompt_method", "l3p"], "l2p"),
        (["--distillation", "kpd"], "kdp"),
        (["--crop_scale", "0.9", "0.1"], "crop_scale"),
        (["--batch_size", "5", "--gradient_accumulation_steps", "2"], "multiple"),
        (["--overwrite", "--resume", "--output_dir", "x"], "contradict"),
        (["--resume"], "nothing to resume"),
        (["--dataset", "quikdraw100"], "quickdraw100"),
        (["--num_tasks", "7000"], "7000 tasks"),
        (["--teacher", "vit_tinny"], "vit_tinny"),
        (["--teacher", "vit_base_patch16_224"], "augreg"),
        (["--teacher", "resnet18.a1_in1k"], "resnet18"),
        (["--teacher_weights", "/nowhere/weights.pth", "--teacher", "vit_tiny_patch16_224"], "does not exist"),
        (["--pool_size", "7"], "multiple of the number of tasks"),
        (["--pool_size", "18"], "at most 15"),
        (["--prompt_length", "5"], "even"),
        (["--prompt_blocks", "0", "9"], "blocks 0 to 5"),
        (["--kd_prompt_blocks", "9"], "6 blocks"),
        (["--prompt_method", "apt", "--distillation", "cdl_prompt"], "APT"),
        (["--stages", "student"], "teacher"),
        (["--teacher_from", "/nowhere", "--stages", "student"], "task 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_line(train, command, tmp_path, capsys, arguments, told):
    with pytest.raises(SystemExit) as stop:
        train(*command, "--output_dir", tmp_path / "run", *arguments)
    assert stop.value.code == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert message.startswith("train.py: error: ") and told in message
    assert not (tmp_path / "run").exists()


def test_output_folder_with_something_in_it_is_left_alone(train, command, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for arguments, told in (([], "--overwrite"), (["--overwrite"], "thesis.tex"), (["--resume"], "nothing to resume")):
        with pytest.raises(SystemExit):
            train(*command, "--output_dir", folder, *arguments)
        assert told in capsys.readouterr().err
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_output_folder_that_is_a_file(train, command, tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(SystemExit):
        train(*command, "--output_dir", tmp_path / "run")
    assert "is a file" in capsys.readouterr().err


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
