"""Blocks of timm Vision Transformers with prefix keys and values, added CLS vectors and extra tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from timm.layers import Attention, HybridEmbed, Mlp, PatchEmbed
from timm.models import get_model_input_config
from timm.models.vision_transformer import Block, VisionTransformer
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


def check_backbone(backbone: torch.nn.Module, name: str) -> None:
    """Checks that a network is a plain timm Vision Transformer with a class token.

    Raises:
        ValueError: It is of another family, its patch embedding is not a projection or a convolutional stem, its
            blocks are not timm's standard pre-norm blocks, it has no class token, or its images are not square or do
            not have three channels.
    """
    if type(backbone) is not VisionTransformer:  # subclasses have tokens or paths of their own
        raise ValueError(f"{name} is a {type(backbone).__name__}; prompts need a plain timm VisionTransformer")
    if not backbone.has_class_token:
        raise ValueError(f"{name} has no class token, which heads and queries need; choose a backbone that has one")
    if type(backbone.patch_embed) not in (PatchEmbed, HybridEmbed):
        raise ValueError(
            f"{name} embeds its patches with {type(backbone.patch_embed).__name__}; prompts need timm's PatchEmbed "
            "or HybridEmbed"
        )
    check_images(backbone, name)
    for block in backbone.blocks:
        if type(block) is not Block:
            raise ValueError(f"{name} has blocks of type {type(block).__name__}; prompts need timm's pre-norm Block")
        if type(block.attn) is not Attention or block.attn.gate is not None:
            raise ValueError(f"{name} has a {type(block.attn).__name__} that is gated or not timm's plain Attention")


def check_images(network: torch.nn.Module, name: str) -> None:
    """Checks that a timm network takes square images with three channels, as all images are here.

    Raises:
        ValueError: It takes other images.
    """
    channels, height, width = get_model_input_config(network)["input_size"]
    if channels != 3:
        raise ValueError(f"{name} takes images of {channels} channels, but images here have 3: leave in_chans at 3")
    if height != width:
        raise ValueError(f"{name} takes images of {height} x {width} pixels, but images here are square: set img_size")


def embed(vit: VisionTransformer, pixel_values: Tensor) -> Tensor:
    """Tokens before the first block: (B, 3, H, W) -> (B, n, D), [CLS, registers, patches].

    Images are resized to the size of this transformer, so that teacher, student and query network with different sizes
    can share a batch. On a CPU under autocast to bfloat16, the tokens are bfloat16 from here on.
    """
    size = tuple(vit.patch_embed.img_size)
    if tuple(pixel_values.shape[-2:]) != size and not vit.dynamic_img_size:
        pixel_values = F.interpolate(pixel_values, size, mode="bilinear", antialias=True)
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(pixel_values))))
    if is_on_cpu(tokens) and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        # Adding position embeddings gives float32, which takes twice the memory and a conversion before every product.
        # On other devices autocast computes norms in float32, so this would not save conversions.
        tokens = tokens.to(torch.bfloat16)
    return tokens


def is_on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is on a CPU; tests replace this function to run the code for other devices on a CPU."""
    return tensor.device.type == "cpu"


def final_norm(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    """The norm between the last block and a head (one of timm's two is the identity): (..., D) -> (..., D).

    The output has the precision of the weights.
    """
    assert vit.cls_token is not None  # see check_backbone
    return vit.fc_norm(vit.norm(tokens.to(vit.cls_token.dtype)))


def run_block(
    block: Block,
    x: Tensor,
    prefix: Prefix | None = None,
    suffix: Prefix | None = None,
    cls_index: int = 0,
    rows: list[int] | None = None,
    updates: Mapping[str, LowRankUpdate] = NO_UPDATES,
) -> Tensor:
    """One transformer block.

    Args:
        x: (B, n, D) tokens.
        prefix: Keys and values before those of the tokens, and vectors added to those of the CLS token.
        suffix: Keys and values after those of the tokens.
        cls_index: Position of the CLS token.
        rows: Positions of the output tokens; all if `None`. Queries, projection and MLP are computed only for these.
        updates: Those of the weights of its linear layers: `qkv`, `proj`, `fc1` or `fc2`.

    Returns:
        (B, n or len(rows), D)
    """
    attended = _attention(cast(Attention, block.attn), block.norm1(x), prefix, suffix, cls_index, rows, updates)
    x = (x if rows is None else x[:, rows]) + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(_mlp(block.mlp, block.norm2(x), updates)))


