"""What a step costs, found without doing it: its peak memory and its floating-point operations.

The step runs on fake tensors, which have shapes but no content: any model on any batch takes seconds and no memory.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from ..distillation import Supervised

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Footprint:
    """Cost of a step on one process.

    Attributes:
        peak_bytes: Tensors alive at once at the most, all weights among them.
        flops: Floating-point operations of the matrix products, a product and its sum counted as two.
    """

    peak_bytes: int = 0
    flops: int = 0


class FakeSteps:
    """The steps of a run on fake tensors.

    Args:
        modules: Role -> what is trained, on the meta device and with a task begun. They cannot be used otherwise
            afterwards.
        side: Of the images, in pixels.
        device: What the steps would run on.
        precision: Accelerate's: `"no"`, `"bf16"` or `"fp16"`.
    """

    def __init__(self, modules: dict[str, Supervised], side: int, device: torch.device, precision: str = "no"):
        self.modules, self.side, self.device, self.precision = modules, side, device, precision
        self.models = [module.student for module in reversed(modules.values())]  # the student's query serves both
        self.shares_query = [self.models[0].shares_query_with(model) for model in self.models]
        self.fake_mode = FakeTensorMode()
        with self.fake_mode:
            for module in modules.values():
                module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))

    def training(self, roles: Iterable[str], batch_size: int) -> Footprint:
        """Of a step of each of the roles in turn, on the same `batch_size` images."""
        modules = [self.modules[role].train() for role in roles]
        optimizers = [torch.optim.Adam(p for p in module.parameters() if p.requires_grad) for module in modules]
        with self._counted() as footprint:
            for _ in range(2):  # in the first one the optimizer's moments are not there yet
                pixel_values = self._images(batch_size)
                for module, optimizer in zip(modules, optimizers, strict=True):
                    first = module.student.config.current_columns.start
                    labels = torch.full((batch_size,), first, device=self.device)
                    with self._autocast():
                        loss = module(pixel_values=pixel_values, labels=labels)["loss"]
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
        for module in modules:
            module.eval()
        footprint.flops //= 2
        return footprint

    def evaluation(self, batch_size: int) -> Footprint:
        """Of all models on `batch_size` images, as [`Evaluator`] does it."""
        with self._counted() as footprint, torch.no_grad(), self._autocast():
            pixel_values = self._images(batch_size)
            query = self.models[0].query(pixel_values)
            for model, shares in zip(self.models, self.shares_query, strict=True):
                model.eval()(pixel_values, query=query if shares else None)
        return footprint

    @contextmanager
    def _counted(self) -> Iterator[Footprint]:
        """Costs of what is done in it; the footprint is filled in at its end."""
        footprint = Footprint()
        memory, flops = _LiveMemory(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        for module in self.modules.values():
            for tensor in (*module.parameters(), *module.buffers()):
                memory.add(tensor)
        with self.fake_mode, memory, flops:
            yield footprint
        footprint.peak_bytes, footprint.flops = memory.peak, flops.get_total_flops()

    def _images(self, batch_size: int) -> Tensor:
        return torch.empty(batch_size, 3, self.side, self.side, device=self.device)

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


class _LiveMemory(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, storage: int, size: int) -> None:
        self._alive.discard(storage)
        self.now -= size


def _attention(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop(query_shape, key_shape, value_shape)


def _attention_backward(grad_shape, query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    # four products for the forward pass's two; that the scores are computed again is not counted, for it is a choice
    return 2 * sdpa_flop(query_shape, key_shape, value_shape)


# Torch's counter does not know the fused attention of CPUs.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
