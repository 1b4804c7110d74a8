"""Methods whose student has a KD head, beside its own, that follows the teacher's logits.

The student's own head learns from the labels alone. What the KD head reads is the student's [`KDBranch`].
"""

from torch import Tensor

from ..models import PromptViTForImageClassification, PromptViTOutput
from .logit_methods import KD


class DeiT(KD):
    """A distillation token (DeiT, arXiv 2012.12877; CDL, arXiv 2407.13911 v2), learnt with soft targets."""

    kd_branch = "deit"

    def soft_logits(self, output: PromptViTOutput) -> Tensor:
        return output.kd_logits


class KDP(DeiT):
    """Knowledge distillation prompts (CDL, arXiv 2407.13911 v3): a token and prompts of the KD head's own."""

    kd_branch = "kdp"


class CDLPrompt(DeiT):
    """The teacher's prompts mapped into the student (CDL, arXiv 2407.13911 v1).

    The student's copy of the teacher's prompts is renewed before every step: after the teacher's stage it stays the
    same, in the same-step schedule it follows.

    Raises:
        ValueError: The teacher's prompts are not those that the student was made for, or take another query.
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
            raise ValueError("CDL-Prompt needs a teacher that takes its query from the student's query network")
        copy, pool = student.kd_branch.teacher_pool, teacher.prompt_pool
        shapes, expected = ({name: tuple(p.shape) for name, p in m.named_parameters()} for m in (pool, copy))
        if student.config.num_tasks != teacher.config.num_tasks:
            raise ValueError("CDL-Prompt maps the prompts of a teacher that learns task by task, as its student does")
        if type(pool) is not type(copy) or shapes != expected or pool.prompted_blocks != copy.prompted_blocks:
            raise ValueError(
                "CDL-Prompt needs a student made for its teacher's prompts: same prompt_method, sizes and blocks, "
                f"teacher_width={teacher.backbone.embed_dim}. Theirs are {shapes}, the student expects {expected}"
            )

    def forward(
        self, pixel_values: Tensor, labels: Tensor, query: Tensor | None = None, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        self.model.kd_branch.teacher_pool.load_state_dict(self.teacher.prompt_pool.state_dict())
        return super().forward(pixel_values, labels, query, teacher_logits)
