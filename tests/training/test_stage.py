import math

import pytest
import torch
from accelerate import Accelerator

from cdl_hf.training.stage import EpochSampler, _Averages, learning_rate_at


def test_learning_rate_follows_the_papers_schedule():
    assert learning_rate_at(0, 20, 1e-3) == 1e-3
    assert learning_rate_at(1, 20, 1e-3) == 1e-3
    assert learning_rate_at(19, 20, 1e-3) == pytest.approx(1e-3 * math.cos(0.495 * math.pi * 18 / 19))
    assert learning_rate_at(2, 3, 1.0) == pytest.approx(math.cos(0.495 * math.pi / 2))
    assert learning_rate_at(0, 1, 1.0) == 1.0


def test_sampler_drops_the_incomplete_last_batch():
    sampler = EpochSampler(num_images=14, batch_size=4, seed=0)
    order = list(sampler)
    assert len(order) == len(sampler) == 12 and len(set(order)) == 12 and sampler.steps == 3


def test_sampler_keeps_a_task_smaller_than_a_batch():
    sampler = EpochSampler(num_images=3, batch_size=4, seed=0)
    assert sorted(sampler) == [0, 1, 2] and sampler.steps == 1


def test_sampler_order_depends_on_seed_and_epoch_alone():
    sampler, other = EpochSampler(20, 4, seed=1), EpochSampler(20, 4, seed=2)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first != second
    assert list(other) != first


def test_sampler_resumes_where_it_stopped():
    sampler = EpochSampler(20, 4, seed=1)
    whole = list(sampler)
    sampler.skip = 8
    assert list(sampler) == whole[8:] and len(sampler) == 12


def test_sampler_may_keep_every_image():
    sampler = EpochSampler(num_images=14, batch_size=4, seed=0, every_image=True)
    assert sorted(sampler) == list(range(14)) and list(sampler)[:12] == list(EpochSampler(14, 4, 0))


def test_averages_are_in_float64_on_the_cpu():
    """Some devices have no float64, and sums in float32 forget small values."""
    averages = _Averages(Accelerator(cpu=True), ["student"])
    labels, logits = torch.tensor([0, 1]), torch.eye(2)
    for loss in (2.0**24, 1.0, 1.0):
        averages.add("student", {"loss": torch.tensor(loss), "logits": logits}, labels)
        averages.images += 2
    kept = averages.copy()
    assert averages.total() == (6, {"student": {"loss": 2.0**25 + 4, "accuracy": 600.0}})
    averages.add("student", {"loss": torch.tensor(float("nan")), "logits": logits}, labels)
    assert int(averages.count_finite("student")) == 0
    assert kept.local()["student"]["accuracy"] == 100.0
