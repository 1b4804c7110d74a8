import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cdl_hf.distillation.losses import dist_loss, dkd_loss, kd_loss, standardized_kd_loss

LOG2, LOG3 = math.log(2), math.log(3)


def test_kd_by_hand():
    """Probabilities (3/4, 1/4) of the teacher, (1/2, 1/2) of the student."""
    teacher, student = torch.tensor([[LOG3, 0.0]]), torch.tensor([[0.0, 0.0]])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kd_loss(student, teacher, 1.0).item() == pytest.approx(divergence)
    assert kd_loss(2 * student, 2 * teacher, 2.0).item() == pytest.approx(4 * divergence)
    two = kd_loss(torch.cat([student, teacher]), torch.cat([teacher, teacher]), 1.0)
    assert two.item() == pytest.approx(divergence / 2)  # mean over the images
    assert kd_loss(student, teacher, 1.0) != kd_loss(teacher, student, 1.0)


def test_dkd_by_hand():
    """Target 0. Teacher (1/2, 3/8, 1/8), student (1/3, 1/3, 1/3)."""
    teacher, student = torch.tensor([[4.0, 3.0, 1.0]]).log(), torch.zeros(1, 3)
    split = 0.5 * math.log(0.5 * 3) + 0.5 * math.log(0.5 * 3 / 2)
    rest = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    label = torch.tensor([0])
    assert dkd_loss(student, teacher, label, 1.0).item() == pytest.approx(split + 4 * rest)
    assert dkd_loss(student, teacher, label, 1.0, 3.0, 0.0).item() == pytest.approx(3 * split)
    assert dkd_loss(4 * student, 4 * teacher, label, 4.0).item() == pytest.approx(16 * (split + 4 * rest))
    # KD is DKD with the teacher's own weight of the rest (arXiv 2203.08679, eq. 6)
    assert dkd_loss(student, teacher, label, 1.0, 1.0, 0.5).item() == pytest.approx(
        kd_loss(student, teacher, 1.0).item()
    )


def test_standardized_kd_by_hand():
    """Logits (5, 3) standardise to (1, -1), and (0, 9) to (-1, 1): what counts is the order, here of two classes."""
    up, down = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))
    expected = up * math.log(up / down) + down * math.log(down / up)
    student, teacher = torch.tensor([[0.0, 9.0]]), torch.tensor([[5.0, 3.0]])
    assert standardized_kd_loss(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-5)
    logits, other = torch.randn(4, 6), torch.randn(4, 6)
    scaled = standardized_kd_loss(3 * logits - 2, 0.1 * other + 5, 2.0)
    assert scaled.item() == pytest.approx(standardized_kd_loss(logits, other, 2.0).item(), rel=1e-4)
    assert standardized_kd_loss(logits[:, :1], other[:, :1], 2.0) == 0


def test_dist_by_hand():
    """Probabilities of two images over three classes; correlations computed by numpy."""
    student = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    teacher = torch.tensor([[0.7, 0.1, 0.2], [0.2, 0.2, 0.6]])
    rows = [1 - np.corrcoef(s, t)[0, 1] for s, t in zip(student, teacher, strict=True)]
    columns = [1 - np.corrcoef(s, t)[0, 1] for s, t in zip(student.T, teacher.T, strict=True)]
    expected = np.mean(rows) + np.mean(columns)
    assert dist_loss(student.log(), teacher.log(), 1.0).item() == pytest.approx(expected, rel=1e-4)
    assert dist_loss(4 * student.log(), 4 * teacher.log(), 4.0).item() == pytest.approx(16 * expected, rel=1e-4)
    one = dist_loss(student[:1].log().requires_grad_(), teacher[:1].log(), 1.0)  # no second image to compare with
    assert one.item() == pytest.approx(rows[0] + 1, rel=1e-4)


def test_losses_of_equal_logits_are_zero_and_do_not_depend_on_a_shift():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    for loss in (
        kd_loss(logits, logits + 7, 2.0),
        dkd_loss(logits, logits - 7, labels, 4.0),
        standardized_kd_loss(logits, logits + 7, 2.0),
        dist_loss(logits, logits - 7, 1.0),
    ):
        assert loss.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_stay_finite(dtype):
    student = (1e4 * torch.randn(8, 6)).to(dtype).requires_grad_()
    teacher, labels = (1e4 * torch.randn(8, 6)).to(dtype), torch.arange(8) % 6
    for temperature in (1.0, 4.0):
        for loss in (
            kd_loss(student, teacher, temperature),
            dkd_loss(student, teacher, labels, temperature),
            standardized_kd_loss(student, teacher, temperature),
            dist_loss(student, teacher, temperature),
        ):
            (gradient,) = torch.autograd.grad(loss, student)
            assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_a_single_class_teaches_nothing():
    student = torch.randn(3, 1, requires_grad=True)
    loss = dkd_loss(student, torch.randn(3, 1), torch.zeros(3, dtype=torch.long), 4.0)
    loss.backward()
    assert loss == 0 and not student.grad.any()


def test_kd_gradient_is_of_the_size_of_cross_entropys():
    """tau^2 keeps the gradient at high temperature: (student - teacher) / C for centred logits (section 2.1)."""
    student, teacher = torch.randn(1, 5, requires_grad=True), torch.randn(1, 5)
    (gradient,) = torch.autograd.grad(kd_loss(student, teacher, 1000.0), student)
    centred = [x - x.mean() for x in (student.detach(), teacher)]
    assert torch.allclose(gradient, (centred[0] - centred[1]) / 5, atol=1e-3)
    assert not torch.allclose(gradient, F.softmax(student, dim=1), atol=1e-3)
