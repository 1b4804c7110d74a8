"""Blocks of timm Vision Transformers with prefix keys and values, added CLS vectors and extra tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import Attention, Mlp, apply_rot_embed_cat
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from .low_rank import LowRankUpdate

NO_UPDATES: Mapping[str, LowRankUpdate] = {}


@dataclass
class Prefix:
    """Vectors that a prompt adds to one attention layer, without projection or position embedding.

    Args:
        key, value: (B or 1, L, D): keys and values before those of the tokens (prefix tuning, arXiv 2101.00190).
        cls_key, cls_value: (D,): added to the key and value of the CLS token (APT, arXiv 2503.07979).
    """

    key: Tensor | None = None
    value: Tensor | None = None
    cls_key: Tensor | None = None
    cls_value: Tensor | None = None

    def concat(self, other: "Prefix | None") -> "Prefix":
        """Keys and values of this prefix followed by those of the other."""
        if other is None:
            return self
        assert self.key is not None and self.value is not None and other.key is not None and other.value is not None
        size = max(self.key.shape[0], other.key.shape[0])  # not len(), which an export would fix
        pairs = ((self.key, other.key), (self.value, other.value))
        return Prefix(*(torch.cat([x.expand(size, -1, -1) for x in pair], dim=1) for pair in pairs))


@dataclass
class Rotation:
    """Rotary position embedding (arXiv 2104.09864) of the patch tokens in one block.

    It turns query and key by the angles of their places in the image, so that their product depends on the distance of
    the two. What has no place is not turned: class token, registers, the token of a KD branch, and the keys of a
    prefix, which every query shall see at the same angle, wherever it is.

    Args:
        angles: (N, 2 * d) or (H, N, 2 * d): sines and cosines of the N patches.
        first: Position of the first patch token.
        half: Whether the two values of a pair are half a head apart, not neighbors.
    """

    angles: Tensor
    first: int
    half: bool

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, n, d) -> (B, H, n, d)"""
        stop = self.first + self.angles.shape[-2]
        patches = apply_rot_embed_cat(x[:, :, self.first : stop], self.angles, half=self.half)
        return torch.cat([x[:, :, : self.first], patches.to(x.dtype), x[:, :, stop:]], dim=2)


def take_rows(x: Tensor, rows: list[int] | None) -> Tensor:
    """The tokens at some positions, or all: (B, n, D) -> (B, len(rows) or n, D).

    Not `x[:, rows]`, which copies the positions to the device in every call, and the host waits for that copy.
    """
    return x if rows is None else torch.stack([x[:, row] for row in rows], dim=1)


def is_on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is on a CPU; tests replace this function to run the code for other devices on a CPU."""
    return tensor.device.type == "cpu"


def run_block(
    block: Block,
    x: Tensor,
    prefix: Prefix | None = None,
    suffix: Prefix | None = None,
    cls_index: int = 0,
    rows: list[int] | None = None,
    updates: Mapping[str, LowRankUpdate] = NO_UPDATES,
    rotation: Rotation | None = None,
    copy: Block | None = None,
) -> Tensor:
    """One transformer block.

    Args:
        x: (B, n, D) tokens.
        prefix: Keys and values before those of the tokens, and vectors added to those of the CLS token.
        suffix: Keys and values after those of the tokens.
        cls_index: Position of the CLS token.
        rows: Positions of the output tokens; all if `None`. Queries, projection and MLP are computed only for these.
        updates: Those of the weights of its linear layers: `qkv`, `proj`, `fc1` or `fc2`.
        rotation: Rotary position embedding of queries and keys; timm's `Block` has none.
        copy: What computes in place of the block, if anything: see [`compute_copy`].

    Returns:
        (B, n or len(rows), D)
    """
    block = block if copy is None else copy
    attn = cast(Attention, block.attn)
    normed = block.norm1(x)
    query, key, value = project(attn.qkv, normed, attn.attn_dim, rows, updates.get("qkv"))
    attended = attend(attn, (query, key, value), prefix, suffix, cls_index, rows, rotation)
    attended = linear(attn.proj, attn.norm(attended), updates.get("proj"))
    x = take_rows(x, rows) + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(mlp(block.mlp, block.norm2(x), updates)))


class PrefixBlock(Block):
    """timm's block with prefix and suffix.

    It is called as a module, as sharding a transformer or placing its blocks on devices relies on hooks of the blocks.
    """

    forward = run_block  # type: ignore[assignment]


def linear_layers(block: Any) -> dict[str, nn.Linear]:
    """The linear layers of a block, of `Block` or `EvaBlock`, whose weights can be updated, by name."""
    layers: dict[str, nn.Module | None] = {"qkv": block.attn.qkv, "proj": block.attn.proj}
    if type(block.mlp) is Mlp:
        layers |= {"fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
    return {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}


def linear(layer: nn.Linear, x: Tensor, update: LowRankUpdate | None) -> Tensor:
    return layer(x) if update is None else update(layer, x)


def mlp(module: nn.Module, x: Tensor, updates: Mapping[str, LowRankUpdate]) -> Tensor:
    fc1, fc2 = updates.get("fc1"), updates.get("fc2")
    if fc1 is None and fc2 is None:
        return module(x)
    assert isinstance(module, Mlp) and isinstance(module.fc1, nn.Linear) and isinstance(module.fc2, nn.Linear)
    x = module.norm(module.drop1(module.act(linear(module.fc1, x, fc1))))
    return module.drop2(linear(module.fc2, x, fc2))


def project(
    qkv: nn.Linear, x: Tensor, split: int, rows: list[int] | None, update: LowRankUpdate | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the tokens at `rows` (B, n or len(rows), split), keys and values of all tokens (B, n, split)."""
    if rows is None:
        query, key, value = linear(qkv, x, update).split(split, dim=-1)
    elif update is not None:
        query = update(qkv, take_rows(x, rows), slice(split))
        key, value = update(qkv, x, slice(split, None)).chunk(2, dim=-1)
    else:
        weight, bias = qkv.weight, qkv.bias
        query_bias, key_value_bias = (None, None) if bias is None else (bias[:split], bias[split:])
        query = F.linear(take_rows(x, rows), weight[:split], query_bias)
        key, value = F.linear(x, weight[split:], key_value_bias).chunk(2, dim=-1)
    return query, key, value


