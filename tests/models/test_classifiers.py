"""Classifiers against what their definitions give by hand."""

import pytest
import torch
from tiny_models import tiny_backbone, tiny_model

from cdl_hf.models import PromptViTConfig, PromptViTForImageClassification, precision
from cdl_hf.models.classifiers import CLASSIFIERS, NearestClassMean, RanPAC
from cdl_hf.models.precision import to_float64
from cdl_hf.training.checkpointing import load_trained_state, trained_state


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


def test_ranpac_is_the_same_where_only_its_last_task_is_solved():
    torch.manual_seed(0)
    one, other = (classifier("ranpac", classes=(2, 2), width=4, ranpac_width=16) for _ in range(2))
    other.load_state_dict(one.state_dict())
    features, labels = torch.randn(40, 4), torch.arange(40) % 4
    first = labels < 2
    one.fit(features[first], labels[first])
    other.accumulate(features[first], labels[first])
    assert not other.weight.any()
    for each in (one, other):
        each.fit(features[~first], labels[~first])
    assert torch.allclose(one.weight, other.weight, rtol=1e-3, atol=1e-5)


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
    for name, sums in one.statistics().items():
        assert torch.allclose(sums, other.statistics()[name], rtol=1e-4, atol=1e-4)
    assert (one(features, 4).argmax(1) == labels).float().mean() > 0.9


def test_what_further_classes_need_is_no_part_of_a_saved_model(tmp_path):
    """Nor of what predicts: the Gram matrix is the square of RanPAC's width."""
    backbone, labels = tiny_backbone(), torch.arange(30) % 5
    model = tiny_model("none", tasks=2, backbone=backbone, head="ranpac", ranpac_width=64).eval()
    model.classifier.fit(torch.randn(30, 32), labels)
    model.save_pretrained(tmp_path)
    loaded, info = PromptViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["unexpected_keys"]) == set(info["missing_keys"]) == set()
    assert loaded.classifier.gram is None and loaded.classifier.num_values == (32 + 9) * 64
    assert not [name for name in model.state_dict() if name.endswith(("gram", "sums"))]
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(loaded(x).logits, model(x).logits)
    with pytest.raises(ValueError, match="cannot add classes to a saved model"):
        loaded.classifier.fit(torch.randn(8, 32), torch.full((8,), 5))
    statistics = model.classifier.statistics()
    assert sum(tensor.numel() for tensor in statistics.values()) == model.classifier.num_statistics
    loaded.classifier.load_statistics(statistics)
    features = torch.randn(8, 32)
    for classifier in (loaded.classifier, model.classifier):
        classifier.fit(features, torch.full((8,), 5))
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_saved_models_of_earlier_versions_have_it_and_load_without_a_word(tmp_path):
    model = tiny_model("none", tasks=2, head="ranpac", ranpac_width=64).eval()
    model.classifier.fit(torch.randn(30, 32), torch.arange(30) % 5)
    statistics = {f"classifier.{name}": tensor.clone() for name, tensor in model.classifier.statistics().items()}
    model.save_pretrained(tmp_path, state_dict={**model.state_dict(), **statistics})
    loaded, info = PromptViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["unexpected_keys"]) == set(info["missing_keys"]) == set()
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(loaded(x).logits, model(x).logits)


@pytest.mark.parametrize("statistics", [True, False])
def test_a_run_goes_on_from_what_its_checkpoints_hold(statistics):
    model, other = (tiny_model("none", tasks=2, head="ranpac", ranpac_width=64) for _ in range(2))
    model.classifier.fit(torch.randn(30, 32), torch.arange(30) % 5)
    state = trained_state(model, statistics=statistics)
    load_trained_state(other, state)
    assert torch.equal(other.classifier.weight, model.classifier.weight)
    assert (other.classifier.gram is not None) == statistics


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_classifiers_compute_in_float32_always(kind, dtype):
    one = classifier(kind, classes=(300,), width=64, ranpac_width=256)
    features, labels = torch.randn(600, 64), torch.arange(600) % 300
    one.fit(features, labels)
    expected = one(features[:50], 300)
    other = classifier(kind, classes=(300,), width=64, ranpac_width=256)
    other.load_state_dict({name: tensor for name, tensor in one.state_dict().items() if name == "projection"}, False)
    with torch.autocast("cpu", dtype=dtype):
        found = one(features[:50], 300)
        other.fit(features, labels)
        assert torch.equal(other(features[:50], 300), expected)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert one.to(dtype)(features[:50].to(dtype), 300).dtype == torch.float32


def test_sums_are_solved_on_the_cpu_where_the_device_has_no_float64(monkeypatch):
    """The device is played by one that has no numbers at all."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: asked.append(tensor) or torch.ones(tensor.shape))
    assert to_float64(torch.ones(2)).dtype == torch.float64 and not asked
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {"meta"})
    found = to_float64(torch.ones(2, device="meta"))
    assert asked and found.dtype == torch.float64 and found.device.type == "cpu"
