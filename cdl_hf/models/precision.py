"""Full precision for results that must not depend on autocast or the device."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # device types


def in_full_precision(tensor: Tensor) -> torch.autocast:
    """Context that disables autocast on the device of the tensor."""
    return torch.autocast(tensor.device.type, enabled=False)


def to_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64 on its device, or on the CPU if the device has no float64."""
    return (tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()
