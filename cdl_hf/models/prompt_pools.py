"""Prompt pools: the prompt that each method adds to each block for each image.

All pools share one contract, `pool(query, block, task_id) -> (Prefix | None, loss | None)`. The query is (B, Dq), and
the loss is a scalar for this block; the model adds those of all blocks. In training mode a pool may use the task id,
in evaluation mode only the query and the number of tasks seen. `start_task` and `end_task` enclose the training of a
task; `init_weights` initializes all parameters for a new stream. Tasks after `config.train_tasks` are not trained: a
pool sees none of them, and its `task_id` stays that of the last trained one. Prompts are selected per sample, so a
prediction does not depend on the size or order of the batch.

Where the query is known before the first block, a pool may give the prompts of all blocks at once:
`pool.all_prefixes(query, task_id)`.

A pool may also update the weights of the transformer's linear layers: `pool.updates_of(block)` returns the updates of
a block by the layer's name. They depend on no image.
"""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_prompt_vit import PromptViTConfig
from .heads import LinearHead, UnitNormHead
from .low_rank import LowRankUpdate
from .precision import in_full_precision
from .prefix_attention import NO_UPDATES, Prefix, is_on_cpu, linear_layers
from .similarity import attended_cosine, cosine, orthonormal_rows


class PromptPool(nn.Module):
    """Base class of the prompt pools: the prompted blocks, and hooks before and after a task.

    Args:
        config: Pool size, lengths and blocks.
        embed_dim: D, embed_dim of the prompted transformer.
        query_dim: Dq, embed_dim of the query network.
        depth: Number of blocks of the prompted transformer.

    Attributes:
        needs_query: Whether prompts are selected by the query of an image.
        query_block: Block after which the prompted transformer itself gives the query, or `None`.
        needs_class_token: Whether prompts are added to the class token.
        head_class: Head that is trained with the prompts.
        needs_fisher: Whether the Fisher information of each update is measured before `end_task`.

    Raises:
        ValueError: A prompted block does not exist in the transformer, or comes before the query is known.
    """

    needs_query = True
    needs_class_token = False
    needs_fisher = False
    head_class: type[LinearHead] = LinearHead

    def __init__(self, config: PromptViTConfig, embed_dim: int, query_dim: int, depth: int):
        super().__init__()
        self.blocks = list(range(depth)) if config.prompt_blocks is None else config.prompt_blocks
        self.prompted_blocks = sorted(self.blocks + self.further_blocks(config))
        if not self.blocks or self.prompted_blocks[0] < 0 or self.prompted_blocks[-1] >= depth:
            raise ValueError(
                f"prompted blocks {self.prompted_blocks} do not all exist: the backbone has blocks 0 to {depth - 1}"
            )
        self.query_block = config.query_block
        if self.query_block is not None and not self.needs_query:
            raise ValueError(f"prompt_method {config.prompt_method!r} takes no query: leave out query_block")
        if self.query_block is not None and self.prompted_blocks[0] <= self.query_block:
            raise ValueError(
                f"the query is known after block {self.query_block} (query_block), but blocks {self.prompted_blocks} "
                "have prompts: choose later ones (prompt_blocks, g_prompt_blocks)"
            )

    @property
    def needs_query_pass(self) -> bool:
        """Whether the query takes a pass without prompts."""
        return self.needs_query and self.query_block is None

    @staticmethod
    def further_blocks(config: PromptViTConfig) -> list[int]:
        """Prompted blocks in addition to `config.prompt_blocks`."""
        return []

    def init_weights(self) -> None:
        """Initializes all parameters for a new stream."""
        raise NotImplementedError

    def all_prefixes(self, query: Tensor | None, task_id: int) -> tuple[dict[int, Prefix], Tensor | None]:
        """Prefixes by their blocks, and the sum of these blocks' losses; the pool is called for the other blocks."""
        return {}, None

    def add_updates(self, blocks: Iterable[nn.Module]) -> None:
        """Called once with the transformer's blocks, for a pool that updates their weights."""

    def updates_of(self, block: int) -> Mapping[str, LowRankUpdate]:
        """Updates of the weights of a block, by the names of [`linear_layers`]."""
        return NO_UPDATES

    @property
    def misses_statistics(self) -> bool:
        """Whether it has been loaded without what it needs of earlier tasks to learn a further one."""
        return False

    def fold(self, blocks: Iterable[nn.Module]) -> None:
        """Writes the merged updates into the weights of the transformer's blocks for good, for an exported model."""

    def start_task(self, task_id: int) -> None:
        """Called before a task is trained."""

    def end_task(self, task_id: int) -> None:
        """Called after a task was trained."""


