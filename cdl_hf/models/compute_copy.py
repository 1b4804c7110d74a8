"""Copies in bfloat16 of the weights of frozen blocks, for mixed precision on a GPU.

Autocast casts each frozen weight anew in every pass: its cache only holds weights that require gradients.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .prefix_attention import is_on_cpu


class _Source(NamedTuple):
    """A weight when it was copied. Weak references, so that a weight that is replaced or moved leaves no memory."""

    weight: ReferenceType[Tensor]
    storage: ReferenceType[UntypedStorage]  # `module.to` and `weight.data = ...` keep weight and version
    version: int

    @classmethod
    def of(cls, weight: Tensor) -> "_Source":
        return cls(ref(weight), ref(weight.untyped_storage()), weight._version)

    def is_still(self, weight: Tensor) -> bool:
        return (
            self.weight() is weight
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

    It is made in the first pass, and again after a change of the block's weights; only what is written to
    `weight.data` in place goes unnoticed. A block has none on a CPU, without autocast to bfloat16, where a larger
    module is compiled with it, and while its weights are trained, not in float32, elsewhere than `x` or in shards.
    """
    if is_on_cpu(x) or torch.compiler.is_compiling() or not _autocasts_to_bf16(x.device.type):
        return None
    is_sharded = hasattr(block, "unshard")  # FSDP2's method, also while the weights are whole
    if not block.training and not is_sharded:
        weights, kept = _weights(block), _COPIES.get(block)
        if (
            kept is not None
            and len(kept.sources) == len(weights)
            and all(map(_Source.is_still, kept.sources, weights))
        ):
            return kept.block
        if all(_is_frozen(weight, x.device) for weight in weights):
            kept = _COPIES[block] = _Copy([_Source.of(weight) for weight in weights], _copied(block, weights))
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


def _copied(block: nn.Module, weights: list[Tensor]) -> nn.Module:
    with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be used in training
        copies = [weight.to(torch.bfloat16) for weight in weights]
    known = {
        id(weight): nn.Parameter(copied, requires_grad=False) if isinstance(weight, nn.Parameter) else copied
        for weight, copied in zip(weights, copies, strict=True)
    }
    return copy.deepcopy(block, known)


def _is_frozen(weight: Tensor, device: torch.device) -> bool:
    """Whether it is a whole, frozen weight in float32 on the device, whose changes are counted."""
    return (
        not is_traceable_wrapper_subclass(weight)  # such as DTensor, of shards
        and weight.dtype == torch.float32
        and weight.device == device
        and not weight.requires_grad
        and not weight.is_inference()
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
