"""A number that a device has still to compute, asked for now and read later."""

import torch
from accelerate import Accelerator
from torch import Tensor


class LateCount:
    """A sum over all processes. Only reading it waits, and for no more than the device was given before it was asked.

    A sum asked for between two passes is there while the device is busy with the second, which need not stop for it.

    Args:
        value: A scalar on the accelerator's device, from each process.
    """

    def __init__(self, accelerator: Accelerator, value: Tensor):
        self._count = accelerator.reduce(value).to("cpu", non_blocking=True)
        self._there = None
        if accelerator.device.type != "cpu":
            self._there = torch.Event(accelerator.device)
            self._there.record()

    def __int__(self) -> int:
        if self._there is not None:
            self._there.synchronize()
        return int(self._count)