class L2P(PromptPool):
    """Learning to Prompt (arXiv 2112.08654, section 4) in the prefix form: the `top_k` prompts nearest to the query.

    The loss is the mean over the batch of the sum over the selected prompts of 1 - cos(query, key).
    """

    def __init__(self, config: PromptViTConfig, embed_dim: int, query_dim: int, depth: int):
        super().__init__(config, embed_dim, query_dim, depth)
        self.top_k = config.top_k
        size, length = config.pool_size, config.prompt_length
        assert size is not None and length is not None  # the configuration sets the paper's
        self.prompts = nn.Parameter(torch.empty(len(self.blocks), size, length, embed_dim))
        self.keys = nn.Parameter(torch.empty(len(self.blocks), size, query_dim))

    def init_weights(self) -> None:
        init.uniform_(self.prompts)
        init.uniform_(self.keys)

    def forward(self, query: Tensor, block: int, task_id: int) -> tuple[Prefix | None, Tensor | None]:
        if block not in self.blocks:
            return None, None
        i = self.blocks.index(block)
        similarity, chosen = cosine(query, self.keys[i]).topk(self.top_k, dim=1)
        pool = self.prompts[i]
        # Not `pool[chosen]`: its gradient is summed in a random order on several threads or a GPU.
        prompts = F.embedding(chosen, pool.flatten(1)).unflatten(-1, pool.shape[1:])
        key, value = _halves(prompts)  # each (B, top_k, L/2, D)
        return Prefix(key.flatten(1, 2), value.flatten(1, 2)), (1 - similarity).sum(1).mean()


class DualPrompt(PromptPool):
    """DualPrompt (arXiv 2204.04799, section 4): G-prompts shared by all tasks, and one E-prompt per task and block.

    Trained with the E-prompt of the task; evaluated with the one whose key is nearest to the query. The loss is the
    mean over the batch of 1 - cos(query, key), added over the E blocks.
    """

    def __init__(self, config: PromptViTConfig, embed_dim: int, query_dim: int, depth: int):
        super().__init__(config, embed_dim, query_dim, depth)
        shared = set(self.blocks) & set(config.g_prompt_blocks)
        if shared:
            raise ValueError(f"blocks {sorted(shared)} are in both prompt_blocks and g_prompt_blocks of DualPrompt")
        assert config.prompt_length is not None  # the configuration sets the paper's
        self.g_blocks = config.g_prompt_blocks
        self.g_prompts = nn.Parameter(torch.empty(len(self.g_blocks), config.g_prompt_length, embed_dim))
        self.prompts = nn.Parameter(
            torch.empty(len(self.blocks), config.num_trained_tasks, config.prompt_length, embed_dim)
        )
        self.keys = nn.Parameter(torch.empty(len(self.blocks), config.num_trained_tasks, query_dim))

    @staticmethod
    def further_blocks(config: PromptViTConfig) -> list[int]:
        return config.g_prompt_blocks

    def init_weights(self) -> None:
        for parameter in (self.g_prompts, self.prompts, self.keys):
            init.uniform_(parameter)

    def forward(self, query: Tensor, block: int, task_id: int) -> tuple[Prefix | None, Tensor | None]:
        if block in self.g_blocks:
            key, value = _halves(self.g_prompts[self.g_blocks.index(block)])
            return Prefix(key[None], value[None]), None
        if block not in self.blocks:
            return None, None
        i = self.blocks.index(block)
        if self.training:
            similarity = cosine(query, self.keys[i, task_id : task_id + 1])
            key, value = _halves(self.prompts[i, task_id])
            key, value = key[None], value[None]
        else:
            similarity, nearest = cosine(query, self.keys[i]).max(dim=1)
            key, value = _halves(self.prompts[i][nearest])
        return Prefix(key, value), (1 - similarity).mean()


