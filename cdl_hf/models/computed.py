"""Base class of modules that are computed from sums over images."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NO_STATISTICS = (
    "{} needs its sums over the earlier images to learn further ones: load the model with load_statistics=True (they "
    "are there if it was saved with save_statistics), or resume from the checkpoints of its run"
)


def check_statistic(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """
    Raises:
        ValueError: A tensor that was saved to learn further classes is missing, not finite or of another model.
    """
    if tensor is None:
        raise ValueError(f"the statistics are incomplete: {name!r} is missing")
    if tensor.shape != shape or tensor.dtype != dtype:
        found = f"{tuple(tensor.shape)} in {tensor.dtype}"
        raise ValueError(f"the statistics are of another model: {name!r} is {found}, not {shape} in {dtype}")
    if not tensor.isfinite().all():
        raise ValueError(f"the statistics are not finite numbers: {name!r}")


class Computed(nn.Module):
    """Base class of what is computed from sums over images, without gradients."""

    for_further_classes: tuple[str, ...] = ()  # names of the tensors that are needed only to add classes

    @property
    def num_values(self) -> int:
        """Number of values that a prediction needs; they are not parameters."""
        return sum(buffer.numel() for buffer in self.buffers())

    @property
    def num_statistics(self) -> int:
        """Number of values that are kept only to add classes."""
        return 0

    def statistics(self) -> dict[str, Tensor]:
        """Tensors that are needed to add classes, on the CPU; empty before the first fit."""
        return {}

    def load_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Restores the output of [`statistics`]; without it, no classes can be added."""

    def init_weights(self) -> None:
        """Forgets all images."""
        raise NotImplementedError
