"""Distillation in closed form: equal to ridge regression image by image, whatever the tasks."""

import json

import pytest
import torch
from tiny_models import CLASSES_PER_TASK, PROMPTS, TEACHER, images, start_task, tiny_backbone, tiny_model

from cdl_hf.distillation.analytic import Analytic
from cdl_hf.models import PromptViTConfig, PromptViTForImageClassification
from cdl_hf.models.analytic import AnalyticHead, FeaturePredictor
from cdl_hf.runs.checkpointing import load_trained_state, trained_state

WIDTHS = {"ranpac_width": 24, "analytic_width": 20}


def pair(tasks=3, prompts="none", teacher_options=None, **config):
    """Teacher and student of tiny random models that have begun `tasks` tasks."""
    torch.manual_seed(0)
    options = {"head": "ranpac", **WIDTHS, **config}
    teacher = tiny_model(
        prompts, tasks=tasks, backbone=tiny_backbone(**TEACHER), **{**options, **(teacher_options or {})}
    )
    width = teacher.network.width(teacher.readout)
    student = tiny_model(prompts, "analytic", tasks, teacher_width=width, **options)
    return teacher.eval(), student.eval()


def fit(teacher, student, x, labels, mirror=False):
    """As a run does, of one task's images."""

    def read(model, mirrored):
        return model.head_features(x.flip(-1) if mirrored else x)

    teacher.fit_classifier(read(teacher, False), labels)
    Analytic(student, teacher).fit_classifier(read(student, False), labels, read, mirror)


def tasks_of(count=40):
    torch.manual_seed(1)
    first = 0
    for size in CLASSES_PER_TASK:
        labels = first + torch.arange(count) % size
        yield images(count) + labels[:, None, None, None] / 4, labels
        first += size


def predictor(seed=0, groups=1):
    torch.manual_seed(seed)
    made = FeaturePredictor(12, 30, 5, groups)
    made.init_weights()
    return made


def rows(count=200):
    torch.manual_seed(2)
    x = torch.randn(count, 12)
    return x, (x[:, :5].sin() + x[:, 5:10]), torch.arange(count) % 5 == 0


def test_the_prediction_is_ridge_regression_on_random_features():
    one, (x, z, held_out) = predictor(), rows()
    one.fit(x, z, held_out)
    hidden = (((x - x.mean(0)) / x.std(0, correction=0)) @ one.projection).clamp_min(0).double()
    gram = hidden.T @ hidden + one.sums.best_ridge * torch.eye(30)
    expected = hidden @ torch.linalg.solve(gram, hidden.T @ z.double())
    assert torch.allclose(one(x).double(), expected, atol=1e-4)
    kept = hidden[~held_out]
    gram = kept.T @ kept + one.sums.best_ridge * torch.eye(30)
    expected = hidden @ torch.linalg.solve(gram, kept.T @ z[~held_out].double())
    assert torch.allclose(one.held_out_predictions(x).double(), expected, atol=1e-4)


@pytest.mark.parametrize("groups", [2, 4])  # 4 does not divide the 30 directions
def test_each_direction_of_a_grouped_projection_reads_one_part(groups):
    grouped, whole, (x, z, held_out) = predictor(groups=groups), predictor(), rows()
    columns = -(-30 // groups)
    whole.projection.zero_()
    for direction in range(30):
        part, column = divmod(direction, columns)
        reads = slice(part * 12 // groups, (part + 1) * 12 // groups)
        whole.projection[reads, direction] = grouped.projection[part, :, column]
    for each in (grouped, whole):
        each.fit(x, z, held_out)
    assert grouped.projection.numel() == 12 // groups * columns * groups
    assert torch.allclose(grouped(x), whole(x), atol=1e-4)


def test_groups_divide_the_features():
    with pytest.raises(ValueError, match="analytic_groups is 5, but must divide the 12 features"):
        FeaturePredictor(12, 30, 5, groups=5)


def test_a_new_student_has_a_group_for_each_token_and_one_of_before_has_one(tmp_path):
    _, student = pair()
    depth = student.network.depth
    assert student.config.analytic_groups == 2 * depth
    assert student.analytic.predictor.projection.shape[0] == 2 * depth
    _, dense = pair(analytic_groups=1)
    dense.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored.pop("analytic_groups", None)  # a field that earlier versions did not have
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = PromptViTForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.analytic.predictor.projection, dense.analytic.predictor.projection)


@pytest.mark.parametrize("tasks", [2, 5, 20])
@pytest.mark.parametrize("order", [0, 1])
def test_a_stream_gives_the_weights_of_all_images_at_once(tasks, order):
    """In any order and number of tasks, with one ridge and one standardization."""
    joint, stream, (x, z, held_out) = predictor(), predictor(), rows()
    joint.fit(x, z, held_out)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(order))
    stream._standardize = lambda features: FeaturePredictor._standardize(stream, x)
    for part in shuffled.chunk(tasks):
        stream.fit(x[part], z[part], held_out[part])
    ridge = joint.sums.best_ridge
    assert torch.allclose(stream.sums.solve(ridge), joint.sums.solve(ridge), atol=1e-5)


def test_the_teachers_classifier_is_that_of_the_teachers_features():
    teacher, student = pair()
    for x, labels in tasks_of():
        fit(teacher, student, x, labels)
    features = teacher.head_features(x)[:, 0]
    assert torch.allclose(student.analytic.classifier(features, 9), teacher.classifier(features, 9), atol=1e-5)


