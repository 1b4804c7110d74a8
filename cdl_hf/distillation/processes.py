"""What losses need of the other processes' images, where they are no means over images."""

from typing import Any

import torch
from torch import Tensor, distributed


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (B, ...) of every process, in the order of their ranks, (P B, ...); each must have as many.

    Every process is to compute the same loss of them. Its gradient reaches a process's own rows P times as large, so
    that the mean over the processes, which DistributedDataParallel makes of the weights' gradients, is that of the
    loss.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        processes = distributed.get_world_size()
        return processes * gradient.chunk(processes)[distributed.get_rank()]
