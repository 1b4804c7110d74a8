"""Log messages and warnings on a command line."""

import os
import subprocess
import sys
from importlib import import_module

import pytest

from cdl_hf.commands import COMMANDS
from cdl_hf.console import ends_with_reader

CODE = """
import logging, warnings
from dataclasses import dataclass

from cdl_hf.cli import argument, parse

@dataclass
class Arguments:
    "Nothing"

    seed: int = argument("A seed", 0)

logger = logging.getLogger("cdl_hf.module")
logger.info("not shown")
parse((Arguments,), [])
parse((Arguments,), [])
logger.debug("not shown")
logger.info("[RANK 0] Resuming.")
logger.warning("Waiting for a lock")
warnings.warn("3 images are left out")
warnings.warn("old", DeprecationWarning)
"""


def test_messages_are_printed_once_and_as_they_are():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "Resuming.\n"
    lines = done.stderr.splitlines()
    assert lines[:2] == ["Waiting for a lock", "warning: 3 images are left out"]
    assert "DeprecationWarning: old" in lines[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_ends_quietly_when_nobody_reads_it(name, monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream, pytest.raises(SystemExit) as stop:
        monkeypatch.setattr(sys, "stdout", stream)
        import_module(f"cdl_hf.commands.{name}").main(["--help"])
    assert stop.value.code == (0 if name in ("train", "pretrain", "learn", "forget") else 1)  # a training goes on
    assert not capfd.readouterr().err


def test_python_is_quiet_at_its_exit_too():
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from cdl_hf.commands import main; sys.argv = ['cdl-hf']; main()"
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 1 and not done.stderr


def test_the_end_of_another_pipe_is_an_error():
    with pytest.raises(BrokenPipeError), ends_with_reader():
        raise BrokenPipeError
