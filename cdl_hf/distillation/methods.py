"""How a student learns from a teacher.

One contract. A method owns the student and its training-only modules as one `nn.Module` (what
DistributedDataParallel wraps) and answers `method(pixel_values, labels)` with `{"loss": ..., "logits": ..., <named
parts of the loss>}`. Labels are columns of the current task's classes; `logits` are the student's over those classes,
(B, C_task). The teacher is frozen, in evaluation mode, and not a child of the method.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import PromptViTForImageClassification, PromptViTOutput
from .losses import kd_loss


class Supervised(nn.Module):
    """No distillation: cross-entropy over the current task's classes plus the prompt loss.

    This trains a teacher, and a student without one.
    """

    kd_branch = "none"  # what the student must carry

    def __init__(self, student: PromptViTForImageClassification):
        super().__init__()
        self.student = student

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = self.student(pixel_values)
        logits, parts = self._hard_loss(output, labels)
        return {"loss": sum(parts.values()), "logits": logits, **parts}

    def _hard_loss(self, output: PromptViTOutput, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        current = self.student.config.current_columns
        logits = output.logits[:, current]
        parts = {"cross_entropy": F.cross_entropy(logits.float(), labels - current.start)}
        if output.prompt_loss is not None:
            parts["prompt_loss"] = output.prompt_loss
        return logits, parts


class KD(Supervised):
    """Knowledge distillation (arXiv 1503.02531) on the student's own head, over the current task's classes.

    Loss = (1 - alpha) CE + alpha tau^2 KL(teacher || student) + prompt loss.

    Args:
        student: In training mode during training.
        teacher: Trained on the current task; used in evaluation mode, without gradients.
        alpha: Weight of the soft loss against the cross-entropy, between 0 and 1.
        temperature: tau; the method's own default when `None`.

    Raises:
        ValueError: The student lacks the KD branch that the method reads.
    """

    default_temperature = 2.0

    def __init__(
        self,
        student: PromptViTForImageClassification,
        teacher: PromptViTForImageClassification,
        alpha: float = 0.5,
        temperature: float | None = None,
    ):
        super().__init__(student)
        if student.config.kd_branch != self.kd_branch:
            raise ValueError(
                f"{type(self).__name__} needs a student with kd_branch={self.kd_branch!r}, "
                f"this one has {student.config.kd_branch!r}"
            )
        self._teacher = (teacher.eval(),)  # in a tuple: not a child, so neither trained, wrapped nor saved with it
        self.alpha = alpha
        self.temperature = self.default_temperature if temperature is None else temperature
        self.shares_query = student.shares_query_with(teacher)

    @property
    def teacher(self) -> PromptViTForImageClassification:
        return self._teacher[0]

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        query = self.student.query(pixel_values)
        with torch.no_grad():
            teacher_output = self.teacher(pixel_values, query=query if self.shares_query else None)
        output = self.student(pixel_values, query=query)
        logits, parts = self._hard_loss(output, labels)
        parts["cross_entropy"] = (1 - self.alpha) * parts["cross_entropy"]
        current = self.student.config.current_columns
        soft = self.soft_loss(self.soft_logits(output)[:, current], teacher_output.logits[:, current], labels)
        parts["soft_loss"] = self.alpha * soft
        return {"loss": sum(parts.values()), "logits": logits, **parts}

    def soft_logits(self, output: PromptViTOutput) -> Tensor:
        """The student's logits that follow the teacher's: (B, C_seen)."""
        return output.logits

    def soft_loss(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Loss between logits (B, C_task) of the current task's classes, before its weight alpha."""
        return kd_loss(student_logits, teacher_logits, self.temperature)


class KDP(KD):
    """Knowledge distillation prompts (CDL, arXiv 2407.13911 v3): the KD head, read off a token of its own and steered
    by prompts of its own, follows the teacher; the student's head only learns from the labels."""

    kd_branch = "kdp"

    def soft_logits(self, output: PromptViTOutput) -> Tensor:
        return output.kd_logits


METHODS: dict[str, type[Supervised]] = {"none": Supervised, "kd": KD, "kdp": KDP}
