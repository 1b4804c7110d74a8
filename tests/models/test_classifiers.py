"""Classifiers against what their definitions give by hand."""

import copy

import pytest
import torch
from tiny_models import tiny_backbone, tiny_model

from cdl_hf.models import PromptViTConfig, PromptViTForImageClassification, precision, ridge
from cdl_hf.models.classifiers import CLASSIFIERS, NearestClassMean, calibration_factor
from cdl_hf.models.precision import to_float64
from cdl_hf.models.readout import Readout
from cdl_hf.models.ridge import RIDGES, held_out
from cdl_hf.runs.checkpointing import load_trained_state, trained_state


def classifier(kind, classes=(2, 1), width=2, **config):
    made = CLASSIFIERS[kind](
        PromptViTConfig(classes_per_task=list(classes), prompt_method="none", head=kind, **config), width
    )
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


def ridge_tasks(tasks=3, images=60):
    """Features and class ids of tasks of two classes each, hard to tell apart."""
    torch.manual_seed(0)
    for task in range(tasks):
        labels = 2 * task + torch.arange(images) % 2
        features = torch.randn(images, 8)
        features[range(images), labels % 8] += 1
        yield features, labels


@pytest.mark.parametrize("rule", ["accuracy", "error"])
def test_ranpac_solves_the_ridge_regression_with_the_ridge_of_its_rule(rule):
    """Against the regression solved for each ridge, image by image."""
    ranpac = classifier("ranpac", classes=(2, 2, 2), width=8, ranpac_width=16, ranpac_ridge=rule)
    wide, targets = torch.empty(0, 16).double(), torch.empty(0, 6).double()
    right = torch.zeros(len(RIDGES))

    def solve(x, y, ridge):
        return torch.linalg.solve(x.T @ x + ridge * torch.eye(16, dtype=torch.float64), x.T @ y)

    for features, labels in ridge_tasks():
        ranpac.fit(features, labels)
        x = (features @ ranpac.projection).clamp_min(0).double()
        y = torch.nn.functional.one_hot(labels, 6).double()
        out, seen = ranpac.held_out(labels), int(labels.max()) + 1
        before = (torch.cat([wide, x[~out]]), torch.cat([targets, y[~out]]))
        scores = [x[out] @ solve(*before, ridge) for ridge in RIDGES]
        right += torch.tensor([int((s[:, :seen].argmax(1) == labels[out]).sum()) for s in scores])
        errors = torch.stack([((s - y[out]) ** 2).mean() for s in scores])
        best = (
            [k for k, hits in enumerate(right) if hits == right.max()][-1] if rule == "accuracy" else errors.argmin()
        )
        wide, targets = torch.cat([wide, x]), torch.cat([targets, y])
        expected = x @ solve(wide, targets, RIDGES[int(best)])
        assert torch.allclose(ranpac(features, 6).double(), expected, atol=1e-3)
        scores = ranpac.held_out_scores(features, 6).double()
        assert torch.allclose(scores, x @ solve(*before, RIDGES[int(best)]), atol=1e-3)
    assert ranpac.sums.best_ridge > RIDGES[0]


def test_ranpac_decomposes_its_matrix_once_a_task(monkeypatch):
    """That takes the cube of its width, ten times as long as solving for one ridge."""
    calls, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: calls.append(len(matrix)) or eigh(matrix))
    ranpac = classifier("ranpac", classes=(2, 2, 2), width=8, ranpac_width=16)
    for features, labels in ridge_tasks():
        ranpac.fit(features, labels)
    assert calls == [16, 16, 16]


def test_random_features_are_held_for_some_images_at_a_time(monkeypatch):
    monkeypatch.setattr(ridge, "ROWS", 7)
    one, other = (classifier("ranpac", classes=(2, 2, 2), width=8, ranpac_width=16) for _ in range(2))
    other.load_state_dict(one.state_dict())
    rows, random_features = [], one._random_features
    one._random_features = lambda x: rows.append(len(x)) or random_features(x)
    for features, labels in ridge_tasks():
        one.fit(features, labels)
    monkeypatch.undo()
    for features, labels in ridge_tasks():
        other.fit(features, labels)
    assert max(rows) == 7
    assert torch.allclose(one.weight, other.weight, atol=1e-4)


