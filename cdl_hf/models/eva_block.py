"""Blocks of timm's Eva networks (EVA-02, DINOv3, PE) with prefix keys and values: rotary positions, biases apart."""

from collections.abc import Mapping
from typing import Any

from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor

from .low_rank import LowRankUpdate
from .prefix_attention import NO_UPDATES, Prefix, Rotation, attend, linear, mlp, project, take_rows


def run_eva_block(
    block: EvaBlock,
    x: Tensor,
    prefix: Prefix | None = None,
    suffix: Prefix | None = None,
    cls_index: int = 0,
    rows: list[int] | None = None,
    updates: Mapping[str, LowRankUpdate] = NO_UPDATES,
    rotation: Rotation | None = None,
    copy: EvaBlock | None = None,
) -> Tensor:
    """As [`run_block`]."""
    block = block if copy is None else copy
    attn: Any = block.attn
    projected = _project(attn, block.norm1(x), rows, updates.get("qkv"))
    attended = attend(attn, projected, prefix, suffix, cls_index, rows, rotation)
    attended = linear(attn.proj, attn.norm(attended), updates.get("proj"))
    if block.gamma_1 is not None:
        attended = block.gamma_1 * attended
    x = take_rows(x, rows) + block.drop_path1(attended)
    out = mlp(block.mlp, block.norm2(x), updates)
    return x + block.drop_path2(out if block.gamma_2 is None else block.gamma_2 * out)


class PrefixEvaBlock(EvaBlock):
    """timm's block with prefix and suffix; see [`PrefixBlock`]."""

    forward = run_eva_block  # type: ignore[assignment]


def _project(
    attn: Any, x: Tensor, rows: list[int] | None, update: LowRankUpdate | None
) -> tuple[Tensor, Tensor, Tensor]:
    if attn.qkv is None:
        return attn.q_proj(take_rows(x, rows)), attn.k_proj(x), attn.v_proj(x)
    query, key, value = project(attn.qkv, x, attn.num_heads * attn.head_dim, rows, update)
    if type(attn) is EvaAttention and attn.q_bias is not None:  # keys have none
        return query + attn.q_bias, key, value + attn.v_bias
    return query, key, value
