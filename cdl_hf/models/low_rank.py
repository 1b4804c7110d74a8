"""Low-rank updates of a linear layer's weight: the current task's, and the merged ones of earlier tasks."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .precision import in_full_precision


class LowRankUpdate(nn.Module):
    """LoRA (arXiv 2106.09685, section 4.1) of one linear layer of a frozen transformer, for a stream of tasks.

    In training the layer's weight is W + sum_t up_t down_t + scale * up down: the sum is over the merged tasks, and
    the last term is trained. In evaluation the last term is left out, and the sum is folded into the weight once.

    Args:
        layer: The linear layer, of whose weight only the shape is read.
        rank: Rank of the update of each task.
        scale: Factor of the trained update.
        num_tasks: Number of tasks whose updates can be merged.

    Attributes:
        down, up: (rank, in) and (out, rank), the trained factors.
        merged_down, merged_up: (num_tasks, rank, in) and (num_tasks, out, rank), those of the merged tasks, with all
            weights in `merged_up`; zero for tasks to come.
    """

    merged_down: Tensor
    merged_up: Tensor

    def __init__(self, layer: nn.Linear, rank: int, scale: float, num_tasks: int):
        super().__init__()
        self.scale = scale
        out_features, in_features = layer.weight.shape
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.empty(out_features, rank))
        self.register_buffer("merged_down", torch.empty(num_tasks, rank, in_features))
        self.register_buffer("merged_up", torch.empty(num_tasks, out_features, rank))
        self._folded: tuple[list[tuple[Tensor, int]], Tensor] | None = None

    def init_weights(self) -> None:
        """Initializes the factors for a new stream, without any merged task."""
        init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as peft does
        for tensor in (self.up, self.merged_down, self.merged_up):
            init.zeros_(tensor)

    @torch.no_grad()
    def start(self) -> None:
        """Draws new factors, whose product is zero. In place: an optimizer would keep a replaced tensor."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        nn.init.zeros_(self.up)

    @torch.no_grad()
    def merge(self, task_id: int, coefficient: float) -> None:
        """Moves the trained update, times the coefficient, to those of the merged tasks."""
        self.merged_down[task_id] = self.down
        self.merged_up[task_id] = coefficient * self.scale * self.up
        self.up.zero_()

    def forward(self, layer: nn.Linear, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """Output of the layer with the updated weight.

        Args:
            x: (..., in)
            rows: Outputs to compute.

        Returns:
            (..., number of rows)
        """
        bias = None if layer.bias is None else layer.bias[rows]
        output = F.linear(x, self.folded(layer.weight)[rows], bias)
        if self.training:
            output = output + self.scale * F.linear(F.linear(x, self.down), self.up[rows])
        return output

    def folded(self, weight: Tensor) -> Tensor:
        """The layer's weight (out, in) plus the merged updates; computed again only where one of them has changed."""
        if torch.compiler.is_compiling():
            return self._fold(weight)
        sources = (weight, self.merged_down, self.merged_up)
        if self._folded is not None:
            versions, folded = self._folded
            if all(new is old and new._version == seen for new, (old, seen) in zip(sources, versions, strict=True)):
                return folded
        with torch.inference_mode(False):  # an inference tensor could not be used in training
            folded = self._fold(weight)
        self._folded = [(source, source._version) for source in sources], folded
        return folded

    @torch.no_grad()
    def _fold(self, weight: Tensor) -> Tensor:
        with in_full_precision(weight):
            delta = self.merged_up.float().transpose(0, 1).flatten(1) @ self.merged_down.float().flatten(0, 1)
            return (weight.float() + delta).to(weight.dtype)
