"""Heads that are aligned on sampled features."""

import pytest
import torch
from tiny_models import tiny_model

from cdl_hf.training.classifier_alignment import RANK, SHRINKAGE, ClassifierAlignment


def covariances_of(alignment: ClassifierAlignment, head: int = 0) -> list[torch.Tensor]:
    """(D, D) of each class, as they are drawn from."""
    kept = zip(alignment.factors, alignment.rests, strict=True)
    return [f[head].T @ f[head] + rest[head] * torch.eye(f.shape[2]) for f, rest in kept]


def test_alignment_keeps_no_square_of_the_width():
    """But the directions in which a class varies most, and how much it varies in the others."""
    torch.manual_seed(0)
    width, rank, labels = 64, 5, torch.arange(3).repeat_interleave(100)
    narrow = torch.einsum("nhr,hrd->nhd", torch.randn(300, 2, rank), torch.randn(2, rank, width))
    alignment = ClassifierAlignment()
    alignment.add(narrow, labels)  # classes of rank 5 are remembered as they are
    for head in range(2):
        for column, covariance in enumerate(covariances_of(alignment, head)):
            whole = narrow[labels == column, head].T.cov()
            whole = whole + SHRINKAGE * whole.diagonal().mean() * torch.eye(width)
            assert torch.allclose(covariance, whole, rtol=1e-3, atol=1e-3)
    wide = torch.randn(300, 2, width)
    alignment.add(wide, labels)
    whole, covariance = wide[labels == 2, 1].T.cov(), covariances_of(alignment, 1)[-1]
    largest = [torch.linalg.eigvalsh(each)[-RANK:] for each in (whole, covariance)]
    assert torch.allclose(*largest, rtol=0.01) and torch.allclose(whole.trace(), covariance.trace(), rtol=0.01)
    numbers = sum(tensor.numel() for tensors in alignment.state().values() for tensor in tensors)
    assert numbers == 6 * 2 * ((1 + RANK) * width + 1)


def test_alignments_of_earlier_versions_go_on():
    """They kept whole covariances, shrunk."""
    torch.manual_seed(0)
    narrow = torch.randn(2, 60, 1, 5) @ torch.randn(5, 32)
    means, covariances = narrow.mean(1), torch.stack([each[:, 0].T.cov() for each in narrow])[:, None]
    alignment = ClassifierAlignment()
    alignment.load_state({"means": list(means), "covariances": list(covariances)})
    assert torch.equal(torch.stack(alignment.means), means)
    for one, other in zip(covariances_of(alignment), covariances[:, 0], strict=True):
        assert torch.allclose(one, other, rtol=1e-2, atol=1e-2)
    alignment.add(torch.randn(20, 1, 32), torch.full((20,), 2))
    again = ClassifierAlignment()
    again.load_state(alignment.state())
    models = [tiny_model("coda_prompt") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for each, model in zip((alignment, again), models, strict=True):
        each.align(model, seed=0)
    assert torch.equal(models[0].head.weight, models[1].head.weight)


def test_alignment_remembers_means_and_covariances():
    alignment = ClassifierAlignment()
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [0.0, 9.0], [3.0, 7.0]])[:, None]
    alignment.add(features, torch.tensor([0, 0, 1, 1, 1]))
    assert torch.equal(torch.cat(alignment.means), torch.tensor([[2.0, 0.0], [1.0, 7.0]]))
    first, second = covariances_of(alignment)
    assert torch.allclose(first, torch.tensor([[2.0, 0.0], [0.0, 0.0]]) + SHRINKAGE * torch.eye(2))
    assert torch.allclose(second, torch.tensor([[3.0, 0.0], [0.0, 4.0]]) + 3.5 * SHRINKAGE * torch.eye(2))


@pytest.mark.parametrize("prompt_method", ["coda_prompt", "apt"])
def test_aligned_heads_tell_classes_of_different_tasks_apart(prompt_method):
    torch.manual_seed(0)
    model = tiny_model(prompt_method, "kdp", tasks=2)  # five classes
    centres = 4 * torch.eye(5, 32)[:, None].repeat(1, 2, 1)
    labels = torch.arange(5).repeat(30)
    features = centres[labels] + torch.randn(150, 2, 32)
    with torch.no_grad():
        for head in (model.head, model.kd_head):  # each task's classes are told apart, but one task always wins
            head.weight.copy_(torch.eye(9, 32) * torch.tensor([0.3] * 3 + [1.0] * 6)[:, None])
            head.bias.copy_(torch.tensor([0.0] * 3 + [2.0] * 6))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alignment = ClassifierAlignment()
    alignment.add(features, labels)
    alignment.align(model, seed=0)
    for i, head in enumerate((model.head, model.kd_head)):
        assert (head(features[:, i], 5).argmax(1) == labels).float().mean() > 0.95
        assert head.weight.grad is None  # nothing is left over for the next stage's first step
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias", "kd_head.weight", "kd_head.bias"}
    assert torch.equal(model.head.weight[5:], before["head.weight"][5:])  # classes not seen yet
    again = tiny_model(prompt_method, "kdp", tasks=2)
    again.load_state_dict(before)
    alignment.align(again, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_classes_are_carried_along_with_features_that_change():
    torch.manual_seed(0)
    features, labels = torch.randn(300, 2, 8) + 1, torch.arange(300) % 3
    changes = torch.randn(2, 8, 8)

    def changed(features: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nhd,hde->nhe", features, changes)

    carried, expected = ClassifierAlignment(), ClassifierAlignment()
    carried.add(features, labels)
    expected.add(changed(features), labels)
    new = torch.randn(100, 2, 8)
    carried.carry(new, changed(new), torch.arange(100) % 5)
    assert torch.allclose(torch.stack(carried.means), torch.stack(expected.means), atol=1e-3)
    for head in range(2):
        for one, other in zip(covariances_of(carried, head), covariances_of(expected, head), strict=True):
            assert torch.allclose(one, other, atol=1e-2 * other.diagonal().max().item())


def test_features_that_stay_leave_classes_as_they_are():
    torch.manual_seed(0)
    alignment = ClassifierAlignment()
    alignment.add(torch.randn(15, 1, 32), torch.arange(15) % 3)  # 5 images a class: most variances are the shrinkage
    before, rests = covariances_of(alignment), torch.stack(alignment.rests)
    new = torch.randn(40, 1, 32)
    for _ in range(10):
        alignment.carry(new, new, torch.arange(40) % 4)
    assert torch.allclose(torch.stack(alignment.rests), rests, rtol=1e-3)
    for one, other in zip(covariances_of(alignment), before, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
