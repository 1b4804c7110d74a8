"""Interruptions of a run: signals, a launcher that ends, a reader of its output that goes away.

Nothing heavy is imported, so that a run hears of it from its first moment.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import psutil

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .distributed import AsyncReduce

# Numbers, for Windows has not all of their names in `os`.
EX_UNAVAILABLE, EX_TEMPFAIL = 69, 75
# The commands and modules that start training processes and wait for them; the last ones are this project's.
LAUNCHERS = {
    "accelerate",
    "accelerate-launch",
    "accelerate.commands.accelerate_cli",
    "accelerate.commands.launch",
    "torch.distributed.launch",
    "torch.distributed.run",
    "torchrun",
    "cdl-hf",
    "cdl_hf.commands.compare",
    "compare.py",
}
WATCH_INTERVAL = 0.5  # seconds
REPEAT_INTERVAL = 2  # seconds in which a further Ctrl-C counts as the first: terminal and launcher may both send one


@contextmanager
def interruptible(
    sentence: str = "Interrupted before the training began: start it again with the same command.",
) -> Iterator[None]:
    """A script that is interrupted within ends with one sentence and exit code 75, unless it handles signals itself.

    It hears SIGTERM and SIGINT, and the end of its launcher as SIGTERM; both raise `KeyboardInterrupt` where no
    [`StopRequest`] is active. That nobody reads its messages any more does not end it.
    """
    previous, streams = signal.getsignal(signal.SIGTERM), (sys.stdout, sys.stderr)
    in_main_thread = threading.current_thread() is threading.main_thread()  # no other may handle signals
    if in_main_thread:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout, sys.stderr = map(_Lasting, streams)
    stop_with_launcher()
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{sentence}", file=sys.stderr)
        sys.exit(EX_TEMPFAIL)
    finally:
        sys.stdout.flush()  # while it can still fall silent
        sys.stdout, sys.stderr = streams
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def stop_with_launcher() -> None:
    """Lets the end of the launcher that has started this process, if one has, come to it as SIGTERM.

    A launcher that is killed takes nothing with it, and `accelerate launch` of one process passes no signal on. What
    a shell has started is left alone, whatever becomes of the shell.
    """
    parent = launcher()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), name="launcher watch", daemon=True).start()


def launcher() -> psutil.Process | None:
    """This process's parent, if it is one of [`LAUNCHERS`].

    It is known by its command line, not by the environment, which grandchildren inherit and users export.
    """
    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:  # gone by now, or another user's
        return None
    names = [Path(word).name.removesuffix(".exe") for word in words[:6]]
    if names and (names[0] in LAUNCHERS or (names[0].startswith("python") and LAUNCHERS & set(names[1:]))):
        return parent
    return None


def _watch(parent: psutil.Process) -> None:
    # A child whose parent has ended is given another one, except on Windows. (Linux could send a signal then, but
    # does so already at the end of the thread that has started the child.)
    while os.getppid() == parent.pid and parent.is_running():
        time.sleep(WATCH_INTERVAL)
    if sys.platform == "win32":  # where `os.kill` would end this process
        signal.raise_signal(signal.SIGTERM)
    else:  # to the process and not to this thread, so that the main thread wakes up
        os.kill(os.getpid(), signal.SIGTERM)


class _Lasting:
    """A text stream that falls silent when it cannot be written to: its reader has gone, or its disk is full."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._fall_silent()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, self._stream.fileno())
        os.close(silence)


class Stopped(Exception):
    """The run was interrupted, and has saved what it needs to be resumed."""


class StopRequest:
    """While active, SIGTERM and SIGINT are kept as a request; only a later second SIGINT interrupts at once.

    A SIGINT that is ignored, as shells start what runs in the background, stays so.

    Args:
        accelerator: All processes stop at the same step, whichever was interrupted.
    """

    def __init__(self, accelerator: "Accelerator"):
        self.accelerator = accelerator
        self.previous: dict[int, Any] = {}
        self._requested = self._all_know = False
        self._requested_at = 0.0
        self._pending: AsyncReduce | None = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
            for number in (signal.SIGTERM, signal.SIGINT):
                if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                    self.previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def request_stop(self) -> None:
        if not self._requested:
            self._requested, self._requested_at = True, time.monotonic()

    def _on_signal(self, number: int, frame) -> None:
        if self._requested and number == signal.SIGINT and time.monotonic() - self._requested_at > REPEAT_INTERVAL:
            raise KeyboardInterrupt
        self.request_stop()

    def stop_requested(self) -> bool:
        """Whether any process was interrupted; all processes call it together.

        Several hear of it when they ask next, so that no step waits until all have answered.
        """
        if self.accelerator.num_processes == 1:
            return self._requested
        if not self._all_know:
            self._all_know = self._pending is not None and int(self._pending) > 0
            import torch

            from .distributed import AsyncReduce

            self._pending = AsyncReduce(
                self.accelerator, torch.full((), int(self._requested), device=self.accelerator.device)
            )
        return self._all_know

    def raise_if_requested(self) -> None:
        """To be called by all processes together where everything is saved.

        Raises:
            Stopped: A process was interrupted.
        """
        if self.stop_requested():
            raise Stopped
