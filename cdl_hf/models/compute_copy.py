"""Copies in bfloat16 of the weights of frozen blocks, for mixed precision on a GPU.

Autocast casts each frozen weight anew in every pass: its cache only holds weights that require gradients.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .prefix_attention import is_on_cpu


class _Source(NamedTuple):
    """A weight when it was copied. The weak reference leaves a weight that is replaced or moved no memory."""

    weight: int
    storage: ReferenceType[UntypedStorage]  # `module.to` and `weight.data = ...` keep weight and version
    version: int

    @classmethod
    def of(cls, weight: Tensor, forget: Callable[[object], None]) -> "_Source":
        return cls(id(weight), ref(weight.untyped_storage(), forget), weight._version)

    def is_still(self, weight: Tensor) -> bool:
        return (
            self.weight == id(weight)
            and self.storage() is weight.untyped_storage()
            and self.version == weight._version
            and not weight.requires_grad
        )


class _Copy(NamedTuple):
    sources: list[_Source]
    block: nn.Module


# Not attributes of the blocks: state dicts, copies and pickles of a model must not hold them.
_COPIES: WeakKeyDictionary[nn.Module, _Copy] = WeakKeyDictionary()


def compute_copy(block: nn.Module, x: Tensor) -> nn.Module | None:
    """The block in bfloat16, if autocast would cast its weights for tokens `x`; else `None`.

    It is made in the first pass, and again after a change of the block's weights; what is written to `weight.data` in
    place, or by a collective operation, goes unnoticed, as does another attribute that is set. A block has none on a
    CPU, without autocast to bfloat16, where a larger module is compiled with it or something else runs in place of a
    module's `forward`, and while its weights are trained, not in float32, elsewhere than `x` or in shards of its own.
    """
    if is_on_cpu(x) or torch.compiler.is_compiling() or not _autocasts_to_bf16(x.device.type):
        return None
    is_sharded = hasattr(type(block), "unshard")  # FSDP2's method, also while the weights are whole
    if not block.training and not is_sharded:
        weights, kept = _weights(block), _COPIES.get(block)
        if (
            kept is not None
            and len(kept.sources) == len(weights)
            and all(map(_Source.is_still, kept.sources, weights))
        ):
            return kept.block
        if all(_is_frozen(weight, x.device) for weight in weights) and not _is_patched(block):
            of_block = ref(block)

            def forget(_: object) -> None:
                if (known := of_block()) is not None:
                    _COPIES.pop(known, None)

            with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be used in training
                kept = _Copy([_Source.of(weight, forget) for weight in weights], _in_bf16(block))
            _COPIES[block] = kept
            return kept.block
    _COPIES.pop(block, None)
    return None


def copied_weights(module: nn.Module) -> Iterator[Tensor]:
    """The weights of the copies that the blocks in a module have now."""
    for child in module.modules():
        if (kept := _COPIES.get(child)) is not None:
            yield from kept.block.parameters()


def _autocasts_to_bf16(device: str) -> bool:
    return (
        torch.amp.is_autocast_available(device)  # not on `meta`, of which the next call knows nothing
        and torch.is_autocast_enabled(device)
        and torch.get_autocast_dtype(device) == torch.bfloat16
    )


def _in_bf16(module: nn.Module) -> nn.Module:
    """The module with its weights in bfloat16. It shares all else, such as hooks, with the module."""
    twin = module.__new__(type(module))
    twin.__dict__ |= module.__dict__
    twin.__dict__["_compiled_call_impl"] = None
    twin.__dict__["_buffers"] = {n: t if t is None else t.to(torch.bfloat16) for n, t in module._buffers.items()}
    twin.__dict__["_parameters"] = {
        name: weight if weight is None else nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
        for name, weight in module._parameters.items()
    }
    twin.__dict__["_modules"] = {n: m if m is None else _in_bf16(m) for n, m in module._modules.items()}
    return twin


def _is_patched(block: nn.Module) -> bool:
    """Whether a module has a `forward` of its own, as Accelerate's hooks set it, which would use its own weights."""
    return any("forward" in module.__dict__ for module in block.modules())


def _is_frozen(weight: Tensor, device: torch.device) -> bool:
    """Whether it is a whole, frozen weight in float32 on the device, whose changes are counted."""
    return (
        not is_traceable_wrapper_subclass(weight)  # such as DTensor, of shards
        and weight.dtype == torch.float32
        and weight.device == device
        and not weight.requires_grad
        and not weight.is_inference()
        and weight.numel() > 0  # empty ones are elsewhere, in shards of another kind
    )


def _weights(block: nn.Module) -> list[Tensor]:
    """Parameters and buffers, in half the time of torch's own iterators: this runs for each block in each pass."""
    found: list[Tensor | None] = []
    modules: list[nn.Module | None] = [block]
    while modules:
        module = modules.pop()
        if module is not None:
            found += module._parameters.values()
            found += module._buffers.values()
            modules += module._modules.values()
    return [tensor for tensor in found if tensor is not None]
