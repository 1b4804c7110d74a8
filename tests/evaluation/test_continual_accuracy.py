from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from tiny_runs import TEN_TASKS

import cdl_hf.evaluation
from cdl_hf.evaluation import AccuracyMatrix

FOLDER = Path(cdl_hf.evaluation.__file__).parent / "continual_accuracy"


def by_import(cache):
    from cdl_hf.evaluation.continual_accuracy import ContinualAccuracy

    return ContinualAccuracy(cache_dir=str(cache))


def by_load(cache):
    return evaluate.load(str(FOLDER), cache_dir=str(cache))


@pytest.fixture(params=[by_import, by_load])
def metric(request, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return request.param(tmp_path / "metrics")


def test_example_of_the_docstring(metric):
    metric.add_batch(predictions=[0, 1], references=[0, 1], task_ids=[0, 0], after_task=0)
    metric.add_batch(predictions=[0, 2, 2, 3], references=[0, 1, 2, 3], task_ids=[0, 0, 1, 1], after_task=1)
    results = metric.compute()
    assert results["accuracy_matrix"] == [[100], [50, 100]] and results["average_accuracy"] == 75
    assert results["forgetting"] == {"cdl": 25, "max": 50, "bwt": -50, "coda": 50}


def test_ten_tasks_by_hand(metric):
    """20 images a task; an answer is 1 if right."""
    for after, row in enumerate(TEN_TASKS):
        for task, accuracy in enumerate(row):
            right = accuracy // 5
            metric.add_batch(
                predictions=[1] * right + [0] * (20 - right),
                references=[1] * 20,
                task_ids=[task] * 20,
                after_task=after,
            )
    results = metric.compute()
    assert results["accuracy_matrix"] == TEN_TASKS and results["average_accuracy"] == pytest.approx(71)
    assert results["forgetting"] == pytest.approx({"cdl": 9, "max": 20, "bwt": -10, "coda": 0.285053}, abs=1e-6)


def test_equals_the_matrix(metric):
    random = np.random.default_rng(0)
    after_task = random.integers(0, 4, 2000)
    task_ids = (random.random(2000) * (after_task + 1)).astype(int)
    references = random.integers(0, 5, 2000)
    predictions = random.integers(0, 5, 2000)
    matrix = AccuracyMatrix(4)
    for row, (after, task) in enumerate(zip(after_task, task_ids, strict=True)):
        matrix.update(after, task, int(predictions[row] == references[row]), 1)
    # in batches of tensors and arrays, the last one with `compute` itself
    for rows in np.split(np.arange(1500), 5):
        metric.add_batch(
            predictions=torch.tensor(predictions[rows]),
            references=references[rows],
            task_ids=task_ids[rows].tolist(),
            after_task=after_task[rows],
        )
    last = slice(1500, None)
    results = metric.compute(
        predictions=predictions[last],
        references=references[last],
        task_ids=task_ids[last],
        after_task=after_task[last],
    )
    assert results == matrix.summary()


def test_one_after_task_for_a_whole_call(metric):
    results = metric.compute(predictions=[1, 0], references=[1, 1], task_ids=[0, 0], after_task=0)
    assert results["accuracy_matrix"] == [[50]]


def test_missing_inputs(metric):
    with pytest.raises(ValueError, match="after_task"):
        metric.compute(predictions=[1], references=[1], task_ids=[0])


def test_task_that_was_not_evaluated(metric):
    with pytest.raises(ValueError, match="not all of tasks 0 to 1 have predictions with after_task=1"):
        metric.compute(predictions=[1, 1], references=[1, 1], task_ids=[0, 1], after_task=[0, 1])


def test_task_from_the_future(metric):
    with pytest.raises(ValueError, match="task 1 after task 0"):
        metric.compute(predictions=[1], references=[1], task_ids=[1], after_task=0)
