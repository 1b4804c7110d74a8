"""Methods whose student follows the teacher's tokens besides its logits."""

from torch import Tensor, nn
from torch.nn import functional as F

from ..models import PromptViTForImageClassification
from .logit_methods import KD
from .token_grid import TokenGrid


class FeatureKD(KD):
    """KD plus a loss between tokens, in a common layout: see [`TokenGrid`]."""

    reads_tokens = True

    def __init__(
        self,
        student: PromptViTForImageClassification,
        teacher: PromptViTForImageClassification,
        **settings: float | None,
    ):
        super().__init__(student, teacher, **settings)
        self.grids = TokenGrid.of(student.backbone), TokenGrid.of(teacher.backbone)
        self.widths = student.backbone.embed_dim, teacher.backbone.embed_dim

    def align(self, student_tokens: Tensor, teacher_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens that stand for the same places: (B, n_s, D_s) and (B, n_t, D_t) -> (B, n, D_s) and (B, n, D_t)."""
        ours, theirs = self.grids
        if ours == theirs:
            return student_tokens, teacher_tokens
        return ours.resample(student_tokens, ours), theirs.resample(teacher_tokens, ours)


class FitNets(FeatureKD):
    """FitNets (arXiv 1412.6550, eq. 3): the student's tokens after the last block, before the final norm, projected
    to the teacher's width, follow the teacher's."""

    weight = 0.1

    def __init__(
        self,
        student: PromptViTForImageClassification,
        teacher: PromptViTForImageClassification,
        **settings: float | None,
    ):
        super().__init__(student, teacher, **settings)
        self.projection = nn.Linear(*self.widths)

    def feature_loss(self, student_tokens: tuple[Tensor, ...], teacher_tokens: tuple[Tensor, ...]) -> Tensor:
        ours, theirs = self.align(student_tokens[-1], teacher_tokens[-1])
        return self.weight * F.mse_loss(self.projection(ours).float(), theirs.float())


class ReviewKD(FeatureKD):
    """ReviewKD (arXiv 2104.09044): each block of the student, fused with what the deeper ones have learnt, follows the
    block of the teacher as far from the end.

    The loss is the mean over these blocks; of a deeper student the first blocks, which no block of the teacher
    answers, are left out.
    """

    weight = 0.2

    def __init__(
        self,
        student: PromptViTForImageClassification,
        teacher: PromptViTForImageClassification,
        **settings: float | None,
    ):
        super().__init__(student, teacher, **settings)
        pairs = min(len(student.backbone.blocks), len(teacher.backbone.blocks))
        self.fusions = nn.ModuleList(Fusion(*self.widths, deepest=i == 0) for i in range(pairs))

    def feature_loss(self, student_tokens: tuple[Tensor, ...], teacher_tokens: tuple[Tensor, ...]) -> Tensor:
        deeper, losses = None, []
        for fusion, ours, theirs in zip(
            self.fusions, reversed(student_tokens), reversed(teacher_tokens), strict=False
        ):
            ours, theirs = self.align(ours, theirs)
            deeper, out = fusion(ours, deeper)
            losses.append(F.mse_loss(out.float(), theirs.float()))
        return self.weight * sum(losses) / len(losses)


class Fusion(nn.Module):
    """Attention-based fusion of a block's tokens with the deeper blocks' (arXiv 2104.09044, section 3.3), for tokens.

    The gates are two maps of the tokens and of the deeper ones, elementwise and without squashing.

    Args:
        width: D_s of the student.
        teacher_width: D_t.
        deepest: Whether there are no deeper blocks, so that nothing is fused.
    """

    def __init__(self, width: int, teacher_width: int, deepest: bool):
        super().__init__()
        self.linear_in, self.norm_in = nn.Linear(width, width), nn.LayerNorm(width)
        self.gate = None
        if not deepest:
            self.gate, self.norm_gate = nn.Linear(width, width), nn.LayerNorm(width)
            self.norm_fused = nn.LayerNorm(width)
        self.linear_out = nn.Linear(width, teacher_width)

    def forward(self, tokens: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, n, D_s) tokens, and the deeper blocks' fused ones -> fused (B, n, D_s), and (B, n, D_t) to compare."""
        x = self.norm_in(self.linear_in(tokens))
        if self.gate is not None:
            own, other = (self.norm_gate(self.gate(map_)) for map_ in (x, deeper))
            x = self.norm_fused(x * own + deeper * other)
        return x, self.linear_out(x)