def attend(
    attn: Any,
    projected: tuple[Tensor, Tensor, Tensor],
    prefix: Prefix | None,
    suffix: Prefix | None,
    cls_index: int,
    rows: list[int] | None,
    rotation: Rotation | None,
) -> Tensor:
    """Attention over prefix, tokens and suffix.

    Args:
        attn: The attention module, of which `num_heads`, `q_norm`, `k_norm` and `scale` are used.
        projected: Queries (B, n or len(rows), D), keys and values (B, n, D) of the tokens.
        rows: Positions of the queries; see [`run_block`]. They may not be patches where there is a rotation.

    Returns:
        (B, n or len(rows), D), before the output projection.
    """
    query, key, value = projected
    if prefix is not None and prefix.cls_key is not None and prefix.cls_value is not None:
        around = (0, 0, cls_index, key.shape[1] - cls_index - 1)
        key = key + F.pad(prefix.cls_key[None].to(key.dtype), around)
        value = value + F.pad(prefix.cls_value[None].to(value.dtype), around)

    query, key, value = (_heads(t, attn.num_heads) for t in (query, key, value))
    query, key = attn.q_norm(query), attn.k_norm(key)
    if rotation is not None:
        key = rotation(key)
        query = rotation(query) if rows is None else query
    keys, values = [key], [value]
    if prefix is not None and prefix.key is not None and prefix.value is not None:
        keys.insert(0, _prefix_heads(prefix.key, key))
        values.insert(0, _prefix_heads(prefix.value, value))
    if suffix is not None and suffix.key is not None and suffix.value is not None:
        keys.append(_prefix_heads(suffix.key, key))
        values.append(_prefix_heads(suffix.value, value))
    if len(keys) > 1:
        key, value = torch.cat(keys, dim=2), torch.cat(values, dim=2)
    return _attend(query, key, value, attn.scale).transpose(1, 2).flatten(2)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Scaled dot-product attention over (B, H, n, d)."""
    if not is_on_cpu(query) or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    # On a CPU in bfloat16, torch's fused attention (2.14) is slow in two ways.
    if torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
        # Its backward pass takes four times as long as that of explicit matrix products.
        heads = query.shape[:2]
        query, key, value = (t.flatten(0, 1) for t in (query, key, value))
        with torch.autocast("cpu", enabled=False):  # autocast would compute the softmax in float32
            scores = torch.baddbmm(query.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=scale)
            return (scores.softmax(dim=-1) @ value).unflatten(0, heads)
    # Its forward pass takes half as long if the number of keys is a multiple of 16.
    spare = -key.shape[2] % 16
    mask = torch.arange(key.shape[2] + spare) < key.shape[2]
    key, value = (F.pad(t, (0, 0, 0, spare)) for t in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[None, None, None], scale=scale)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, n, H*d) -> (B, H, n, d)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _prefix_heads(vectors: Tensor, like: Tensor) -> Tensor:
    """(B or 1, L, H*d) -> (B, H, L, d), in the dtype of the keys of the tokens."""
    return _heads(vectors.to(like.dtype), like.shape[1]).expand(like.shape[0], -1, -1, -1)
