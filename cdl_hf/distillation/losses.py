"""Losses between the logits of a student and a teacher, in float32; and rows gathered from all processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation (arXiv 1503.02531, section 2): tau^2 KL(teacher || student) at temperature tau.

    Args:
        student_logits, teacher_logits: (B, C) over the same classes, all finite.
        temperature: tau > 0; the factor tau^2 makes the size of the gradients independent of it.

    Returns:
        Scalar, mean over the batch.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    target_weight: float = 1.0,
    rest_weight: float = 4.0,
) -> Tensor:
    """Decoupled knowledge distillation (arXiv 2203.08679, eq. 7): tau^2 (1 TCKD + 4 NCKD).

    TCKD is the KL divergence between the binary distributions target / non-target, NCKD the one between the
    distributions over the non-target classes.

    Args:
        student_logits, teacher_logits: (B, C) over the same classes, all finite.
        labels: (B,) targets.
        temperature: tau > 0.

    Returns:
        Scalar, mean over the batch; 0 for a single class.
    """
    student, teacher = (F.log_softmax(x.float() / temperature, dim=1) for x in (student_logits, teacher_logits))
    classes = student.shape[1]
    if classes == 1:
        return student.sum() * 0
    # by index rather than by mask: the size of a masked selection would force a synchronization with the device
    others = torch.arange(classes - 1, device=labels.device).expand(len(labels), -1)
    others = others + (others >= labels[:, None])

    def parts(log_probability: Tensor) -> tuple[Tensor, Tensor]:
        """Of the target against the others, and within the others."""
        target = log_probability.gather(1, labels[:, None])
        other = log_probability.gather(1, others)
        total = other.logsumexp(1, keepdim=True)  # not log(1 - p), which is log(0) where p rounds to 1
        return torch.cat([target, total], dim=1), other - total

    (student_target, student_rest), (teacher_target, teacher_rest) = parts(student), parts(teacher)
    target_loss = F.kl_div(student_target, teacher_target, reduction="batchmean", log_target=True)
    rest_loss = F.kl_div(student_rest, teacher_rest, reduction="batchmean", log_target=True)
    return temperature**2 * (target_weight * target_loss + rest_weight * rest_loss)


def standardized_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KD of standardized logits (arXiv 2403.01427, eq. 8): matches the relations between the teacher's logits, not
    their scale.

    Args:
        student_logits, teacher_logits: (B, C) over the same classes, all finite; standardized per image to mean 0
            and standard deviation 1.
        temperature: tau > 0, the paper's base temperature.

    Returns:
        Scalar, mean over the batch; 0 for a single class. With two classes only the sign of their difference remains,
        so no gradient reaches the student.
    """
    return kd_loss(_standardize(student_logits.float()), _standardize(teacher_logits.float()), temperature)


def _standardize(logits: Tensor) -> Tensor:
    centered = logits - logits.mean(1, keepdim=True)
    return centered * (centered.square().mean(1, keepdim=True) + 1e-12).rsqrt()


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Tensor:
    """DIST (arXiv 2205.10536, eq. 8 and 9): tau^2 times the sum of two Pearson distances between probabilities: over
    the classes of each image, and over the images of each class.

    Args:
        student_logits, teacher_logits: (B, C) over the same classes, all finite.
        temperature: tau > 0.
        gather: Maps the rows (B, C) of this process to those of the whole batch, for the distances of the classes.

    Returns:
        Scalar between 0 and 4 tau^2. With one image or one class, one of the distances is constantly 1.
    """
    student, teacher = (F.softmax(x.float() / temperature, dim=1) for x in (student_logits, teacher_logits))
    of_classes = _pearson_distance(gather(student).T, gather(teacher).T)
    return temperature**2 * (_pearson_distance(student, teacher) + of_classes)


def _pearson_distance(x: Tensor, y: Tensor) -> Tensor:
    """One minus the correlation of corresponding rows, mean over the rows."""
    x, y = (values - values.mean(1, keepdim=True) for values in (x, y))
    return 1 - F.cosine_similarity(x, y, dim=1).mean()


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (B, ...) of all P processes in the order of their ranks, (P B, ...); every process must have B rows.

    Every process must compute the same loss from them. The gradient of a process's own rows is multiplied by P: the
    mean over processes that DistributedDataParallel takes of the weights' gradients is then the gradient of the loss.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        processes = distributed.get_world_size()
        return processes * gradient.chunk(processes)[distributed.get_rank()]
