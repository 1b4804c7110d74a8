"""Copies in bfloat16 of the weights of frozen blocks, for mixed precision on a GPU.

Autocast casts each frozen weight anew in every pass: its cache only holds weights that require gradients.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, UntypedStorage, nn

from .prefix_attention import is_on_cpu


class _Source(NamedTuple):
    """A weight when it was copied. Weak references, so that a weight that is replaced or moved leaves no memory."""

    weight: ReferenceType[Tensor]
    storage: ReferenceType[UntypedStorage]  # `module.to` and `weight.data = ...` keep weight and version
    version: int

    def is_still(self, weight: Tensor) -> bool:
        return (
            self.weight() is weight and self.storage() is weight.untyped_storage() and self.version == weight._version
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
    weights = list(_weights(block))
    is_sharded = hasattr(block, "unshard")  # FSDP2's method, also while the weights are whole
    if block.training or is_sharded or not all(_is_frozen(weight, x.device) for weight in weights):
        _COPIES.pop(block, None)
        return None
    kept = _COPIES.get(block)
    if kept is None or not (
        len(kept.sources) == len(weights)
        and all(source.is_still(weight) for source, weight in zip(kept.sources, weights, strict=True))
    ):
        sources = [_Source(ref(weight), ref(weight.untyped_storage()), weight._version) for weight in weights]
        kept = _COPIES[block] = _Copy(sources, _copied(block))
    return kept.block


def _autocasts_to_bf16(device: str) -> bool:
    return (
        torch.amp.is_autocast_available(device)  # not on `meta`, of which the next call knows nothing
        and torch.is_autocast_enabled(device)
        and torch.get_autocast_dtype(device) == torch.bfloat16
    )


def _copied(block: nn.Module) -> nn.Module:
    with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be used in training
        return copy.deepcopy(block).to(torch.bfloat16)


def _is_frozen(weight: Tensor, device: torch.device) -> bool:
    """Whether it is a whole, frozen weight in float32 on the device, whose changes are counted."""
    return (
        type(weight) is nn.Parameter  # a shard is a DTensor
        and weight.dtype == torch.float32
        and weight.device == device
        and not weight.requires_grad
        and not weight.is_inference()
    )


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """As `module.parameters()`, which takes twice as long: this runs for each block in each pass."""
    yield from (weight for weight in module._parameters.values() if weight is not None)
    for child in module._modules.values():
        if child is not None:
            yield from _weights(child)
