"""Evaluation of models task by task: the batches, and the processes that load them."""

import multiprocessing

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from tiny_models import tiny_model
from torch.utils.data import BatchSampler, DataLoader

from cdl_hf import TaskStream, load_image_dataset
from cdl_hf.data import Batches, TaskImages, eval_transform, image_processor_for
from cdl_hf.data.loaders import _TaskBatches
from cdl_hf.evaluation.evaluator import Evaluator


@pytest.fixture
def tasks(drawings):
    stream = TaskStream(load_image_dataset(str(drawings)), num_tasks=3)
    transform = eval_transform(image_processor_for({"input_size": (3, 32, 32)}))
    return [TaskImages(task.test, stream.label_to_class_id, transform) for task in stream]


@pytest.fixture
def models():
    torch.manual_seed(0)
    return {name: tiny_model("l2p", tasks=3).eval() for name in ("student", "teacher")}


def expected(model, images, batch_size):
    batches = Batches(DataLoader(images, batch_size), images)
    with torch.inference_mode():
        found = [model(batch["pixel_values"]).logits.argmax(1) == batch["labels"] for batch in batches]
    return sum(int(correct.sum()) for correct in found), len(images)


def test_no_batch_has_images_of_two_tasks(models, tasks):
    counts = Evaluator(Accelerator(cpu=True), batch_size=4)(models, tasks)
    for name, model in models.items():
        assert [(of.correct, of.total) for of in counts[name]] == [expected(model, images, 4) for images in tasks]


def test_the_same_processes_load_every_task_and_end_with_the_last(models, tasks):
    workers = []
    evaluator = Evaluator(
        Accelerator(cpu=True), 4, num_workers=2, after_batch=lambda: workers.append(multiprocessing.active_children())
    )
    plain, generator = Evaluator(Accelerator(cpu=True), batch_size=4), torch.get_rng_state()
    for num_tasks in (1, 2, 2, 3):
        counts = evaluator(models, tasks, num_tasks=num_tasks)
        assert counts == plain(models, tasks, num_tasks=num_tasks) and len(counts["student"]) == num_tasks
        assert bool(set(workers[0]) & set(multiprocessing.active_children())) == (num_tasks < 3)
    assert len(workers[0]) == 2 and all(each == workers[0] for each in workers)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_call_that_was_stopped_leaves_nothing_behind(models, tasks):
    def stop():
        if not stopped:
            stopped.append(True)
            raise InterruptedError

    stopped = []
    evaluator = Evaluator(Accelerator(cpu=True), 4, num_workers=1, after_batch=stop)
    with pytest.raises(InterruptedError):
        evaluator(models, tasks, num_tasks=2)
    assert evaluator(models, tasks) == Evaluator(Accelerator(cpu=True), batch_size=4)(models, tasks)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_batches_as_accelerate_divides_them(world):
    """Also the last batch of a task, whose rounding would depend on what fills it up."""
    num_images = [0, 1, 5, 6, 7, 12, 14]
    for rank in range(world):
        theirs = [
            [(task, index) for index in batch]
            for task, count in enumerate(num_images)
            for batch in BatchSamplerShard(BatchSampler(range(count), 6, False), world, rank, split_batches=True)
        ]
        ours = _TaskBatches(num_images, 6, rank, world)
        assert list(ours) == theirs and len(ours) == len(ours.places()) == len(theirs)
        assert sum(count for _, _, count in ours.places()) == sum(num_images)