def test_a_ridge_below_rounding_answers_alike_whatever_the_rounding():
    """With fewer images than random features, which the sums in float32 make slightly indefinite."""
    torch.manual_seed(0)
    x, y, new = torch.randn(20, 64) * 100, torch.randn(20, 2), torch.randn(50, 64) * 100
    answers = []
    for order in (slice(None), torch.randperm(20)):
        sums = ridge.RidgeSums.zeros(64, 2, torch.device("cpu"))
        sums.add(lambda x: x, x[order], y[order])
        assert torch.linalg.cholesky_ex(sums.gram.double())[1] > 0
        answers.append(new @ sums.solve(1e-8).T)
    assert torch.allclose(*answers, atol=0.3 * answers[0].std().item())  # with the ridge itself 3 to 4


def test_sums_that_rounding_made_indefinite_are_solved():
    """As where most of the images were subtracted again."""
    gram, sums = torch.diag(torch.tensor([1.0, 1.0, -0.1])), torch.ones(3, 1)
    weights = ridge.RidgeSums(gram, sums, torch.zeros(len(ridge.RIDGES))).solve(0.01)
    assert torch.allclose(weights, torch.tensor([[1 / 1.01, 1 / 1.01, 1 / 0.01]]))


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
        if name == "merits":  # of the order in which the classes came
            continue
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
    assert loaded.classifier.sums is None and loaded.classifier.num_values == (32 + 9) * 64
    assert not [name for name in model.state_dict() if name.endswith(("gram", "sums"))]
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(loaded(x).logits, model(x).logits)
    with pytest.raises(ValueError, match="needs its sums over the earlier images"):
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
    del statistics["classifier.merits"]
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
    assert (other.classifier.sums is not None) == statistics


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


def test_probabilities_of_computed_classifiers_fit(tmp_path):
    """Of features with much noise: the mean confidence is near the accuracy, and no prediction changes."""
    torch.manual_seed(0)
    for kind in ("ncm", "ranpac"):
        model = tiny_model("none", tasks=2, head=kind, ranpac_width=64).eval()
        labels = torch.arange(1000) % 5
        features = torch.randn(1000, 1, 32)
        features[range(1000), 0, labels] += 2
        model.fit_classifier(features[:500], labels[:500])
        scores = model._computed_scores(features[500:], 5)
        confidences, found = (model.logit_scale * scores).softmax(1).max(1)
        accuracy = (found == labels[500:]).float().mean()
        assert abs(confidences.mean() - accuracy) < 0.08
        if kind == "ranpac":  # NCM has a usual factor of its own
            assert abs(scores.softmax(1).max(1)[0].mean() - accuracy) > 0.3
        assert torch.equal(found, scores.argmax(1))
        model.save_pretrained(tmp_path / kind)
        loaded = PromptViTForImageClassification.from_pretrained(tmp_path / kind)
        assert torch.equal(loaded.logit_scale, model.logit_scale)


def test_every_fifth_image_of_a_class_is_held_out_whatever_their_order():
    in_turns, one_by_one = torch.arange(60) % 5, torch.arange(60) // 12
    for labels in (in_turns, one_by_one):
        assert torch.bincount(labels[held_out(labels)], minlength=5).tolist() == [2] * 5
    assert held_out(in_turns).nonzero()[:, 0].tolist() == [*range(20, 25), *range(45, 50)]
    few = torch.tensor([0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3])
    assert few[held_out(few)].tolist() == [1, 2, 3] and held_out(few)[2]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_one_or_two_images_of_a_class_are_enough(kind, images):
    """An only image is not held out; without any held out, ridge and probabilities are the usual ones."""
    torch.manual_seed(0)
    model = tiny_model("none", tasks=3, head=kind, ranpac_width=64, classes_per_task=[3, 2, 4]).eval()
    centers = 4 * torch.randn(9, 32)
    for first, last in ((0, 3), (3, 5), (5, 9)):
        labels = torch.arange(first, last).repeat(images)
        model.fit_classifier((centers[labels] + torch.randn(len(labels), 32))[:, None], labels)
    labels = torch.arange(9).repeat(20)
    scores = model._computed_scores((centers[labels] + torch.randn(180, 32))[:, None], 9)
    assert (scores.argmax(1) == labels).float().mean() > 0.9
    assert (model.logit_scale == 1) == (images == 1)


