"""Full precision for results that must not depend on autocast, TF32 or the device."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # device types


def in_full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Context that disables autocast on the device of the tensor, and TF32 where that is a CUDA device.

    The gradients of matrix products within it may still be computed in TF32: the backward pass is outside.
    """
    autocast = torch.autocast(tensor.device.type, enabled=False)
    return _without_tf32(autocast) if tensor.device.type == "cuda" else autocast


def to_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64 on its device, or on the CPU if the device has no float64."""
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()


@contextmanager
def _without_tf32(autocast: torch.autocast) -> Iterator[None]:
    products = torch.backends.cuda.matmul
    try:
        allowed = products.allow_tf32
    except RuntimeError:  # torch refuses to read it where someone has set `fp32_precision` instead
        allowed = products.fp32_precision == "tf32"
    with autocast:
        products.allow_tf32 = False
        try:
            yield
        finally:
            products.allow_tf32 = allowed
