"""What a step costs on fake tensors is what it costs on real ones."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import CLASSES_PER_TASK, PAIRS, images, labels_for, tiny_model, tiny_pair
from torch.utils.flop_counter import FlopCounterMode

from cdl_hf.arguments.config import CDLConfig
from cdl_hf.distillation import TrainingObjective
from cdl_hf.distillation.logit_methods import KD
from cdl_hf.models.compute_copy import copied_weights
from cdl_hf.training.classifier_alignment import ClassifierAlignment
from cdl_hf.training.dry_run import CPU_ATTENTION, FakeSteps, _fitting, _for_classifier

CPU = torch.device("cpu")


def fake_steps(prompt_method, method):
    with torch.device("meta"):
        teacher, student = tiny_pair(prompt_method, method)
    return FakeSteps({"teacher": TrainingObjective(teacher), "student": student}, side=32, device=CPU)


@pytest.mark.parametrize(
    ("prompt_method", "method"), [pair for pair in PAIRS if pair[0] == "coda_prompt" or pair[1] == "kd"]
)
def test_a_real_step_computes_as_much(prompt_method, method):
    _, student = tiny_pair(prompt_method, method)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        student.train()(images(4), labels_for(student.model, 4))["loss"].backward()
    # LoRA folds its weights again where it cannot tell that they are the same, as with fake ones.
    exact = (
        counter.get_total_flops() if prompt_method != "lora" else pytest.approx(counter.get_total_flops(), rel=0.05)
    )
    assert fake_steps(prompt_method, method).training(["student"], 4).flops == exact


def test_flops_are_those_of_the_formula():
    """An un-prompted attention of 2 heads over n tokens: forward 4 n^2 D, backward twice that."""
    batch, heads, n, width = 3, 2, 5, 8
    query, key, value = (torch.rand(batch, heads, n, width // heads, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        torch.nn.functional.scaled_dot_product_attention(query, key, value).sum().backward()
    assert counter.get_total_flops() == 3 * batch * 4 * n**2 * width


def test_memory_grows_by_the_activations_of_an_image():
    steps = fake_steps("coda_prompt", "kdp")
    weights = sum(
        tensor.nbytes for module in steps.modules.values() for tensor in (*module.parameters(), *module.buffers())
    )
    small, large, larger = (steps.training(["teacher"], size).peak_bytes for size in (8, 16, 24))
    assert small > weights
    assert larger - large == pytest.approx(large - small, rel=0.02)
    assert (large - small) / 8 > 3 * 32 * 32 * 4  # more than the image itself
    assert steps.evaluation(24).peak_bytes < larger


def test_half_precision_halves_what_is_kept_for_the_backward_pass():
    with torch.device("meta"):
        teacher, student = tiny_pair("coda_prompt", "kdp")
    steps = FakeSteps({"teacher": TrainingObjective(teacher), "student": student}, 32, CPU, "bf16")
    full = fake_steps("coda_prompt", "kdp")
    halved, kept = (
        each.training(["teacher"], 48).peak_bytes - each.training(["teacher"], 16).peak_bytes for each in (steps, full)
    )
    assert 0.45 < halved / kept < 0.8


@pytest.mark.usefixtures("as_on_a_gpu")
def test_copies_in_half_precision_count():
    with torch.device("meta"):
        teacher, student = tiny_pair("coda_prompt", "kdp")
    steps = FakeSteps({"teacher": TrainingObjective(teacher), "student": student}, 32, CPU, "bf16")
    first, second = (steps.evaluation(1).peak_bytes for _ in range(2))
    assert second >= first  # the first one makes the copies
    for blocks in (model.backbone.blocks for model in steps.models):
        weights, copies = (sum(t.nbytes for t in each) for each in (blocks.parameters(), copied_weights(blocks)))
        assert copies == weights / 2


def test_the_last_task_takes_no_more_than_the_first():
    peaks = []
    for tasks in (1, len(CLASSES_PER_TASK)):
        with torch.device("meta"):
            teacher, student = tiny_pair("l2p", "kd", tasks)
        peaks.append(
            FakeSteps({"teacher": TrainingObjective(teacher), "student": student}, 32, CPU).training(["student"], 16)
        )
    assert peaks[1].peak_bytes == pytest.approx(peaks[0].peak_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("head", "more", "passes", "cubes"),
    [
        ("linear", {}, 0, 0),
        ("linear", {"classifier_alignment": True, "drift_compensation": True}, 2, 0),
        ("ncm", {}, 1, 0),
        ("ranpac", {}, 1, 2 * 24**3),
    ],
)
def test_classifiers_take_passes_over_the_images_and_regressions(head, more, passes, cubes):
    teacher, student = (tiny_model("l2p", tasks=0, head=head, ranpac_width=24) for _ in range(2))
    objectives = {"teacher": TrainingObjective(teacher), "student": KD(student, teacher)}
    stream = [SimpleNamespace(train=range(count)) for count in (10, 20)]
    assert _fitting(stream, CDLConfig(**more), objectives) == (30 * passes, 2 * 10 * cubes)


@pytest.mark.parametrize("method", ["kd", "deit"])
def test_a_checkpoint_holds_what_aligned_and_carried_classifiers_need(method):
    _, student = tiny_pair("coda_prompt", method)
    model, stream = student.model, [SimpleNamespace(train=range(count)) for count in (200, 300)]
    features = model.head_features(images(1)).expand(300, -1, -1)
    alignment = ClassifierAlignment()
    for label in range(sum(CLASSES_PER_TASK)):
        alignment.add(torch.randn_like(features), torch.full((300,), label))
    kept = sum(tensor.nbytes for tensor in (*alignment.means, *alignment.factors, *alignment.rests))
    assert _for_classifier(stream, model, CDLConfig(classifier_alignment=True)) == kept
    both = CDLConfig(classifier_alignment=True, drift_compensation=True)
    assert _for_classifier(stream, model, both) == kept + 4 * features.numel()
    assert not _for_classifier(stream, model, CDLConfig())
