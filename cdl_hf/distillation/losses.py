"""Losses between a student's and a teacher's logits, as pure functions in float32."""

from collections.abc import Callable

import torch
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


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    target_weight: float = 1.0,
    rest_weight: float = 4.0,
) -> Tensor:
    """Decoupled knowledge distillation (arXiv 2203.08679, eq. 7): tau^2 (1 TCKD + 4 NCKD).

    TCKD is the KL divergence of the two-class split target or not, NCKD that of the other classes among themselves.

    Args:
        student_logits, teacher_logits: (B, C) over the same classes, all finite.
        labels: (B,) targets.
        temperature: tau > 0.

    Returns:
        Scalar, mean over the batch; 0 for a single class, which leaves nothing to learn.
    """
    student, teacher = (F.log_softmax(x.float() / temperature, dim=1) for x in (student_logits, teacher_logits))
    classes = student.shape[1]
    if classes == 1:
        return student.sum() * 0
    # by their indices, not by a mask, for whose number of entries a device would have to be waited for
    others = torch.arange(classes - 1, device=labels.device).expand(len(labels), -1)
    others = others + (others >= labels[:, None])
    split, rest = [], []
    for log_probability in (student, teacher):
        target = log_probability.gather(1, labels[:, None])
        other = log_probability.gather(1, others)
        total = other.logsumexp(1, keepdim=True)  # not log(1 - p), which is log(0) where p rounds to 1
        split.append(torch.cat([target, total], dim=1))
        rest.append(other - total)
    target_loss = F.kl_div(*split, reduction="batchmean", log_target=True)
    rest_loss = F.kl_div(*rest, reduction="batchmean", log_target=True)
    return temperature**2 * (target_weight * target_loss + rest_weight * rest_loss)


def standardized_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KD of standardised logits (arXiv 2403.01427, eq. 8): the student follows the teacher's order and proportions,
    and not the scale of its logits.

    Args:
        student_logits, teacher_logits: (B, C) over the same classes, all finite; made to have mean 0 and standard
            deviation 1 for each image.
        temperature: tau > 0, the paper's base temperature.

    Returns:
        Scalar, mean over the batch; 0 for a single class. Of two classes nothing is left but which is the larger, so
        that no gradient reaches the student.
    """
    return kd_loss(_standardize(student_logits.float()), _standardize(teacher_logits.float()), temperature)


def _standardize(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    return centred * (centred.square().mean(1, keepdim=True) + 1e-12).rsqrt()


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Tensor:
    """DIST (arXiv 2205.10536, eq. 8 and 9): tau^2 times the sum of two Pearson distances between probabilities, of
    each image's over the classes and of each class's over the images of the batch.

    Args:
        student_logits, teacher_logits: (B, C) over the same classes, all finite.
        temperature: tau > 0.
        gather: Rows (B, C) of some images of a batch -> those of all of them, for the classes' distances.

    Returns:
        Scalar between 0 and 4 tau^2. Of one image, or one class, there is one distance; the other is 1 and teaches
        nothing.
    """
    student, teacher = (F.softmax(x.float() / temperature, dim=1) for x in (student_logits, teacher_logits))
    of_classes = _pearson_distance(gather(student).T, gather(teacher).T)
    return temperature**2 * (_pearson_distance(student, teacher) + of_classes)


def _pearson_distance(x: Tensor, y: Tensor) -> Tensor:
    """1 - the correlation of corresponding rows, mean over the rows."""
    x, y = (values - values.mean(1, keepdim=True) for values in (x, y))
    return 1 - F.cosine_similarity(x, y, dim=1).mean()