def test_a_factor_fits_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert calibration_factor(logits / 20, labels) == pytest.approx(20, rel=0.1)


def test_models_saved_before_there_was_a_factor_have_none(tmp_path):
    model = tiny_model("none", tasks=2, head="ranpac", ranpac_width=64).eval()
    model.fit_classifier(torch.randn(30, 1, 32), torch.arange(30) % 5)
    x, scale = torch.rand(4, 3, 32, 32), model.logit_scale.clone()
    assert scale != 1
    state = {name: value for name, value in model.state_dict().items() if name != "logit_scale"}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = PromptViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.logit_scale == 1 and torch.allclose(scale * loaded(x).logits, model(x).logits)
    load_trained_state(model, {k: v for k, v in trained_state(model).items() if k != "logit_scale"})
    assert model.logit_scale == 1


@pytest.mark.parametrize("branch", ["none", "deit", "kdp"])
@pytest.mark.parametrize("readout", [Readout(), Readout(2), Readout(1, True), Readout(3, True)])
def test_ranpac_reads_tokens_of_several_blocks(branch, readout):
    """Against the tokens of all blocks that the model returns; the head reads the same as ever."""
    options = {"ranpac_layers": readout.layers, "ranpac_patch_means": readout.patch_means}
    backbone = tiny_backbone(depth=3)
    model = tiny_model("l2p", branch, backbone=backbone, tasks=2, head="ranpac", ranpac_width=24, **options).eval()
    x = torch.rand(2, 3, 32, 32)
    states = [model.backbone.norm(state) for state in model(x, output_hidden_states=True).hidden_states]
    extra = {"none": (0, []), "deit": (1, [0]), "kdp": (0, [-1])}[branch]
    patches = slice(extra[0] + model.backbone.num_prefix_tokens, -1 if branch == "kdp" else None)
    for i, position in enumerate([extra[0], *extra[1]]):
        kinds = [lambda z: z[:, patches].mean(1)] if readout.patch_means else []
        kinds.append(lambda z, position=position: z[:, position])
        expected = torch.cat([kind(z) for z in states[-readout.layers :] for kind in kinds], dim=1)
        found = model.head_features(x)[:, i]
        assert found.shape[1] == model.network.width(readout)
        assert torch.allclose(found, expected, atol=1e-5)
    for narrower in (Readout(), Readout(1, readout.patch_means), Readout(readout.layers)):
        part = model.network.select(model.head_features(x), narrower, readout)
        assert part.shape[-1] == model.network.width(narrower)
        assert torch.equal(part[..., -32:], model.head_features(x)[..., -32:])


def test_layers_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="ranpac_layers is 9, but .* has"):
        tiny_model("none", tasks=2, head="ranpac", ranpac_layers=9)


def test_what_is_kept_of_earlier_tasks_is_carried_along():
    """As if the earlier images had been read by the network that has learned the task; a rotation is exact."""
    torch.manual_seed(0)
    change = torch.linalg.qr(torch.randn(4, 4))[0]
    old, new, labels = torch.randn(60, 4), torch.randn(60, 4), torch.arange(60) % 3
    carried, expected = (classifier("ncm", [3, 3], 4) for _ in range(2))
    for each, features in ((carried, old), (expected, old @ change)):
        each.carry(new, new @ change, labels)  # there is nothing yet
        each.fit(features, labels)
    stale = copy.deepcopy(carried)
    carried.carry(new, new @ change, labels + 3)
    for each in (carried, expected, stale):
        each.fit(new @ change, labels + 3)
    scores, wanted, without = (each(old @ change, 6) for each in (carried, expected, stale))
    assert torch.allclose(scores, wanted, atol=1e-2) and not torch.allclose(without, wanted, atol=1)
