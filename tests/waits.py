"""Places where code would wait for a GPU, found on a CPU."""

import sys
from collections import Counter

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

READS = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.nonzero, Tensor.unique, Tensor.masked_select),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__array__, Tensor.__contains__),
    *(torch.nonzero, torch.unique, torch.masked_select, torch.equal, torch.allclose),
}
WRITES = {torch.tensor, torch.as_tensor}
INDEXES = {Tensor.__getitem__, Tensor.__setitem__}


class Waits(TorchFunctionMode):
    """Counts the calls, by file and line, for which a host would wait if all tensors were on a GPU.

    These are reads of values, copies to a device or from it that are not `non_blocking`, tensors made of Python's
    values on a device, and indices that are lists or masks. What was copied to the CPU without waiting may be read.
    Adam's own reads are not counted: its counts of steps are on the CPU.
    """

    def __init__(self):
        super().__init__()
        self.places: Counter[str] = Counter()
        self._on_host: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        place = self._place()
        if self._waits(func, args, kwargs) and "torch/optim" not in place:
            self.places[place] += 1
        result = func(*args, **kwargs)
        if func is Tensor.to and str(args[1]) == "cpu" and kwargs.get("non_blocking"):
            result = result.clone()  # on a CPU it is the same tensor
            self._on_host.append(result)
        return result

    def _waits(self, func, args: tuple, kwargs: dict) -> bool:
        if func in READS:
            return not any(args[0] is tensor for tensor in self._on_host)
        if func in WRITES:
            return kwargs.get("device") is not None
        if func in INDEXES:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return any(isinstance(i, list) or (isinstance(i, Tensor) and i.dtype == torch.bool) for i in index)
        if func is Tensor.to:
            devices = [each for each in tree_leaves((args[1:], kwargs)) if isinstance(each, (str, torch.device))]
            return bool(devices) and not kwargs.get("non_blocking")
        return False

    @staticmethod
    def _place() -> str:
        frame = sys._getframe(2)
        return f"{'/'.join(frame.f_code.co_filename.split('/')[-3:])}:{frame.f_lineno}"
