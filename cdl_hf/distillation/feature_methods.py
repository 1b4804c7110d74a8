"""Distillation methods that match the tokens of the transformer blocks, with the logits or without."""

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import PromptViTForImageClassification
from ..models.networks import Network, network_of
from .logit_methods import KD
from .objective import TrainingObjective


@dataclass(frozen=True)
class TokenGrid:
    """Layout of tokens: CLS, registers, then patches in rows.

    Args:
        before: Number of tokens before the patches: CLS and registers.
        height, width: Number of patches.
        has_class_token: Whether the first token is CLS.
    """

    before: int
    height: int
    width: int
    has_class_token: bool

    @classmethod
    def of(cls, network: Network, tokens: Tensor) -> "TokenGrid":
        """The layout of tokens (B, n, D) of a layer of a network; its images are square."""
        before = network.num_prefix_tokens
        side = math.isqrt(tokens.shape[1] - before)
        return cls(before, side, side, network.has_class_token)

    def resample(self, tokens: Tensor, grid: "TokenGrid") -> Tensor:
        """CLS and patches, the patches interpolated to another grid: (B, n, D) -> (B, 1 + height * width, D).

        Registers belong to no image region and are left out, as is CLS if one of the two has none.
        """
        cls, patches = tokens[:, : self.has_class_token and grid.has_class_token], tokens[:, self.before :]
        if (self.height, self.width) != (grid.height, grid.width):
            image = patches.float().transpose(1, 2).unflatten(2, (self.height, self.width))
            image = F.interpolate(image, (grid.height, grid.width), mode="bilinear", antialias=True)
            patches = image.flatten(2).transpose(1, 2).to(tokens.dtype)
        return torch.cat([cls, patches], dim=1)