@pytest.mark.parametrize("scores", ["teacher", "own", "both"])
def test_scores_are_of_the_teachers_classifier_its_own_or_both(scores):
    teacher, student = pair(analytic_scores=scores)
    for x, labels in tasks_of():
        fit(teacher, student, x, labels)
    own = student.classifier(student.head_features(x)[:, 0, -32:], 9)
    theirs = teacher.classifier(student.analytic.predictor(student.head_features(x)[:, 0]), 9)
    expected = {"teacher": theirs, "own": own, "both": own + theirs}[scores]
    assert torch.allclose(student(x).logits, student.logit_scale * expected, atol=1e-4)
    assert student.analytic.report()["scores"] == scores


def test_held_out_images_choose_the_scores():
    """Those that give held-out images the highest likelihood, summed over the tasks."""
    config = PromptViTConfig(
        classes_per_task=[3], prompt_method="none", head="ncm", kd_branch="analytic", teacher_width=4, analytic_width=8
    )
    labels = torch.arange(60) % 3
    classes = torch.nn.functional.one_hot(labels, 4).float()
    for informed, expected in ((True, "teacher"), (False, "own")):
        torch.manual_seed(0)
        head = AnalyticHead(config, 4)
        for module in (head.predictor, head.classifier, head):
            module.init_weights()
        noise = torch.randn(60, 4)
        features = classes + 0.01 * noise if informed else noise
        head.fit(features, classes + 0.01 * noise, labels)
        own_scores = 40 * torch.randn(60, 3) if informed else 16 * classes[:, :3]
        left_out = head.classifier.held_out(labels)
        head.choose_scores(features[left_out], classes[left_out], labels[left_out], own_scores[left_out])
        report = head.report()
        assert report["scores"] == expected
        assert (report["cosine"] > 0.95) == informed
        assert report[f"held_out_accuracy_{expected}"] == 100 and report["held_out_accuracy_teacher"] > 99 * informed


def test_a_mirrored_image_is_predicted_like_its_teachers():
    teacher, student = pair()
    _, other = pair()
    other.load_state_dict(student.state_dict())
    x, labels = next(tasks_of())
    fit(teacher, student, x, labels, mirror=True)
    twice = torch.cat([other.head_features(x)[:, 0], other.head_features(x.flip(-1))[:, 0]])
    other.analytic.predictor.mean.copy_(student.analytic.predictor.mean)
    sums = student.analytic.predictor.sums
    hidden = student.analytic.predictor._random_features(twice)
    assert torch.allclose(sums.gram, hidden.T @ hidden, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("prompts", list(PROMPTS))
def test_prompts_of_the_first_task_stay_and_so_do_the_sums(prompts):
    teacher, student = pair(tasks=1, prompts=prompts, train_tasks=1)
    Analytic(student, teacher)
    with pytest.raises(ValueError, match="prompts that are trained in each task change them"):
        pair(tasks=1, prompts=prompts)


def test_what_does_not_fit_is_refused():
    teacher, student = pair()
    with pytest.raises(ValueError, match="needs a student with kd_branch='analytic'"):
        Analytic(tiny_model("none", head="ranpac"), teacher)
    changing = tiny_model("l2p", backbone=tiny_backbone(**TEACHER), head="ranpac", ranpac_width=24)
    with pytest.raises(ValueError, match="trained in each task, change them"):
        Analytic(student, changing)
    with pytest.raises(ValueError, match="predicts 48 features of its teacher, but the teacher's classifier reads 96"):
        Analytic(student, pair(teacher_options={"ranpac_layers": 2})[0])
    with pytest.raises(ValueError, match="head ncm or ranpac, got linear"):
        tiny_model("none", "analytic", teacher_width=48)
    with pytest.raises(ValueError, match="needs teacher_width"):
        tiny_model("none", "analytic", head="ncm")


@pytest.mark.parametrize("head", ["ncm", "ranpac"])
def test_a_student_is_whole_without_its_teacher_after_each_task(tmp_path, head):
    teacher, student = pair(tasks=0, head=head)
    stored = None
    for task, (x, labels) in enumerate(tasks_of()):
        start_task(teacher)
        start_task(student)
        if stored is not None:  # as a resumed run
            _, student = pair(tasks=task + 1, head=head)
            load_trained_state(student, stored)
        fit(teacher, student, x, labels)
        stored = trained_state(student, statistics=True)
        student.save_pretrained(tmp_path / str(task))
        loaded, info = PromptViTForImageClassification.from_pretrained(tmp_path / str(task), output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(loaded(x).logits, student(x).logits)
        assert torch.allclose(loaded(x[:1]).logits, student(x).logits[:1], atol=1e-3)  # whatever the batch
    with pytest.raises(ValueError, match="no sums|no statistics|saved"):
        fit(teacher, loaded, x, labels)


def test_what_hardly_varies_at_first_is_not_blown_up():
    one, (x, z, held_out) = predictor(), rows()
    x[:100, 3] = 0.1
    one.fit(x[:100], z[:100], held_out[:100])
    assert one.deviation[3] > 0.05


def test_student_and_teacher_are_made_with_classifiers_alike():
    teacher, student = pair(teacher_options={"ranpac_width": 30})
    with pytest.raises(ValueError, match="ranpac of width 30, but was made for ranpac of width 24"):
        Analytic(student, teacher)


def test_sizes_that_no_memory_holds_are_refused():
    sizes = {"teacher_width": 100_000, "analytic_width": 100_000}
    with pytest.raises(ValueError, match="is more than 1,000,000,000"):
        tiny_model("none", "analytic", head="ranpac", **sizes)


def test_its_own_scores_cost_no_prediction_of_the_teacher(monkeypatch):
    teacher, student = pair(analytic_scores="own")
    x, labels = next(tasks_of())
    fit(teacher, student, x, labels)
    monkeypatch.setattr(FeaturePredictor, "forward", lambda *args: pytest.fail("the teacher was predicted"))
    assert student(x[:2]).logits.isfinite().all()
