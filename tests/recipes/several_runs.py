"""Several runs one after the other in the same processes, which take longer to start than tiny models to train.

    torchrun ... tests/recipes/several_runs.py runs.json

The file lists for each run its `arguments`, its `environment`, and, for one that is resumed, the finished run of which
it gets what was there between the last task's stages (`resumes`).
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import patch_environment

from cdl_hf.commands.train import main


def copy_interrupted(run: Path, copy: Path) -> None:
    shutil.copytree(run, copy)
    for name in (max((copy / "checkpoints").iterdir()), "teacher", "student"):
        shutil.rmtree(copy / name)


if __name__ == "__main__":
    end = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda group=None: None  # as a run does in the end
    for each in json.loads(Path(sys.argv[1]).read_text()):
        arguments = each["arguments"]
        if each["resumes"] is not None:
            if PartialState().is_main_process:
                copy_interrupted(Path(each["resumes"]), Path(arguments[arguments.index("--output_dir") + 1]))
            PartialState().wait_for_everyone()
        AcceleratorState._reset_state(True)
        with patch_environment(**each["environment"]):
            main(arguments)
    end()
