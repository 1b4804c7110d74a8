"""Clock, memory and operation counters, and the speed of a linear layer on this machine."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ..training.dry_run import CPU_ATTENTION


class OwnMemory(threading.Thread):
    """Growth of a process's anonymous memory (without mapped files), sampled every 5 ms; Linux only."""

    def __init__(self):
        super().__init__(daemon=True)
        self._done = threading.Event()
        self.peak = self.kept = 0

    def __enter__(self) -> "OwnMemory":
        self._before = _anonymous_bytes()
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kept = _anonymous_bytes() - self._before
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, _anonymous_bytes() - self._before)


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def peak_growth(step: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `step` allocates at its peak; None where this cannot be measured."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # returns what the allocator has kept from earlier steps
    with OwnMemory() as memory:
        step()
    return memory.peak


def flops_of(step: Callable[[], object]) -> int:
    """Floating-point operations of the step's matrix products."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step()
    return counter.get_total_flops()


def now(device: torch.device) -> float:
    """Seconds, after the device has finished its queue; processor time on a CPU with one thread, which other load does
    not affect."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def linear_rate(rows: int, width: int, device: torch.device, dtype: torch.dtype | None, seconds: float = 0.3) -> float:
    """Operations a second of a linear layer width -> 4 width on (rows, width), under autocast if there is a dtype."""
    x, weight = torch.randn(rows, width, device=device), torch.randn(4 * width, width, device=device)
    if dtype is not None:
        x, weight = x.to(dtype), weight.to(dtype)
    F.linear(x, weight)
    began, count = now(device), 0
    while now(device) - began < seconds:
        F.linear(x, weight)
        count += 1
    return count * 2 * rows * 4 * width**2 / (now(device) - began)
