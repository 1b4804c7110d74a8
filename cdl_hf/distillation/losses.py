"""Losses between a student's and a teacher's logits, as pure functions in float32."""

from torch import Tensor
from torch.nn import functional as F


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation (arXiv 1503.02531, section 2): tau^2 KL(teacher || student) at temperature tau.

    Args:
        student_logits, teacher_logits: (B, C) over the same classes, all finite.
        temperature: tau > 0; the factor tau^2 keeps the gradients' size independent of it.

    Returns:
        Scalar, mean over the batch.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
