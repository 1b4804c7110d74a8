"""Order of the images, learning rate, averages, and the stage as an iterable."""

import math
import multiprocessing

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_models import PAIRS, images, labels_for, tiny_model, tiny_pair
from waits import Waits

from cdl_hf import TaskStream, load_image_dataset
from cdl_hf.data import TaskImages, image_processor_for, train_transform
from cdl_hf.distillation import TrainingObjective
from cdl_hf.runs.output_cache import OutputCache, QueryCache
from cdl_hf.training.stage import EpochSampler, Stage, StageSettings, _Averages, learning_rate_at


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


class Recorder(TrainingObjective):
    """Keeps what it is called with."""

    def __init__(self, model):
        super().__init__(model)
        self.calls = []

    def forward(self, pixel_values, labels, query=None, teacher_logits=None):
        self.calls.append((len(labels), query))
        return super().forward(pixel_values, labels, query, teacher_logits)


@pytest.fixture
def make_stage(drawings):
    """A stage of 14 images in batches of 4, two epochs."""

    def make(start=None, num_workers=0, objective=None, **options):
        stream = TaskStream(load_image_dataset(str(drawings)), num_tasks=3)
        view = TaskImages(
            stream[0].train,
            stream.label_to_class_id,
            train_transform(image_processor_for({"input_size": (3, 32, 32)}), (0.7, 1.0)),
            seed=0,
        )
        torch.manual_seed(0)
        model = tiny_model("l2p", tasks=0, classes_per_task=stream.classes_per_task)
        model.start_task(stream[0].class_names)
        settings = StageSettings("task 1/3 student", 2, 4, 0.01, num_workers, seed=5)
        objectives = {"student": objective or Recorder(model)}
        return Stage(Accelerator(cpu=True), objectives, view, settings, start=start, **options)

    return make


def test_a_stage_is_iterated_by_epoch_and_step(make_stage):
    stage = make_stage()
    before = stage.objectives["student"].model.head.weight.clone()
    steps, means = [], []
    for epoch in stage:
        for step in epoch:
            steps.append((epoch.index, step))
        means.append(epoch.means()["student"])
    assert steps == [(epoch, step) for epoch in range(2) for step in (1, 2, 3)]
    assert [each["epoch"] for each in means] == [0, 1] and {"loss", "accuracy", "learning_rate"} <= means[0].keys()
    assert not torch.equal(stage.objectives["student"].model.head.weight, before)


@pytest.mark.parametrize(("done", "num_workers"), [((0, 1), 0), ((0, 3), 0), ((1, 2), 0), ((0, 2), 2)])
def test_a_stage_continues_where_its_state_was_taken(make_stage, done, num_workers):
    whole, first = make_stage(), make_stage()
    expected = [epoch.means()["student"]["loss"] for epoch in whole for _ in (list(epoch),)]
    for epoch in first:
        if any((epoch.index, step) == done for step in epoch):
            break
    state, weights = first.state(), first.objectives["student"].state_dict()
    assert (state.epoch, state.step) == done
    rest = make_stage(start=state, num_workers=num_workers)
    rest.objectives["student"].load_state_dict(weights)
    found = {epoch.index: epoch.means()["student"]["loss"] for epoch in rest for _ in (list(epoch),)}
    assert found == {index: expected[index] for index in found} and 1 in found
    ours, theirs = (stage.objectives["student"].state_dict() for stage in (whole, rest))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_cached_queries_are_taken_and_new_ones_kept(make_stage):
    queries = QueryCache(14)
    first = make_stage(queries=queries)
    for epoch in first:
        list(epoch)
    assert len(queries.epochs) == 2 and sum(np.isfinite(queries.epochs[0]).all(1)) == 12  # two images in no batch
    assert all(query is None for _, query in first.objectives["student"].calls)
    second = make_stage(cached=OutputCache({"query": [queries.epochs[0], None]}))
    for epoch in second:
        list(epoch)
    assert [query is not None for _, query in second.objectives["student"].calls] == [True] * 3 + [False] * 3


def test_workers_live_through_the_epochs_and_change_nothing(make_stage):
    plain, stage = make_stage(), make_stage(num_workers=2)
    for epoch in plain:
        list(epoch)
    generator, workers = torch.get_rng_state(), []
    for epoch in stage:
        workers += [multiprocessing.active_children() for _ in epoch]
    assert len(workers[0]) == 2 and all(each == workers[0] for each in workers)
    assert not set(workers[0]) & set(multiprocessing.active_children())
    assert torch.equal(torch.get_rng_state(), generator)
    ours, theirs = (each.objectives["student"].state_dict() for each in (plain, stage))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("prompt_method", "method_name"), PAIRS)
def test_no_objective_waits_for_a_gpu(prompt_method, method_name):
    teacher, objective = tiny_pair(prompt_method, method_name, tasks=2)
    pixel_values, labels = images(), labels_for(teacher)
    with Waits() as waits:
        for each in (TrainingObjective(teacher), objective):
            each.train()(pixel_values, labels)["loss"].backward()
    assert not waits.places


@pytest.fixture
def as_for_a_gpu(monkeypatch):
    """Loaders leave small images whole, as they do for a GPU."""
    for_device = TaskImages.for_device
    monkeypatch.setattr(TaskImages, "for_device", lambda images, device: for_device(images, torch.device("cuda")))


def test_images_cropped_on_the_device_train_to_the_same_bits(make_stage, request):
    """A stage whose loader leaves images whole ends with the weights of one whose loader crops them."""
    weights = []
    for fixture in (None, "as_for_a_gpu"):
        if fixture is not None:
            request.getfixturevalue(fixture)
        stage = make_stage()
        assert ("whole" in stage.loader.dataset.__getitems__([0, 1])[0]) == (fixture is not None)
        for epoch in stage:
            list(epoch)
        weights.append(stage.objectives["student"].model.head.weight.detach().clone())
    assert torch.equal(*weights)


def test_no_step_of_a_stage_waits_for_a_gpu(make_stage, as_for_a_gpu):
    teacher, objective = tiny_pair("coda_prompt", "kdp")
    queries = QueryCache(14)
    known = OutputCache({"teacher_logits": [np.zeros((14, 3), np.float32)]})
    stages = [
        make_stage(num_workers=1, objective=TrainingObjective(teacher), queries=queries),
        make_stage(num_workers=1, objective=objective, cached=known),
    ]
    with Waits() as waits:
        for stage in stages:
            for step in next(iter(stage)):
                if step == 1:  # the first may wait
                    waits.places.clear()
            assert not waits.places
    assert np.isfinite(queries.epochs[0]).all(1).sum() == 12