class FeatureKD(KD):
    """KD plus a loss between tokens, compared in one layout; see [`TokenGrid`]."""

    reads_tokens = True

    def __init__(
        self,
        student: PromptViTForImageClassification,
        teacher: PromptViTForImageClassification,
        **settings: float | None,
    ):
        super().__init__(student, teacher, **settings)
        self.networks = student.network, teacher.network
        self.token_dims = student.network.token_dim, teacher.network.token_dim

    def align(self, student_tokens: Tensor, teacher_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the same image regions: (B, n_s, D_s) and (B, n_t, D_t) -> (B, n, D_s) and (B, n, D_t)."""
        ours, theirs = map(TokenGrid.of, self.networks, (student_tokens, teacher_tokens))
        if ours == theirs:
            return student_tokens, teacher_tokens
        common = replace(ours, has_class_token=ours.has_class_token and theirs.has_class_token)
        return ours.resample(student_tokens, common), theirs.resample(teacher_tokens, common)


class FitNets(FeatureKD):
    """FitNets (arXiv 1412.6550, eq. 3): mean squared error between the teacher's tokens and the student's, which are
    projected to the teacher's embed_dim. Both are taken after the last block, before the final norm."""

    weight = 0.1

    def __init__(
        self,
        student: PromptViTForImageClassification,
        teacher: PromptViTForImageClassification,
        **settings: float | None,
    ):
        super().__init__(student, teacher, **settings)
        self.projection = nn.Linear(*self.token_dims)

    def feature_loss(self, student_tokens: tuple[Tensor, ...], teacher_tokens: tuple[Tensor, ...]) -> Tensor:
        ours, theirs = self.align(student_tokens[-1], teacher_tokens[-1])
        return self.weight * F.mse_loss(self.projection(ours).float(), theirs.float())


class ReviewKD(FeatureKD):
    """ReviewKD (arXiv 2104.09044): each block of the student, fused with the deeper ones, matches a teacher's block.

    Blocks are paired by their distance from the end.

    The loss is the mean over the pairs; the first blocks of a deeper student have none and are left out.

    Raises:
        ValueError: A network has stages in place of blocks of one width.
    """

    weight = 0.2

    def __init__(
        self,
        student: PromptViTForImageClassification,
        teacher: PromptViTForImageClassification,
        **settings: float | None,
    ):
        super().__init__(student, teacher, **settings)
        for model in (student, teacher):
            if not model.network.blocks:
                raise ValueError(
                    f"reviewkd fuses the tokens of blocks of one width, and {model.config.backbone} has stages: take "
                    "fitnets or another distillation"
                )
        pairs = min(student.network.depth, teacher.network.depth)
        self.fusions = nn.ModuleList(Fusion(*self.token_dims, deepest=i == 0) for i in range(pairs))

    def feature_loss(self, student_tokens: tuple[Tensor, ...], teacher_tokens: tuple[Tensor, ...]) -> Tensor:
        deeper, losses = None, []
        for fusion, ours, theirs in zip(
            self.fusions, reversed(student_tokens), reversed(teacher_tokens), strict=False
        ):
            ours, theirs = self.align(ours, theirs)
            deeper, out = fusion(ours, deeper)
            losses.append(F.mse_loss(out.float(), theirs.float()))
        return self.weight * cast(Tensor, sum(losses)) / len(losses)


class FrozenFeatures(TrainingObjective):
    """What heads read of the teacher's frozen backbone, its class token, matched through a linear map by cosine.

    The target is the same in every task, as nothing of the teacher that is trained has a part in it. The loss is
    1 - cos plus the prompt loss, and needs no labels: these only train the head, which reads detached features.

    Args:
        student: A model without a KD branch. Only weight updates and prompts move its features.
        teacher: The model whose backbone is the target.

    Raises:
        ValueError: The student has a KD branch, or nothing that moves its features.
    """

    def __init__(self, student: PromptViTForImageClassification, teacher: PromptViTForImageClassification):
        super().__init__(student, teacher.eval())
        if student.config.kd_branch != "none":
            raise ValueError(
                f"FrozenFeatures needs a student with kd_branch='none', this one has {student.config.kd_branch!r}"
            )
        if not list(student.prompt_pool.parameters()):
            raise ValueError(
                f"FrozenFeatures moves the student's features, and prompt_method={student.config.prompt_method!r} "
                "trains nothing that could: take prompt_method='lora'"
            )
        self.target = (teacher.backbone,)  # in a tuple: not a child
        self.projection = nn.Linear(student.network.embed_dim, teacher.network.embed_dim)

    def forward(
        self, pixel_values: Tensor, labels: Tensor, query: Tensor | None = None, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        model = self.model
        query = model.query(pixel_values) if query is None else query
        output = model(pixel_values, query=query, output_hidden_states=True)
        features = model.network.pooled(output.hidden_states[-1])
        with torch.no_grad():
            target = network_of(self.target[0]).features(pixel_values)
        output.logits = model.head(features.detach(), model.config.seen_classes)
        logits, terms = self._hard_loss(output, labels)
        similarity = F.cosine_similarity(self.projection(features).float(), target.float(), dim=-1)
        terms["feature_loss"] = (1 - similarity).mean()
        return self._output(terms, logits, query)


class Fusion(nn.Module):
    """Attention-based fusion of a block's tokens with those of the deeper blocks (arXiv 2104.09044, section 3.3).

    The gates are linear maps of the two inputs, applied elementwise and without a squashing function.

    Args:
        embed_dim: D_s, embed_dim of the student.
        teacher_dim: D_t, embed_dim of the teacher.
        deepest: Whether there is no deeper block, so that nothing is fused.
    """

    def __init__(self, embed_dim: int, teacher_dim: int, deepest: bool):
        super().__init__()
        self.linear_in, self.norm_in = nn.Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim)
        self.gate = None
        if not deepest:
            self.gate, self.norm_gate = nn.Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim)
            self.norm_fused = nn.LayerNorm(embed_dim)
        self.linear_out = nn.Linear(embed_dim, teacher_dim)

    def forward(self, tokens: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens and the fused ones of the deeper blocks, (B, n, D_s) -> fused (B, n, D_s), projected (B, n, D_t)."""
        x = self.norm_in(self.linear_in(tokens))
        if self.gate is not None:
            own, other = (self.norm_gate(self.gate(map_)) for map_ in (x, deeper))
            x = self.norm_fused(x * own + deeper * other)
        return x, self.linear_out(x)
