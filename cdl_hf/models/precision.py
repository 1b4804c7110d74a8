"""Where a result must not depend on the precision or the device that a user has chosen for speed."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # kinds of devices


def in_full_precision(tensor: Tensor) -> torch.autocast:
    """A context on the tensor's device in which autocast rounds nothing."""
    return torch.autocast(tensor.device.type, enabled=False)


def to_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64: on its device, or on the CPU where the device has no such numbers."""
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()
