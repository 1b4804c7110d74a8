import math

import pytest

from cdl_hf.training.stage import EpochSampler, learning_rate_at


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