class PrefixBlock(Block):
    """timm's block with prefix and suffix.

    It is called as a module, as sharding a transformer or placing its blocks on devices relies on hooks of the blocks.
    """

    forward = run_block  # type: ignore[assignment]


def cls_features(vit: VisionTransformer, pixel_values: Tensor) -> Tensor:
    """CLS output of a transformer without prompts after its final norm: (B, 3, H, W) -> (B, D)."""
    x = embed(vit, pixel_values)
    for block in vit.blocks[:-1]:
        x = block(x)
    return final_norm(vit, vit.blocks[-1](x, rows=[0])[:, 0])


def linear_layers(block: Block) -> dict[str, nn.Linear]:
    """The linear layers of a block whose weights can be updated, by name."""
    attn = cast(Attention, block.attn)
    layers: dict[str, nn.Module] = {"qkv": attn.qkv, "proj": attn.proj}
    if type(block.mlp) is Mlp:
        layers |= {"fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
    return {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}


def _linear(layer: nn.Linear, x: Tensor, update: LowRankUpdate | None) -> Tensor:
    return layer(x) if update is None else update(layer, x)


def _mlp(mlp: nn.Module, x: Tensor, updates: Mapping[str, LowRankUpdate]) -> Tensor:
    fc1, fc2 = updates.get("fc1"), updates.get("fc2")
    if fc1 is None and fc2 is None:
        return mlp(x)
    assert isinstance(mlp, Mlp) and isinstance(mlp.fc1, nn.Linear) and isinstance(mlp.fc2, nn.Linear)
    x = mlp.norm(mlp.drop1(mlp.act(_linear(mlp.fc1, x, fc1))))
    return mlp.drop2(_linear(mlp.fc2, x, fc2))


def _attention(
    attn: Attention,
    x: Tensor,
    prefix: Prefix | None,
    suffix: Prefix | None,
    cls_index: int,
    rows: list[int] | None,
    updates: Mapping[str, LowRankUpdate],
) -> Tensor:
    split, qkv = attn.attn_dim, updates.get("qkv")
    if rows is None:
        query, key, value = _linear(attn.qkv, x, qkv).split(split, dim=-1)
    elif qkv is not None:
        query = qkv(attn.qkv, x[:, rows], slice(split))
        key, value = qkv(attn.qkv, x, slice(split, None)).chunk(2, dim=-1)
    else:
        weight, bias = attn.qkv.weight, attn.qkv.bias
        query_bias, key_value_bias = (None, None) if bias is None else (bias[:split], bias[split:])
        query = F.linear(x[:, rows], weight[:split], query_bias)
        key, value = F.linear(x, weight[split:], key_value_bias).chunk(2, dim=-1)

    if prefix is not None and prefix.cls_key is not None and prefix.cls_value is not None:
        around = (0, 0, cls_index, x.shape[1] - cls_index - 1)
        key = key + F.pad(prefix.cls_key[None].to(key.dtype), around)
        value = value + F.pad(prefix.cls_value[None].to(value.dtype), around)

    query, key, value = (_heads(t, attn.num_heads) for t in (query, key, value))
    query, key = attn.q_norm(query), attn.k_norm(key)
    keys, values = [key], [value]
    if prefix is not None and prefix.key is not None and prefix.value is not None:
        keys.insert(0, _prefix_heads(prefix.key, key))
        values.insert(0, _prefix_heads(prefix.value, value))
    if suffix is not None and suffix.key is not None and suffix.value is not None:
        keys.append(_prefix_heads(suffix.key, key))
        values.append(_prefix_heads(suffix.value, value))
    if len(keys) > 1:
        key, value = torch.cat(keys, dim=2), torch.cat(values, dim=2)

    out = _attend(query, key, value, attn.scale).transpose(1, 2).flatten(2)
    return _linear(attn.proj, attn.norm(out), updates.get("proj"))


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
