"""How a run ends that does not finish: in one sentence, with what is saved and how to go on."""

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from ..cli import PATIENCE
from ..runs.checkpointing import list_checkpoints
from ..runs.folder import RunFolder
from ..runs.interruptions import EX_TEMPFAIL, Stopped
from .memory import OutOfMemory, is_oom
from .stage import StageError


@contextmanager
def exit_on_failure(folder: RunFolder | None, accelerator: Accelerator) -> Iterator[None]:
    """Ends the process where what stopped the run is no fault of the program: with code 75 on a signal, else 1.

    Args:
        folder: The run's; `None` before it has written anything.
    """
    try:
        yield
    except Stopped:
        _exit_all_ranks(accelerator, f"Interrupted. The run is saved; {_again(folder)}.", EX_TEMPFAIL)
    except KeyboardInterrupt:  # before the training, after it, or a second Ctrl-C
        _leave(f"Interrupted; {_again(folder)}.", EX_TEMPFAIL)
    except (StageError, FloatingPointError, torch.linalg.LinAlgError) as error:
        saved = "Nothing is saved"
        if folder is not None and list_checkpoints(folder.checkpoints):
            saved = f"What was saved before that step is in {folder.checkpoints}"
        _exit_all_ranks(
            accelerator, f"Stopped: {_first_line(error)}. {saved}; start another run with a lower --learning_rate."
        )
    except OutOfMemory as error:
        _leave(f"Stopped: {error}. Then {_again(folder)}.")
    except (OSError, SafetensorError) as error:  # a full disk, a file that is gone
        reason = str(error).strip().splitlines()[-1]  # a loader process sends its traceback along
        _leave(f"Stopped: {reason}. What was saved before is whole; fix the cause and {_again(folder)}.")
    except (RuntimeError, MemoryError) as error:
        if is_oom(error):
            _leave(f"Stopped: there is not enough memory ({_first_line(error)}). When there is, {_again(folder)}.")
        if _is_killed_loader(error):
            _leave(
                "Stopped: a process that reads images was killed, as happens where memory is short: take fewer "
                f"--dataloader_num_workers. Then {_again(folder)}."
            )
        if not _is_peer_failure(error):
            raise
        message = f"Stopped: another process of this run has ended, and says why. Then {_again(folder)}."
        if accelerator.process_index == 1:  # the main process may be the one that has ended
            _leave(message)
        _exit_all_ranks(accelerator, message)


def _again(folder: RunFolder | None) -> str:
    """What to do next."""
    if folder is None:
        return "start it again with the same command"
    return f"resume with --output_dir {shlex.quote(str(folder.path))} --resume_from_checkpoint"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")


def _exit_all_ranks(accelerator: Accelerator, message: str, code: int = 1) -> None:
    """Ends this process as all others end; one of them prints why."""
    if not accelerator.is_main_process:
        time.sleep(PATIENCE)  # a launcher kills all when the first one ends: it must be the one with the message
        sys.exit(code)
    _leave(message, code)


def _leave(message: str, code: int = 1) -> None:
    print(f"\n{message}", file=sys.stderr, flush=True)  # below a progress bar
    sys.exit(code)


def _is_killed_loader(error: Exception) -> bool:
    """torch has no class of its own for it."""
    return "DataLoader worker (pid" in str(error)


def _is_peer_failure(error: Exception) -> bool:
    """NCCL has an error of its own for it, gloo only texts."""
    texts = ("Connection closed by peer", "Connection reset by peer")
    return isinstance(error, torch.distributed.DistError) or any(text in str(error) for text in texts)
