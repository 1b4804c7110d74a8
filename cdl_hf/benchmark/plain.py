"""A plain implementation of the same mathematics, without optimizations, as the baseline of the benchmark.

Each model computes its query in a separate pass, all weights get gradients, attention is written out, and the last
block computes all tokens. Losses, prompts and heads are those of the package.
"""

from typing import cast

from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, cat, nn, no_grad

from ..distillation import TrainingObjective
from ..distillation.logit_methods import KD
from ..models import PromptViTForImageClassification
from ..models.networks import Network, PlainNetwork
from ..models.outputs import Encoded
from ..models.prefix_attention import Prefix
from ..models.readout import Readout


class PlainPromptViT(PromptViTForImageClassification):
    """A prompted transformer with the same weights and the same outputs."""

    @classmethod
    def like(cls, model: PromptViTForImageClassification) -> "PlainPromptViT":
        plain = cls(model.config)
        nn.Module.to(plain, model.device)
        plain.load_state_dict(model.state_dict())
        plain.train()
        return plain

    def _freeze(self) -> None:
        pass

    @no_grad()
    def query(self, pixel_values: Tensor) -> Tensor | None:
        if not self.prompt_pool.needs_query_pass:
            return None
        vit = _transformer(self.query_network)
        x = _embed(vit, pixel_values)
        for block in vit.blocks:
            x = _run_block(block, x, None, None, 0)
        return vit.norm(x)[:, 0]

    def _encode(
        self, pixel_values: Tensor, query: Tensor | None, readout: Readout, output_hidden_states: bool | None = None
    ) -> Encoded:
        branch, task_id = self.kd_branch, self.config.tasks_seen - 1
        vit = _transformer(self.network)
        x, cls_index = _embed(vit, pixel_values), 0
        if branch is not None:
            x, cls_index = branch.add_token(x), branch.cls_index
        hidden_states, losses = [x], []
        for i, block in enumerate(vit.blocks):
            prefix, loss = self.prompt_pool(query, i, task_id)
            suffix = None
            if branch is not None:
                prefix, suffix = branch.attention_context(prefix, query, i, task_id)
            x = _run_block(block, x, prefix, suffix, cls_index)
            if i == self.prompt_pool.query_block:
                query = vit.norm(x[:, cls_index].detach())
            hidden_states.append(x)
            losses += [] if loss is None else [loss]
        tokens = vit.norm(x)
        read = [cls_index] if branch is None else [cls_index, branch.kd_index]
        total = cast(Tensor, sum(losses)) if losses else None
        return Encoded(tokens[:, read], total, tuple(hidden_states) if output_hidden_states else None)


def plain_method(method: TrainingObjective, student: PlainPromptViT, teacher: PlainPromptViT) -> TrainingObjective:
    """The same distillation method on plain models; the teacher computes its own queries."""
    if not isinstance(method, KD):
        return type(method)(student)
    plain = type(method)(student, teacher, kd_alpha=method.kd_alpha, temperature=method.temperature)
    plain.load_state_dict(method.state_dict())
    plain.shares_query = False
    return plain


def _transformer(network: Network) -> PlainNetwork:
    assert isinstance(network, PlainNetwork)  # as those of the benchmark's pairs are
    return network


def _embed(vit: PlainNetwork, pixel_values: Tensor) -> Tensor:
    """Tokens in float32, as autocast does."""
    return vit.embed(pixel_values)[0].float()


def _run_block(module: nn.Module, x: Tensor, prefix: Prefix | None, suffix: Prefix | None, cls_index: int) -> Tensor:
    block = cast(Block, module)
    x = x + block.ls1(_attention(cast(Attention, block.attn), block.norm1(x), prefix, suffix, cls_index))
    return x + block.ls2(block.mlp(block.norm2(x)))


def _attention(attn: Attention, x: Tensor, prefix: Prefix | None, suffix: Prefix | None, cls_index: int) -> Tensor:
    query, key, value = attn.qkv(x).chunk(3, dim=-1)
    if prefix is not None and prefix.cls_key is not None:
        key, value = key.clone(), value.clone()
        key[:, cls_index] += prefix.cls_key
        value[:, cls_index] += prefix.cls_value
    query, key, value = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
    query, key = attn.q_norm(query), attn.k_norm(key)
    for more, first in ((prefix, True), (suffix, False)):
        if more is not None and more.key is not None and more.value is not None:
            key, value = _joined(more.key, key, first), _joined(more.value, value, first)
    weights = (query * attn.scale @ key.transpose(-2, -1)).softmax(dim=-1)
    return attn.proj(attn.norm((weights @ value).transpose(1, 2).flatten(2)))


def _joined(vectors: Tensor, tokens: Tensor, first: bool) -> Tensor:
    """(B or 1, L, H*d) vectors before or after (B, H, n, d) tokens."""
    heads = vectors.to(tokens.dtype).unflatten(-1, (tokens.shape[1], -1)).transpose(1, 2)
    heads = heads.expand(len(tokens), -1, -1, -1)
    return cat([heads, tokens] if first else [tokens, heads], dim=2)
