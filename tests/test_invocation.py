"""How a program says that it was started, and how the other commands are."""

from pathlib import Path

import pytest

import cdl_hf
from cdl_hf.invocation import how_it_started, how_to_start

PACKAGE = str(Path(cdl_hf.__file__).parent)


@pytest.mark.parametrize(
    ("script", "command", "started"),
    [
        ("recipes/train.py", "predict", "python recipes/predict.py"),
        ("/some/checkout/recipes/train.py", "evaluate", "python /some/checkout/recipes/evaluate_run.py"),
        ("/usr/bin/cdl-hf train", "evaluate", "cdl-hf evaluate"),
        (f"{PACKAGE}/commands/train.py", "predict", "cdl-hf predict"),
        ("my_script.py", "predict", "cdl-hf predict"),
    ],
)
def test_commands_are_started_as_this_one(script, command, started, monkeypatch):
    monkeypatch.setattr("sys.argv", [script])
    assert how_to_start(command) == started.split()


@pytest.mark.parametrize(
    ("script", "started"),
    [
        (
            "/some/checkout/recipes/train.py",
            "accelerate launch recipes/train.py --config recipes/quickdraw100/l2p.yaml",
        ),
        (
            "recipes/train.py",
            "accelerate launch recipes/train.py --config /some/checkout/recipes/quickdraw100/l2p.yaml",
        ),
        ("/usr/bin/cdl-hf train", "cdl-hf train --config /some/checkout/recipes/quickdraw100/l2p.yaml"),
        (
            f"{PACKAGE}/commands/train.py",
            "accelerate launch -m cdl_hf.commands.train --config /some/checkout/recipes/",
        ),
        ("my_script.py", "accelerate launch my_script.py --config"),
    ],
)
def test_a_program_can_be_started_again_elsewhere(script, started, monkeypatch):
    monkeypatch.setattr("sys.argv", [script])
    command = how_it_started(["--config", "/some/checkout/recipes/quickdraw100/l2p.yaml"])
    assert " ".join(command).startswith(started)
