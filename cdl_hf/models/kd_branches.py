"""KD branches: parameters of a student that are trained only by distillation, with a KD head.

All share the contract of [`KDBranch`]. A branch may add a token to the sequence, and keys and values to the attention
of a block; the KD head reads one output token of the last block. A branch acts in training and in prediction, is
shared by all tasks and never reset.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_prompt_vit import PromptViTConfig
from .precision import in_full_precision
from .prefix_attention import Prefix
from .prompt_pools import POOLS, PromptPool
from .similarity import attended_cosine, orthonormal_rows


class KDBranch(nn.Module):
    """Base class of the branches.

    Args:
        config: Configuration of the student.
        embed_dim: D, embed_dim of the student.
        query_dim: Dq, embed_dim of the query network.
        depth: Number of blocks of the student.

    Attributes:
        cls_index: Position of the CLS token, which the student's head reads.
        kd_index: Position of the token that the KD head reads.
        kd_weight: Weight of the KD head in a prediction; the rest is the weight of the student's head.
    """

    cls_index = 0
    kd_index = 0

    def __init__(self, config: PromptViTConfig, embed_dim: int, query_dim: int, depth: int):
        super().__init__()
        self.kd_weight = config.kd_alpha

    def init_weights(self) -> None:
        """Draws all parameters as for a new stream."""
        raise NotImplementedError  # every branch has its own

    def add_token(self, x: Tensor) -> Tensor:
        """Tokens before the first block: (B, n, D) -> (B, n or n + 1, D)."""
        return x

    def attention_context(
        self, prefix: Prefix | None, query: Tensor | None, block: int, task_id: int
    ) -> tuple[Prefix | None, Prefix | None]:
        """Prefix and suffix of the keys and values of a block's tokens, given the prefix of the prompt method."""
        return prefix, None


class DeiTToken(KDBranch):
    """The distillation token of DeiT (arXiv 2012.12877, section 4), as CDL (arXiv 2407.13911 v2) adds it to a frozen
    transformer: before CLS, without position embedding, initialized to zero."""

    cls_index = 1

    def __init__(self, config: PromptViTConfig, embed_dim: int, query_dim: int, depth: int):
        super().__init__(config, embed_dim, query_dim, depth)
        self.token = nn.Parameter(torch.empty(1, embed_dim))

    def init_weights(self) -> None:
        init.zeros_(self.token)

    def add_token(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)


class KDP(KDBranch):
    """Knowledge distillation prompts (CDL, arXiv 2407.13911 v3): one token at the end of the sequence, and in
    all blocks but the first vectors after the keys and values of the tokens.

    Raises:
        ValueError: The transformer has fewer blocks than are prompted.
    """

    kd_index = -1

    def __init__(self, config: PromptViTConfig, embed_dim: int, query_dim: int, depth: int):
        super().__init__(config, embed_dim, query_dim, depth)
        blocks = depth if config.kd_prompt_blocks is None else config.kd_prompt_blocks
        if not 1 <= blocks <= depth:
            raise ValueError(f"kd_prompt_blocks is {blocks}, but the backbone has {depth} blocks")
        self.token = nn.Parameter(torch.empty(1, embed_dim))
        self.prompts = (
            nn.Parameter(torch.empty(blocks - 1, config.kd_prompt_length, embed_dim)) if blocks > 1 else None
        )

    def init_weights(self) -> None:
        init.uniform_(self.token)
        if self.prompts is not None:
            init.uniform_(self.prompts)

    def add_token(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.token.to(x.dtype).expand(x.shape[0], 1, -1)], dim=1)

    def attention_context(
        self, prefix: Prefix | None, query: Tensor | None, block: int, task_id: int
    ) -> tuple[Prefix | None, Prefix | None]:
        """The first half of a block's vectors are keys, the second half values; block 0 has only the token."""
        if self.prompts is None or not 1 <= block <= len(self.prompts):
            return prefix, None
        key, value = self.prompts[block - 1].chunk(2)
        return prefix, Prefix(key[None], value[None])


class PromptMap(KDBranch):
    """CDL-Prompt (CDL, arXiv 2407.13911 v1): the teacher's prompts, mapped into the student before its own.

    In each prompted block the teacher's prompt for an image is averaged over its tokens to m (B, D_teacher), and
    weights the prompts V_i of the map by cos(m * a_i, k_i). The teacher's prompt depends only on the query, so
    predictions need a frozen copy of its pool but not its transformer. The KD head reads the CLS token.

    Raises:
        ValueError: The teacher's prompts take no query, or its embed_dim is too small for orthogonal components.
    """

    def __init__(self, config: PromptViTConfig, embed_dim: int, query_dim: int, depth: int):
        super().__init__(config, embed_dim, query_dim, depth)
        self.kd_weight = 0.5  # the mean of the heads, independent of the weight of the losses
        teacher_dim, length = config.teacher_width, config.prompt_length
        assert teacher_dim is not None and length is not None  # as the configuration has checked
        self.teacher_pool: PromptPool = POOLS[config.prompt_method](config, teacher_dim, query_dim, depth)
        if not self.teacher_pool.needs_query:
            raise ValueError(
                f"kd_branch 'cdl_prompt' maps prompts chosen by the image's query, and {config.prompt_method!r} "
                "takes no query: take another kd_branch or prompt_method"
            )
        self.blocks = self.teacher_pool.prompted_blocks
        size = max((config.pool_size or config.num_trained_tasks) // config.num_trained_tasks, 1)
        if size > teacher_dim:
            raise ValueError(f"{size} components of a prompt map cannot be orthogonal in {teacher_dim} dimensions")
        self.keys = nn.Parameter(torch.empty(len(self.blocks), size, teacher_dim))
        self.attention = nn.Parameter(torch.empty(len(self.blocks), size, teacher_dim))
        self.values = nn.Parameter(torch.empty(len(self.blocks), size, length, embed_dim))
        self.train()

    def init_weights(self) -> None:
        for parameter in (self.keys, self.attention, self.values):
            none = parameter.new_empty(0, parameter[0, 0].numel())
            rows = torch.stack([orthonormal_rows(none, parameter.shape[1]) for _ in parameter])
            init.copy_(parameter, rows.view(parameter.shape))

    def train(self, mode: bool = True) -> "PromptMap":
        """As `nn.Module.train`, but the teacher's pool stays frozen and in evaluation mode."""
        super().train(mode)
        self.teacher_pool.requires_grad_(False).eval()
        return self

    def attention_context(
        self, prefix: Prefix | None, query: Tensor | None, block: int, task_id: int
    ) -> tuple[Prefix | None, Prefix | None]:
        if block not in self.blocks:
            return prefix, None
        i = self.blocks.index(block)
        with torch.no_grad():
            teacher_prefix, _ = self.teacher_pool(query, block, task_id)
            assert teacher_prefix.key is not None and query is not None
            teacher_prompt = torch.cat([teacher_prefix.key, teacher_prefix.value], dim=1).float().mean(1)
        with in_full_precision(query):
            weights = attended_cosine(teacher_prompt, self.attention[i].float(), self.keys[i].float())
            key, value = torch.einsum("bm,mld->bld", weights, self.values[i].float()).chunk(2, dim=1)
        return Prefix(key, value).concat(prefix), None


BRANCHES: dict[str, type[KDBranch]] = {"deit": DeiTToken, "kdp": KDP, "cdl_prompt": PromptMap}
