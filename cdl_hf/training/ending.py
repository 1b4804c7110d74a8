"""How a run ends that does not finish: in one sentence, with what is saved and how to go on."""

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from .memory import NotEnoughMemory
from .parser import PATIENCE
from .run_folder import RunFolder
from .signals import Stopped
from .stage import StageError


@contextmanager
def ended_plainly(folder: RunFolder, accelerator: Accelerator) -> Iterator[None]:
    """Ends the process where what stopped the run is no fault of the program: with code 75 on a signal, else 1."""
    again = f"go on with --output_dir {shlex.quote(str(folder.path))} --resume"
    try:
        yield
    except Stopped:
        _leave_together(accelerator, f"Told to stop. The run is saved; {again}.", os.EX_TEMPFAIL)
    except StageError as error:
        saved = f"What was learnt before that step is in {folder.checkpoints}"
        _leave_together(accelerator, f"Stopped: {error}. {saved}; start another run with a lower --learning_rate.")
    except NotEnoughMemory as error:
        _leave(f"Stopped: {error}. Then {again}.")
    except (OSError, SafetensorError) as error:  # a full disk, a file that is gone
        reason = str(error).strip().splitlines()[-1]  # a loader process sends its traceback along
        _leave(f"Stopped: {reason}. What was saved before is whole; when this is mended, {again}.")
    except RuntimeError as error:
        if not _tells_of_a_lost_process(error):
            raise
        told = f"Stopped: another process of this run has ended, and says why. Then {again}."
        if accelerator.process_index == 1:  # the main process may be the one that has ended
            _leave(told)
        _leave_together(accelerator, told)


def _leave_together(accelerator: Accelerator, message: str, code: int = 1) -> None:
    """Ends this process as all others end; one of them tells why."""
    if not accelerator.is_main_process:
        time.sleep(PATIENCE)  # a launcher kills all when the first one ends: the one that tells must be it
        sys.exit(code)
    _leave(message, code)


def _leave(message: str, code: int = 1) -> None:
    print(f"\n{message}", file=sys.stderr, flush=True)  # below a progress bar
    sys.exit(code)


def _tells_of_a_lost_process(error: RuntimeError) -> bool:
    """NCCL has an error of its own for it, gloo only texts."""
    texts = ("Connection closed by peer", "Connection reset by peer")
    return isinstance(error, torch.distributed.DistError) or any(text in str(error) for text in texts)