class CodaPrompt(PromptPool):
    """CODA-Prompt (arXiv 2211.13218, section 4): the prompt is a sum of components, weighted by attended similarity.

    When a task starts, its components are drawn orthonormal to all earlier ones; those of earlier tasks are detached
    in training. The loss is `ortho_weight` times the mean squared entries of KK'-I, AA'-I and PP'-I.

    Raises:
        ValueError: The pool has more components than there are orthogonal vectors of the query.
    """

    def __init__(self, config: PromptViTConfig, embed_dim: int, query_dim: int, depth: int):
        super().__init__(config, embed_dim, query_dim, depth)
        size, length = config.pool_size, config.prompt_length
        assert size is not None and length is not None  # the configuration sets the paper's
        smallest, num_tasks = min(query_dim, length * embed_dim), config.num_trained_tasks
        if size > smallest:
            raise ValueError(
                f"CODA-Prompt's pool of {size} components cannot be orthogonal in {smallest} dimensions (embed_dim of "
                f"the query network): set pool_size to at most {smallest // num_tasks * num_tasks}"
            )
        self.components_per_task = size // num_tasks
        self.ortho_weight = config.ortho_weight
        self.prompts = nn.Parameter(torch.empty(len(self.blocks), size, length, embed_dim))
        self.keys = nn.Parameter(torch.empty(len(self.blocks), size, query_dim))
        self.attention = nn.Parameter(torch.empty(len(self.blocks), size, query_dim))

    def init_weights(self) -> None:
        for parameter in (self.prompts, self.keys, self.attention):
            init.zeros_(parameter)  # a component is drawn when its task starts, and has no effect before

    @torch.no_grad()
    def start_task(self, task_id: int) -> None:
        """Draws the task's components orthonormal to all earlier ones.

        In place: an optimizer, DDP or an EMA would keep the tensor of a replaced parameter.
        """
        first, end = task_id * self.components_per_task, (task_id + 1) * self.components_per_task
        for parameter in (self.prompts, self.keys, self.attention):
            for pool in parameter:
                components = pool.flatten(1)
                pool[first:end] = orthonormal_rows(components[:first], self.components_per_task).view_as(
                    pool[first:end]
                )

    def forward(self, query: Tensor, block: int, task_id: int) -> tuple[Prefix | None, Tensor | None]:
        if block not in self.blocks:
            return None, None
        i = self.blocks.index(block)
        halves, loss = self._weighted(query, *(self._visible(p[i], task_id) for p in self._pools))
        return Prefix(*halves), loss

    def all_prefixes(self, query: Tensor | None, task_id: int) -> tuple[dict[int, Prefix], Tensor | None]:
        """As block by block, up to rounding. On a GPU, which takes as long for one block as for all."""
        is_overridden = type(self).forward is not CodaPrompt.forward
        if query is None or self.query_block is not None or is_overridden or is_on_cpu(query):
            return {}, None
        halves, losses = self._weighted(query, *(self._visible(p, task_id, 1) for p in self._pools))
        # not indexed by block: the gradient of each index would be a tensor of all
        prefixes = dict(zip(self.blocks, map(Prefix, *(half.unbind() for half in halves)), strict=True))
        return prefixes, None if losses is None else losses.sum()

    @property
    def _pools(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.prompts, self.keys, self.attention

    def _weighted(
        self, query: Tensor, prompts: Tensor, keys: Tensor, attention: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Keys and values (..., B, L / 2, D), and the loss (...), of components (..., M, L, D) and (..., M, Dq)."""
        with in_full_precision(query):
            weights = attended_cosine(query.float(), attention.float(), keys.float())
            halves = _halves(torch.einsum("...bm,...mld->...bld", weights, prompts.float()))
            loss = None
            if self.ortho_weight:
                penalties = [_ortho_penalty(p) for p in (keys, attention, prompts.flatten(-2))]
                loss = self.ortho_weight * (penalties[0] + penalties[1] + penalties[2])
        return halves, loss

    def _visible(self, pool: Tensor, task_id: int, dim: int = 0) -> Tensor:
        """Components of the tasks so far, which lie along `dim`; in training, those of earlier tasks are detached."""
        first, end = task_id * self.components_per_task, (task_id + 1) * self.components_per_task
        if self.training and first:
            earlier, own = pool.narrow(dim, 0, first), pool.narrow(dim, first, self.components_per_task)
            return torch.cat([earlier.detach(), own], dim)
        return pool.narrow(dim, 0, end)


class APT(PromptPool):
    """APT (arXiv 2503.07979): one vector for the CLS token's key and one for its value in each block, no query.

    The current vectors are trained; predictions use the merged ones, a moving average over the tasks.
    """

    needs_query = False
    needs_class_token = True
    head_class = UnitNormHead
    merged: Tensor

    def __init__(self, config: PromptViTConfig, embed_dim: int, query_dim: int, depth: int):
        super().__init__(config, embed_dim, query_dim, depth)
        self.ema_decay = config.ema_decay
        self.prompts = nn.Parameter(torch.empty(len(self.blocks), 2, embed_dim))
        self.register_buffer("merged", torch.empty(len(self.blocks), 2, embed_dim))

    def init_weights(self) -> None:
        init.trunc_normal_(self.prompts, std=0.02)
        init.zeros_(self.merged)

    @torch.no_grad()
    def end_task(self, task_id: int) -> None:
        """Merges the current vectors: a copy after the first task, then the moving average."""
        decay = self.ema_decay if task_id else 0.0
        self.merged.mul_(decay).add_(self.prompts, alpha=1 - decay)

    def forward(self, query: Tensor | None, block: int, task_id: int) -> tuple[Prefix | None, None]:
        if block not in self.blocks:
            return None, None
        key, value = (self.prompts if self.training else self.merged)[self.blocks.index(block)]
        return Prefix(cls_key=key, cls_value=value), None


class LoRA(PromptPool):
    """Low-rank weight updates (LoRA, arXiv 2106.09685) in place of prompts, merged after each task; no query.

    Task t, counted from 1, trains an update d_t of the merged weights. `lora_merging` sets the share of it that is
    merged: with "none" all; with "average" 1/t, so that the weights are the mean of those after each task; with
    "fisher" the one that adds least to the losses of all tasks so far (P&M, arXiv 2505.22389, without its
    perturbation). There, the loss of task i around its trained weights w_i is taken as quadratic, with its diagonal
    Fisher information F_i as the curvature. With w the merged weights before task t, the minimum of the sum is at

        (d_t' F_t d_t + sum_{i<t} (w_i - w)' F_i d_t) / sum_{i<=t} d_t' F_i d_t,  between 0 and 1.

    Raises:
        ValueError: The transformer has no linear layer of a name in `lora_targets`.
    """

    needs_query = False

    def __init__(self, config: PromptViTConfig, embed_dim: int, query_dim: int, depth: int):
        super().__init__(config, embed_dim, query_dim, depth)
        self.rank, self.scale = config.lora_rank, config.lora_alpha / config.lora_rank
        self.targets, self.num_tasks = config.lora_targets, config.num_trained_tasks
        self.merging = config.lora_merging
        self.needs_fisher = self.merging == "fisher"
        self.updates = nn.ModuleDict()

    def add_updates(self, blocks: Iterable[nn.Module]) -> None:
        for i, block in enumerate(blocks):
            if i not in self.blocks:
                continue
            layers = linear_layers(block)
            for name in self.targets:
                if name not in layers:
                    raise ValueError(
                        f"lora_targets names {name!r}, but block {i} of the backbone only has the linear layers "
                        f"{', '.join(layers)}"
                    )
            args = (self.rank, self.scale, self.num_tasks)
            self.updates[str(i)] = nn.ModuleDict({name: LowRankUpdate(layers[name], *args) for name in self.targets})

    @property
    def misses_statistics(self) -> bool:
        return self.needs_fisher and any(
            update.precision is None and bool(update.merged_up.any()) for update in self.each_update()
        )

    @torch.no_grad()
    def fold(self, blocks: Iterable[nn.Module]) -> None:
        for i, block in enumerate(blocks):
            layers = linear_layers(block)
            for name, update in self.updates_of(i).items():
                layers[name].weight.copy_(update.folded(layers[name].weight))
        self.blocks, self.updates = [], nn.ModuleDict()

    def init_weights(self) -> None:
        """Each update initializes its own."""

    def start_task(self, task_id: int) -> None:
        for update in self.each_update():
            update.start()

    def end_task(self, task_id: int) -> None:
        share = {"none": 1.0, "average": 1 / (task_id + 1)}.get(self.merging)
        if share is None:
            numerators, denominators = zip(*(update.merging_terms() for update in self.each_update()), strict=True)
            share = (sum(numerators) / sum(denominators).clamp_min(1e-30)).clamp(0, 1).item()
        for update in self.each_update():
            update.merge(task_id, share)

    def updates_of(self, block: int) -> Mapping[str, LowRankUpdate]:
        if block not in self.blocks:
            return NO_UPDATES
        return dict(cast(nn.ModuleDict, self.updates[str(block)]).items())  # type: ignore[arg-type]

    def forward(self, query: Tensor | None, block: int, task_id: int) -> tuple[None, None]:
        return None, None

    def each_update(self) -> Iterable[LowRankUpdate]:
        return (update for update in self.modules() if isinstance(update, LowRankUpdate))


class NoPrompts(PromptPool):
    """No prompts: the frozen transformer, a baseline for the prompt methods."""

    needs_query = False

    def init_weights(self) -> None:
        """No parameters."""

    def forward(self, query: Tensor | None, block: int, task_id: int) -> tuple[None, None]:
        return None, None


POOLS: dict[str, type[PromptPool]] = {
    "l2p": L2P,
    "dualprompt": DualPrompt,
    "coda_prompt": CodaPrompt,
    "apt": APT,
    "lora": LoRA,
    "none": NoPrompts,
}


def _halves(prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Splits (..., L, D) prompts into keys and values, each (..., L/2, D)."""
    keys, values = prompts.chunk(2, dim=-2)
    return keys, values


def _ortho_penalty(rows: Tensor) -> Tensor:
    """Mean squared entry (...) of RR' - I for rows (..., M, d) (arXiv 2211.13218, section 4.3)."""
    rows = rows.float()
    return (rows @ rows.mT - torch.eye(rows.shape[-2], device=rows.device)).square().mean((-2, -1))
