"""Classifiers against what their definitions give by hand."""

import pytest
import torch

from cdl_hf.models import PromptViTConfig
from cdl_hf.models.classifiers import CLASSIFIERS, NearestClassMean, RanPAC


def classifier(kind, classes=(2, 1), width=2, **config):
    made = CLASSIFIERS[kind](PromptViTConfig(classes_per_task=list(classes), head=kind, **config), width)
    made.init_weights()
    return made


def test_nearest_class_mean_of_unit_features():
    ncm = classifier("ncm")
    # of the first class (1, 0) and (0, 1), whatever their lengths; of the second (-1, 0)
    ncm.fit(torch.tensor([[9.0, 0], [0, 1], [-2, 0]]), torch.tensor([0, 0, 1]))
    scores = ncm(torch.tensor([[3.0, 3.0], [-1.0, 0.0]]), 2) / NearestClassMean.scale
    assert torch.allclose(scores, torch.tensor([[1.0, -(0.5**0.5)], [-(0.5**0.5), 1.0]]), atol=1e-6)


def test_numbers_that_a_prediction_needs():
    assert classifier("ncm", classes=(3,), width=4).num_values == 3 * 4
    assert classifier("ranpac", classes=(3,), width=4, ranpac_width=16).num_values == (4 + 3) * 16


def test_ranpac_solves_the_ridge_regression_on_rectified_projections():
    torch.manual_seed(0)
    ranpac = classifier("ranpac", classes=(3,), width=4, ranpac_width=16)
    features, labels = torch.randn(60, 4), torch.arange(60) % 3
    features[range(60), labels] += 3
    ranpac.fit(features, labels)
    wide = (features @ ranpac.projection).clamp_min(0).double()
    targets = torch.nn.functional.one_hot(labels).double()
    held_out = torch.arange(60) % 5 == 0

    def solve(rows, ridge):
        x, y = wide[rows], targets[rows]
        return torch.linalg.solve(x.T @ x + ridge * torch.eye(16, dtype=torch.float64), x.T @ y)

    errors = [((wide[held_out] @ solve(~held_out, r) - targets[held_out]) ** 2).mean() for r in RanPAC.ridges]
    best = RanPAC.ridges[int(torch.tensor(errors).argmin())]
    expected = wide @ solve(torch.ones(60, dtype=torch.bool), best)
    assert torch.allclose(ranpac(features, 3).double(), expected, atol=1e-3)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classes_come_in_any_order_and_number(kind):
    """What is kept are sums: the classes that come later change nothing of what is kept of the earlier ones."""
    torch.manual_seed(1)
    features, labels = torch.randn(40, 6), torch.arange(40) % 4
    features[range(40), labels] += 4
    one, other = (classifier(kind, classes=(2, 2), width=6, ranpac_width=24) for _ in range(2))
    other.load_state_dict(one.state_dict())  # the same random features
    first = labels < 2
    one.fit(features[first], labels[first])
    assert one(features, 2).shape == (40, 2)
    assert (one(features[first], 2).argmax(1) == labels[first]).all()
    one.fit(features[~first], labels[~first])
    other.fit(features[~first], labels[~first])
    other.fit(features[first], labels[first])
    for name, sums in one.state_dict().items():
        if name != "weight":
            assert torch.allclose(sums, other.state_dict()[name], rtol=1e-4, atol=1e-4)
    assert (one(features, 4).argmax(1) == labels).float().mean() > 0.9
