"""A run that is told to stop finishes its step and saves."""

import signal
import threading
import time

import torch
from accelerate import Accelerator

from .late_count import LateCount

PATIENCE = 2  # seconds in which a further Ctrl-C counts as the first: terminal and launcher may both send one


class Stopped(Exception):
    """The run was told to stop, and has saved what it needs to go on."""


class StopRequest:
    """While active, SIGTERM and SIGINT are kept as a request; only a later second SIGINT interrupts at once.

    A SIGINT that is ignored, as shells start what runs in the background, stays so.

    Args:
        accelerator: All processes stop at the same step, whichever was told.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.previous = accelerator, {}
        self._told = self._agreed = False
        self._told_at = 0.0
        self._asked: LateCount | None = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
            for number in (signal.SIGTERM, signal.SIGINT):
                if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                    self.previous[number] = signal.signal(number, self._keep)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def make(self) -> None:
        if not self._told:
            self._told, self._told_at = True, time.monotonic()

    def _keep(self, number: int, frame) -> None:
        if self._told and number == signal.SIGINT and time.monotonic() - self._told_at > PATIENCE:
            raise KeyboardInterrupt
        self.make()

    def made(self) -> bool:
        """Whether any process was told to stop; to be asked by all processes together.

        Several hear of it when they ask next, so that no step waits until all have answered.
        """
        if self.accelerator.num_processes == 1:
            return self._told
        if not self._agreed:
            self._agreed = self._asked is not None and int(self._asked) > 0
            self._asked = LateCount(self.accelerator, torch.tensor(int(self._told), device=self.accelerator.device))
        return self._agreed

    def heed(self) -> None:
        """To be called by all processes together where everything is saved.

        Raises:
            Stopped: A process was told to stop.
        """
        if self.made():
            raise Stopped
