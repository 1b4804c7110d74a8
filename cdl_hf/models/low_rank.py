"""Low-rank updates of a linear layer's weight: the current task's, and the merged ones of earlier tasks."""

import math
from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .computed import Computed, check_statistic
from .precision import in_full_precision


class LowRankUpdate(Computed):
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
        fisher: (out, in), diagonal of the current task's Fisher information, while it is measured and until the merge.
        precision: (out, in), sum of those of the merged tasks; `None` where none was measured.
        pull: (out, in), sum of each one times that task's trained change of the frozen weight.
    """

    for_further_classes = ("fisher", "precision", "pull")
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
        self.is_measuring = False
        self.fisher: Tensor | None = None
        self.precision: Tensor | None = None
        self.pull: Tensor | None = None
        self._folded: tuple[Tensor, Tensor, Tensor, int, Tensor] | None = None

    def init_weights(self) -> None:
        """Initializes the factors for a new stream, without any merged task."""
        init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as peft does
        for tensor in (self.up, self.merged_down, self.merged_up):
            init.zeros_(tensor)
        self.load_statistics({})

    def statistics(self) -> dict[str, Tensor]:
        """What a merge by Fisher information needs of the tasks so far, on the CPU."""
        found = {name: getattr(self, name) for name in self.for_further_classes}
        return {name: tensor.cpu() for name, tensor in found.items() if tensor is not None}

    def load_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        for name, tensor in statistics.items():
            check_statistic(name, tensor, (self.up.shape[0], self.down.shape[1]), torch.float32)
        for name in self.for_further_classes:
            setattr(self, name, statistics[name].to(self.up.device) if name in statistics else None)

    @torch.no_grad()
    def start(self) -> None:
        """Draws new factors, whose product is zero. In place: an optimizer would keep a replaced tensor."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        nn.init.zeros_(self.up)

    @torch.no_grad()
    def merge(self, task_id: int, coefficient: float) -> None:
        """Moves the trained update, times the coefficient, to those of the merged tasks."""
        if self.fisher is not None:
            change = self.fisher * (self._merged() + self._trained())
            self.pull = change if self.pull is None else self.pull + change
            self.precision = self.fisher if self.precision is None else self.precision + self.fisher
            self.fisher = None
        self.merged_down[task_id] = self.down
        self.merged_up[task_id] = coefficient * self.scale * self.up
        self.up.zero_()

    @torch.no_grad()
    def merging_terms(self) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of the coefficient that adds least to the losses of all tasks; see [`LoRA`]."""
        assert self.fisher is not None  # measured before the merge
        trained = self._trained()
        of_this_task = (self.fisher * trained.square()).sum()
        if self.precision is None or self.pull is None:
            return of_this_task, of_this_task
        pull = (self.pull - self.precision * self._merged()) * trained
        return of_this_task + pull.sum(), of_this_task + (self.precision * trained.square()).sum()

    def _trained(self) -> Tensor:
        with in_full_precision(self.up):
            return self.scale * self.up.float() @ self.down.float()

    def _merged(self) -> Tensor:
        with in_full_precision(self.merged_up):
            return self.merged_up.float().transpose(0, 1).flatten(1) @ self.merged_down.float().flatten(0, 1)

    @torch.no_grad()
    def _add_fisher(self, x: Tensor, rows: slice, gradient: Tensor) -> None:
        """Adds the squared gradient of each image's loss, from an input (B, n, in) and its output's gradient."""
        assert self.fisher is not None
        for inputs, outputs in zip(x.float().split(8), gradient.float().split(8), strict=True):  # dense for each image
            self.fisher[rows] += torch.einsum("bno,bni->boi", outputs, inputs).square().sum(0)

    def forward(self, layer: nn.Linear, x: Tensor, rows: slice | None = None) -> Tensor:
        """Output of the layer with the updated weight.

        Args:
            x: (..., in)
            rows: Outputs to compute; all if `None`.

        Returns:
            (..., number of rows)
        """
        weight: Tensor = self.folded(layer.weight)
        bias: Tensor | None = layer.bias
        if rows is not None:
            weight, bias = weight[rows], None if bias is None else bias[rows]
        output = F.linear(x, weight, bias)
        if self.training:
            up = self.up if rows is None else self.up[rows]
            output = output + self.scale * F.linear(F.linear(x, self.down), up)
            if self.is_measuring:
                output.register_hook(partial(self._add_fisher, x.detach(), rows or slice(None)))
        return output

    def folded(self, weight: Tensor) -> Tensor:
        """The layer's weight (out, in) plus the merged updates; computed again only where one of them has changed."""
        if torch.compiler.is_compiling():
            return self._fold(weight)
        buffers, kept = self._buffers, self._folded  # attributes of modules are slow: this runs for every layer
        down, up = cast(Tensor, buffers["merged_down"]), cast(Tensor, buffers["merged_up"])
        changes = weight._version + down._version + up._version  # none of them ever falls
        if kept is not None and kept[0] is weight and kept[1] is down and kept[2] is up and kept[3] == changes:
            return kept[4]
        with torch.inference_mode(False):  # an inference tensor could not be used in training
            folded = self._fold(weight)
        self._folded = weight, down, up, changes, folded
        return folded

    @torch.no_grad()
    def _fold(self, weight: Tensor) -> Tensor:
        return (weight.float() + self._merged()).to(weight.dtype)
