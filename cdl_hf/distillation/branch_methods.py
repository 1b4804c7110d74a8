"""Distillation methods with a KD head: it matches the teacher's logits, and the student's own head the labels.

The [`KDBranch`] of the student provides the token that the KD head reads.
"""

from torch import Tensor

from ..models import PromptViTForImageClassification, PromptViTOutput
from ..models.kd_branches import PromptMap
from ..models.prompt_pools import PromptPool
from .logit_methods import KD


class DeiT(KD):
    """A distillation token (DeiT, arXiv 2012.12877; CDL, arXiv 2407.13911 v2), trained with soft targets."""

    kd_branch = "deit"

    def soft_logits(self, output: PromptViTOutput) -> Tensor:
        assert output.kd_logits is not None  # the student has a KD branch
        return output.kd_logits


class KDP(DeiT):
    """Knowledge distillation prompts (CDL, arXiv 2407.13911 v3): a token and prompts for the KD head alone."""

    kd_branch = "kdp"


class CDLPrompt(DeiT):
    """The teacher's prompts mapped into the student (CDL, arXiv 2407.13911 v1).

    The student's copy of the teacher's prompts is updated before every step, as the teacher changes in the same-step
    schedule.

    Raises:
        ValueError: The student was made for prompts of another kind or size, or the models use different queries.
    """

    kd_branch = "cdl_prompt"

    def __init__(
        self,
        student: PromptViTForImageClassification,
        teacher: PromptViTForImageClassification,
        **settings: float | None,
    ):
        super().__init__(student, teacher, **settings)
        if not self.shares_query:
            raise ValueError("CDL-Prompt needs a teacher whose prompts take the query of its student's query network")
        copy, pool = self._copied_pool, teacher.prompt_pool
        shapes, expected = ({name: tuple(p.shape) for name, p in m.named_parameters()} for m in (pool, copy))
        if student.config.num_tasks != teacher.config.num_tasks:
            raise ValueError("CDL-Prompt needs a teacher trained task by task, as its student is")
        is_alike = type(pool) is type(copy) and getattr(pool, "top_k", None) == getattr(copy, "top_k", None)
        if not is_alike or shapes != expected or pool.prompted_blocks != copy.prompted_blocks:
            raise ValueError(
                "CDL-Prompt needs a student made for its teacher's prompts: same prompt_method, sizes, top_k, blocks, "
                f"and teacher_width={teacher.network.embed_dim} (it has {shapes}, the student expects {expected})"
            )

    @property
    def _copied_pool(self) -> PromptPool:
        """The teacher's prompts in the student."""
        assert isinstance(self.model.kd_branch, PromptMap)
        return self.model.kd_branch.teacher_pool

    def forward(
        self, pixel_values: Tensor, labels: Tensor, query: Tensor | None = None, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        self._copied_pool.load_state_dict(self.teacher.prompt_pool.state_dict())
        return super().forward(pixel_values, labels, query, teacher_logits)
