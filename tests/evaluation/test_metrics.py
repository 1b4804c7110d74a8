"""Metrics of hand-made predictions."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cdl_hf.evaluation.metrics import (
    confusion_matrix,
    expected_calibration_error,
    prediction_metrics,
    reliability,
    worst_pairs,
)
from cdl_hf.evaluation.predictions import Predictions, predict
from cdl_hf.evaluation.speed import latency


def test_calibration_error_by_hand():
    # (0, 0.5]: two answers, mean confidence 0.4, one right: gap 0.1; (0.5, 1]: three, 0.8, all right: gap 0.2
    confidences, correct = [0.3, 0.5, 0.7, 0.8, 0.9], [True, False, True, True, True]
    assert expected_calibration_error(confidences, correct, bins=2) == pytest.approx(100 * (2 / 5 * 0.1 + 3 / 5 * 0.2))
    low, high = reliability(confidences, correct, bins=2)
    assert low == {"upper_bound": 0.5, "count": 2, "confidence": pytest.approx(0.4), "accuracy": 0.5}
    assert high == {"upper_bound": 1.0, "count": 3, "confidence": pytest.approx(0.8), "accuracy": 1.0}


def test_an_interval_has_its_upper_bound_and_zero_is_in_the_first():
    groups = reliability([0.0, 0.25, 0.2500001, 1.0], [False] * 4, bins=4)
    assert [(group["upper_bound"], group["count"]) for group in groups] == [(0.25, 2), (0.5, 1), (1.0, 1)]


@pytest.mark.parametrize(("confidence", "share_right", "error"), [(1.0, 1.0, 0), (1.0, 0.0, 100), (0.75, 0.75, 0)])
def test_calibration_error_at_its_ends(confidence, share_right, error):
    correct = np.arange(100) < 100 * share_right
    assert expected_calibration_error(np.full(100, confidence), correct) == pytest.approx(error)


@pytest.mark.parametrize("confidences", [[], [1.2], [-0.1], [float("nan")]])
def test_what_is_no_probability_is_refused(confidences):
    with pytest.raises(ValueError, match="no predictions|probabilities"):
        expected_calibration_error(confidences, [True] * len(confidences))


def test_confusion_by_hand():
    matrix = confusion_matrix(np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 2]), 3)
    assert matrix.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 1]]
    assert worst_pairs(matrix, 5) == [(0, 1, 2), (2, 0, 1)]
    assert worst_pairs(matrix, 1) == [(0, 1, 2)]
    assert worst_pairs(np.diag([3, 4]), 5) == []


def test_prediction_metrics_by_hand():
    # tasks (a, b), (c, d); no image of d
    labels, answers = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 3, 2])
    told = prediction_metrics(Predictions(answers, np.full(5, 0.5)), labels, ["a", "b", "c", "d"], [0, 0, 1, 1])
    assert told["accuracy_by_task"] == [50.0, 100.0] and "right_task_share" not in told
    assert told["average_accuracy"] == 75.0 and told["average_accuracy_by_image"] == pytest.approx(60.0)
    assert told["accuracy_by_class"] == {"a": 50.0, "b": 50.0, "c": 100.0, "d": None}
    assert told["worst_pairs"] == [
        {"class": "a", "taken_for": "b", "images": 1},
        {"class": "b", "taken_for": "d", "images": 1},
    ]
    assert told["calibration"]["expected_calibration_error"] == pytest.approx(10.0)
    domains = np.array(["b", "a", "b", "b", "a"])
    by_domain = prediction_metrics(Predictions(answers, np.full(5, 0.5)), labels, list("abcd"), [0] * 4, domains)
    right = answers == labels
    expected = {name: 100 * right[domains == name].mean() for name in ("a", "b")}
    assert by_domain["accuracy_by_domain"] == pytest.approx(expected) and "accuracy_by_task" not in by_domain
    assert by_domain["average_accuracy"] == pytest.approx(sum(expected.values()) / 2)
    task_without_images = prediction_metrics(
        Predictions(answers[:4], np.full(4, 0.5)), labels[:4], ["a", "b", "c", "d"], [0, 0, 1, 1]
    )
    assert task_without_images["accuracy_by_task"] == [50.0, None]
    assert task_without_images["average_accuracy"] == 50.0


def test_predictions_within_the_own_task_by_hand():
    labels, class_ids, in_own_task = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 2, 3, 2]), np.array([0, 1, 1, 0, 2])
    predictions = Predictions(class_ids, np.full(5, 0.5), in_own_task)
    told = prediction_metrics(predictions, labels, ["a", "b", "c", "d"], [0, 0, 1, 1])
    assert told["task_known_accuracy_by_task"] == [50.0, 100.0] and told["task_known_accuracy"] == 75.0
    assert told["right_task_share_by_task"] == [50.0, 100.0] and told["right_task_share"] == 75.0
    nothing_of_the_second = Predictions(class_ids[:4], np.full(4, 0.5), in_own_task[:4])
    told = prediction_metrics(nothing_of_the_second, labels[:4], ["a", "b", "c", "d"], [0, 0, 1, 1])
    assert told["right_task_share_by_task"] == [50.0, None] and told["right_task_share"] == 50.0


def test_predictions_within_the_own_task_are_of_the_same_logits():
    samples = [{"pixel_values": torch.full((3, 2, 2), float(i)), "labels": label} for i, label in enumerate((0, 2, 1))]
    logits = torch.tensor([[1.0, 9.0, 0.0, 2.0], [7.0, 9.0, -2.0, -1.0], [0.0, 3.0, 1.0, 2.0]])
    models = {"model": lambda pixel_values: logits[pixel_values[:, 0, 0, 0].long()]}
    predictions, _ = predict(models, DataLoader(samples, batch_size=2), [0, 1, 1, 0])
    assert predictions["model"].class_ids.tolist() == [1, 1, 1]
    assert predictions["model"].in_own_task.tolist() == [3, 1, 1]


def test_predictions_over_batches():
    samples = [{"pixel_values": torch.full((3, 2, 2), float(i)), "labels": i % 2} for i in range(3)]

    def fixed(logits):
        return lambda pixel_values: torch.tensor(logits)[pixel_values[:, 0, 0, 0].long()]

    models = {"even": fixed([[0.0, np.log(3)], [np.log(4), 0.0], [0.0, 0.0]]), "odd": fixed([[1.0, 0.0]] * 3)}
    answers, labels = predict(models, DataLoader(samples, batch_size=2))
    assert labels.tolist() == [0, 1, 0]
    assert answers["even"].class_ids.tolist() == [1, 0, 0]
    assert answers["even"].confidences == pytest.approx([0.75, 0.8, 0.5])
    assert answers["odd"].class_ids.tolist() == [0, 0, 0] and answers["odd"].in_own_task is None


def test_latency_is_the_median_of_the_calls_after_the_first_three(monkeypatch):
    clock = iter([0.0, 0.0, 0.0, 27.0, 27.001, 28.0, 28.002, 29.0, 29.009])  # begins, and ends where it counts
    monkeypatch.setattr("cdl_hf.evaluation.speed.time.perf_counter", lambda: next(clock))
    shapes = []
    assert latency(lambda x: shapes.append(x.shape), torch.zeros(2, 3, 4, 4), repeats=3) == pytest.approx(2.0)
    assert shapes == [(2, 3, 4, 4)] * 6
