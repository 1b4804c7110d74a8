"""Log messages and warnings on a command line."""

import subprocess
import sys

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
logger.info("Resuming.")
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
