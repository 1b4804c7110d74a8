"""What a network of timm is to a model: its tokens and blocks, and the features that heads and queries read.

[`network_of`] finds the adapter of a network. A plain Vision Transformer and an Eva network (EVA-02, DINOv3, PE) have
blocks that can be prompted; any other network, such as a CNN, gives its features.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers import Attention, AttentionRope, HybridEmbed, PatchEmbed
from timm.models import get_model_input_config
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from .compute_copy import compute_copy
from .eva_block import PrefixEvaBlock
from .kd_branches import KDBranch
from .outputs import Encoded
from .prefix_attention import PrefixBlock, Rotation, is_on_cpu, take_rows
from .prompt_pools import PromptPool
from .readout import Readout


class Network:
    """Any network of timm that gives features; without prompts.

    Its layers are its stages, as timm's `forward_intermediates` returns them. What heads and queries read is what
    timm's own head pools, before its classifier.

    Args:
        module: The network, without classifier.
    """

    has_patch_means = False  # apart from the means of its maps
    has_class_token = False
    num_prefix_tokens = 0  # before those of the patches

    def __init__(self, module: nn.Module):
        self.module: Any = module

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return get_model_input_config(self.module)["input_size"][-1]

    @property
    def embed_dim(self) -> int:
        """D, size of what heads and queries read."""
        return self.module.head_hidden_size

    @property
    def token_dim(self) -> int:
        """Size of the tokens of the last layer."""
        return self.module.feature_info[-1]["num_chs"]

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.module.feature_info)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks that can be prompted, if there are any."""
        return ()

    @property
    def shape(self) -> list[int]:
        """What weights do not show."""
        return [self.image_size, self.image_size]

    @property
    def all_layers(self) -> Readout:
        """Reads all there is to read."""
        return Readout(self.depth, self.has_patch_means)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of equal width that `all_layers` reads; 1 for maps, whose widths differ."""
        return 1

    def width(self, readout: Readout) -> int:
        """W, number of features that are read."""
        widths = [info["num_chs"] for info in self.module.feature_info[:-1]] + [self.embed_dim]
        return sum(widths[-readout.layers :])

    def select(self, features: Tensor, readout: Readout, source: Readout) -> Tensor:
        """Features that were read by `source`, which reads no less, as `readout` reads them: (..., W') -> (..., W)."""
        return features if readout == source else features[..., -self.width(readout) :]

    def features(self, pixel_values: Tensor) -> Tensor:
        """What heads and queries read of the frozen network: (B, 3, H, W) -> (B, D)."""
        return self._read(self.module.forward_features(self.resized(pixel_values)))

    def pooled(self, tokens: Tensor) -> Tensor:
        """What heads read of the tokens of the last layer, if that layer is the last of the network."""
        raise NotImplementedError

    def encode(
        self,
        pixel_values: Tensor,
        pool: PromptPool,
        branch: KDBranch | None,
        query: Tensor | None,
        task_id: int,
        readout: Readout,
        output_hidden_states: bool,
    ) -> Encoded:
        """A pass with prompts, and without where the network takes none.

        Args:
            pixel_values: (B, 3, H, W)
            pool, branch: Prompts and KD branch of the model.
            query: (B, Dq), by which the prompts are selected; unused where a block of this pass gives it.
            task_id: Task whose prompts are trained.
            readout: Which features to return.
            output_hidden_states: Whether to return all tokens: of a transformer before the first block and after each,
                else of each stage.
        """
        with torch.no_grad():
            x = self.resized(pixel_values)
            if readout.layers == 1 and not output_hidden_states:
                return Encoded(self._read(self.module.forward_features(x))[:, None], None, None)
            last, maps = self.module.forward_intermediates(x)
            means = [each.mean((2, 3)).to(self._dtype) for each in maps[self.depth - readout.layers : -1]]
            features = torch.cat([*means, self._read(last)], dim=1)
            tokens = tuple(each.flatten(2).transpose(1, 2) for each in maps)
        return Encoded(features[:, None], None, tokens if output_hidden_states else None)

    def resized(self, pixel_values: Tensor) -> Tensor:
        """Images at the size of this network, so that others with other sizes can share a batch."""
        size = (self.image_size, self.image_size)
        if tuple(pixel_values.shape[-2:]) == size:
            return pixel_values
        return F.interpolate(pixel_values, size, mode="bilinear", antialias=True)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def _read(self, last: Tensor) -> Tensor:
        return self.module.forward_head(last, pre_logits=True).to(self._dtype)


class BlockNetwork(Network):
    """A Vision Transformer whose blocks can be prompted; its layers are its blocks.

    What heads and queries read is the class token after the final norm or, where there is none, what timm's own head
    pools of the tokens: their mean, or the output of its attention pooling. A KD head that reads a token of its own
    reads it after the final norm, and that token is not pooled.
    """

    has_patch_means = True
    prefix_block: type[nn.Module]

    @property
    def image_size(self) -> int:
        return self.module.patch_embed.img_size[0]

    @property
    def embed_dim(self) -> int:
        return self.module.embed_dim

    @property
    def token_dim(self) -> int:
        return self.module.embed_dim

    @property
    def depth(self) -> int:
        return len(self.module.blocks)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.module.blocks

    @property
    def shape(self) -> list[int]:
        return [*self.module.patch_embed.img_size, self.module.blocks[0].attn.num_heads]

    @property
    def num_tokens(self) -> int:
        return 2 * self.depth

    @property
    def has_class_token(self) -> bool:  # type: ignore[override]
        return self.module.cls_token is not None

    @property
    def num_prefix_tokens(self) -> int:  # type: ignore[override]
        return self.module.num_prefix_tokens

    @property
    def reads_class_token(self) -> bool:
        """Whether heads and queries read the class token."""
        return self.has_class_token

    @staticmethod
    def obstacle(module: Any) -> str | None:
        """Why the blocks of a network of this class cannot be prompted, or `None`."""
        raise NotImplementedError

    def width(self, readout: Readout) -> int:
        return readout.layers * (1 + readout.patch_means) * self.embed_dim

    def select(self, features: Tensor, readout: Readout, source: Readout) -> Tensor:
        if readout == source:
            return features
        blocks = features.unflatten(-1, (source.layers, 1 + source.patch_means, -1))
        first_kind = 0 if readout.patch_means or not source.patch_means else 1
        return blocks[..., source.layers - readout.layers :, first_kind:, :].flatten(-3)

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens before the first block, [CLS, registers, patches], and the angles of rotary positions.

        On a CPU under autocast to bfloat16, the tokens are bfloat16 from here on.

        Args:
            pixel_values: (B, 3, H, W)

        Returns:
            (B, n, D); (N, 2 * d) or (depth, H, N, 2 * d), or `None` for absolute positions alone.
        """
        if not self.module.dynamic_img_size:
            pixel_values = self.resized(pixel_values)
        tokens, angles = self._positioned(self.module.patch_embed(pixel_values))
        tokens = self.module.norm_pre(tokens)
        if (
            is_on_cpu(tokens)
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
        ):
            # Adding position embeddings gives float32, which takes twice the memory and a conversion before every
            # product. On other devices autocast computes norms in float32, unless the block has a compute copy, for
            # which `_run_block` converts the tokens.
            tokens = tokens.to(torch.bfloat16)
        return tokens, angles

    def _positioned(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens with positions, and the angles of rotary positions."""
        return self.module.patch_drop(self.module._pos_embed(patches)), None

    def rotation(self, angles: Tensor | None, block: int, cls_index: int = 0) -> Rotation | None:
        """Rotary positions of a block, with `cls_index` tokens before those of the network."""
        return None

    def norm(self, tokens: Tensor) -> Tensor:
        """The norm between the last block and a head (one of timm's two is the identity): (..., D) -> (..., D).

        The output has the precision of the weights.
        """
        return self.module.fc_norm(self.module.norm(tokens.to(self._dtype)))

    def pooled(self, tokens: Tensor) -> Tensor:
        """What heads read of the network's own tokens after a block: (B, n, D) -> (B, D)."""
        if self.reads_class_token:
            return self.norm(tokens[:, 0])
        return self.module.forward_head(self.module.norm(tokens.to(self._dtype)), pre_logits=True)

    def features(self, pixel_values: Tensor) -> Tensor:
        x, angles = self.embed(pixel_values)
        last = self.depth - 1
        rows = [0] if self.reads_class_token else None
        for i, block in enumerate(self.blocks):
            x = self._run_block(block, x, rows=rows if i == last else None, rotation=self.rotation(angles, i))
        return self.pooled(x)

    def encode(
        self,
        pixel_values: Tensor,
        pool: PromptPool,
        branch: KDBranch | None,
        query: Tensor | None,
        task_id: int,
        readout: Readout,
        output_hidden_states: bool,
    ) -> Encoded:
        with torch.no_grad():
            x, angles = self.embed(pixel_values)
        cls_index, read, num_tokens = 0, [0], x.shape[1]
        if branch is not None:
            x = branch.add_token(x)
            cls_index, read = branch.cls_index, [branch.cls_index, branch.kd_index]
        own = slice(cls_index, cls_index + num_tokens)
        hidden_states: tuple[Tensor, ...] = (x,) if output_hidden_states else ()
        reads_rows = self.reads_class_token and not output_hidden_states and not readout.patch_means
        prefixes, loss = pool.all_prefixes(query, task_id)
        prompt_losses, features = [] if loss is None else [loss], []
        for i, block in enumerate(self.blocks):
            prefix, prompt_loss = (prefixes[i], None) if i in prefixes else pool(query, i, task_id)
            suffix = None
            if branch is not None:
                prefix, suffix = branch.attention_context(prefix, query, i, task_id)
            rows = read if reads_rows and i == self.depth - 1 else None
            context = {"prefix": prefix, "suffix": suffix, "cls_index": cls_index, "rows": rows}
            context |= {"updates": pool.updates_of(i), "rotation": self.rotation(angles, i, cls_index)}
            x = self._run_block(block, x, **context)
            if prompt_loss is not None:
                prompt_losses.append(prompt_loss)
            if output_hidden_states:
                hidden_states += (x,)
            if i == pool.query_block:
                query = self.pooled(x[:, own].detach())
            if i >= self.depth - readout.layers:
                features.append(self._read_block(x, None if rows else read, own, readout.patch_means))
        total = cast(Tensor, sum(prompt_losses)) if prompt_losses else None
        joined = features[0] if len(features) == 1 else torch.cat(features, dim=2)
        return Encoded(joined.flatten(2), total, hidden_states if output_hidden_states else None)

    @staticmethod
    def _run_block(block: nn.Module, x: Tensor, **context: Any) -> Tensor:
        """As [`run_block`]; where the block has a compute copy, all of it is in bfloat16, tokens and norms too."""
        copy = None if context.get("updates") else compute_copy(block, x)  # an update needs the weight itself
        if copy is None:
            return block(x, **context)
        with torch.autocast(x.device.type, enabled=False):  # which would compute the norms in float32
            return block(x.to(torch.bfloat16), **context, copy=copy)

    def _read_block(self, x: Tensor, read: list[int] | None, own: slice, patch_means: bool) -> Tensor:
        """What is read of one block.

        Args:
            x: Its tokens (B, n, D).
            read: Positions of the class token and of the token that the KD head reads; `None` where the block has
                returned these alone.
            own: Positions of the tokens of the network.
            patch_means: Whether to read the mean of the patch tokens too.

        Returns:
            (B, h, 1 or 2, D)
        """
        if self.reads_class_token and not patch_means:
            return self.norm(take_rows(x, read))[:, :, None]
        tokens = self.norm(x)
        of_heads = take_rows(tokens, read)
        if not self.reads_class_token:
            positions = cast(list[int], read)
            pooled = self.pooled(x[:, own])
            of_heads = torch.stack([pooled if p == positions[0] else tokens[:, p] for p in positions], dim=1)
        if not patch_means:
            return of_heads[:, :, None]
        patches = tokens[:, own.start + self.num_prefix_tokens : own.stop]
        means = patches.mean(1, keepdim=True).expand_as(of_heads)
        return torch.stack([means, of_heads], dim=2)


class PlainNetwork(BlockNetwork):
    """timm's `VisionTransformer`."""

    prefix_block = PrefixBlock

    @staticmethod
    def obstacle(module: VisionTransformer) -> str | None:
        if type(module.patch_embed) not in (PatchEmbed, HybridEmbed):
            return f"embeds its patches with {type(module.patch_embed).__name__}, not timm's PatchEmbed or HybridEmbed"
        for block in module.blocks:
            if type(block) not in (Block, PrefixBlock):
                return f"has blocks of type {type(block).__name__}, not timm's pre-norm Block"
            attn = cast(Block, block).attn
            if type(attn) is not Attention or attn.gate is not None:
                return f"has a {type(attn).__name__} that is gated or not timm's plain Attention"
        return None


class EvaNetwork(BlockNetwork):
    """timm's `Eva`, whose heads read what it pools itself."""

    prefix_block = PrefixEvaBlock

    @staticmethod
    def obstacle(module: Eva) -> str | None:
        if module.patch_drop is not None:
            return "drops patches"
        for block in module.blocks:
            if type(block) not in (EvaBlock, PrefixEvaBlock):
                return f"has blocks of type {type(block).__name__}, not timm's pre-norm EvaBlock"
            attn: Any = block.attn
            if type(attn) not in (EvaAttention, AttentionRope) or attn.gate is not None:
                return f"has a {type(attn).__name__} that is gated or unknown"
            if attn.num_heads * attn.head_dim != module.embed_dim:
                return "has heads that do not share its width"
            if type(attn) is AttentionRope and attn.num_kv_groups > 1:
                return "has fewer heads of keys than of queries"
        return None

    @property
    def reads_class_token(self) -> bool:
        return self.has_class_token and self.module.global_pool == "token"

    def _positioned(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.module._pos_embed(patches)

    def rotation(self, angles: Tensor | None, block: int, cls_index: int = 0) -> Rotation | None:
        if angles is None:
            return None
        attn = self.module.blocks[block].attn
        first = cls_index + self.num_prefix_tokens
        return Rotation(angles[block] if self.module.rope_mixed else angles, first, attn.rotate_half)


ADAPTERS: dict[type[nn.Module], type[BlockNetwork]] = {VisionTransformer: PlainNetwork, Eva: EvaNetwork}


def network_of(module: nn.Module) -> Network:
    """The adapter of a network that [`create_backbone`] or [`load_backbone`] has made."""
    adapter = ADAPTERS.get(type(module))
    if adapter is not None and isinstance(cast(Any, module).blocks[0], adapter.prefix_block):
        return adapter(module)
    return Network(module)


def block_obstacle(module: nn.Module) -> str | None:
    """Why the blocks of a network cannot be prompted, to follow its name in a sentence, or `None`."""
    adapter = ADAPTERS.get(type(module))
    if adapter is None:
        return f"is a {type(module).__name__}, not a plain VisionTransformer or Eva of timm"
    return adapter.obstacle(module)


def prepare_blocks(module: nn.Module) -> None:
    """Lets the blocks of a network take prompts, where they can: the same modules with another forward."""
    if block_obstacle(module) is None:
        for block in cast(Any, module).blocks:
            block.__class__ = ADAPTERS[type(module)].prefix_block
