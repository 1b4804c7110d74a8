import json
import subprocess
import sys

import pytest
from tiny_runs import TEN_TASKS

from cdl_hf.evaluation import METRICS, AccuracyMatrix, Metric, TaskCounts, metric_in
from cdl_hf.evaluation.accuracy_matrix import forgetting_cdl


def matrix_of(rows, num_tasks=None):
    """The matrix of these accuracies in %, each counted on 100 images."""
    matrix = AccuracyMatrix(num_tasks or len(rows))
    for after_task, row in enumerate(rows):
        for task, accuracy in enumerate(row):
            matrix.update(after_task, task, accuracy, 100)
    return matrix


# (R, A_N, average incremental accuracy, forgetting), worked out by hand
BY_HAND = [
    # one task: nothing can be forgotten
    ([[40]], 40, 40, {"cdl": 0, "max": 0, "bwt": 0, "coda": 0}),
    # A = (50 + 100) / 2; AIA = (100 + 75) / 2; cdl = (50 + 0) / 2; the others see the first task alone
    ([[100], [50, 100]], 75, 87.5, {"cdl": 25, "max": 50, "bwt": -50, "coda": 50}),
    # A = (70 + 50 + 40) / 3; AIA = (80 + 150 / 2 + 160 / 3) / 3 = 625 / 9
    # cdl = (10 + 10 + 0) / 3; max = ((90 - 70) + (60 - 50)) / 2; bwt = (-10 - 10) / 2
    # coda = ((80 - 90) + ((90 - 70) + (60 - 50)) / 2) / 2 = (-10 + 15) / 2
    ([[80], [90, 60], [70, 50, 40]], 160 / 3, 625 / 9, {"cdl": 20 / 3, "max": 15, "bwt": -10, "coda": 2.5}),
    # later tasks help earlier ones. A = 245 / 3; AIA = (50 + 65 + 245 / 3) / 3 = 590 / 9
    # cdl = (-30 - 5 + 0) / 3; max: the best is the last, 0; bwt = (30 + 5) / 2; coda = (-10 + (-20 - 5) / 2) / 2
    ([[50], [60, 70], [80, 75, 90]], 245 / 3, 590 / 9, {"cdl": -35 / 3, "max": 0, "bwt": 17.5, "coda": -11.25}),
    # four tasks. A = (10 + 30 + 20 + 60) / 4; AIA = (90 + 75 + 60 + 30) / 4
    # cdl = (80 + 50 + 50 + 0) / 4; max = ((90 - 10) + (80 - 30) + (70 - 20)) / 3; bwt = -(80 + 50 + 50) / 3
    # coda = (20 + ((70 - 50) + (80 - 60)) / 2 + ((50 - 10) + (60 - 30) + (70 - 20)) / 3) / 3 = (20 + 20 + 40) / 3
    (
        [[90], [70, 80], [50, 60, 70], [10, 30, 20, 60]],
        30,
        63.75,
        {"cdl": 45, "max": 60, "bwt": -60, "coda": 80 / 3},
    ),
]
# A = 710 / 10; the rows' sums are 80, 170, 255, 335, 410, 480, 545, 605, 660, 710
# cdl = (10 * 80 - 710) / 10; max = (9 * 90 - 630) / 9; bwt = (630 - 9 * 80) / 9
# coda: with task t the last one gains 10 and t - 1 lose 5 each: (-10 + 5 (t - 1)) / t = 5 - 15 / t, for t = 1 to 9
BY_HAND.append(
    (
        TEN_TASKS,
        71,
        (80 + 85 + 85 + 83.75 + 82 + 80 + 545 / 7 + 75.625 + 220 / 3 + 71) / 10,
        {"cdl": 9, "max": 20, "bwt": -10, "coda": 5 - 15 * (7129 / 2520) / 9},
    )
)


@pytest.mark.parametrize(("rows", "average", "incremental", "forgetting"), BY_HAND)
def test_by_hand(rows, average, incremental, forgetting):
    matrix = matrix_of(rows)
    assert matrix.rows == rows
    assert matrix.average_accuracy == pytest.approx(average)
    assert matrix.average_incremental_accuracy == pytest.approx(incremental)
    assert matrix.summary()["forgetting"] == pytest.approx(forgetting)


def test_definitions_differ_on_one_matrix():
    for rows in ([[80], [90, 60], [70, 50, 40]], TEN_TASKS):
        values = matrix_of(rows).summary()["forgetting"]
        assert list(values) == ["cdl", "max", "bwt", "coda"] and len(set(values.values())) == 4


def test_tasks_and_images_weigh_differently():
    matrix = AccuracyMatrix(2)
    matrix.update(0, 0, 3, 3)
    matrix.update(1, 0, 1, 3)
    matrix.update(1, 1, 9, 10)
    assert matrix.rows == [[100], [pytest.approx(100 / 3), 90]]
    assert matrix.average_accuracy == pytest.approx((100 / 3 + 90) / 2)
    assert matrix.average_accuracy_by_image == pytest.approx(100 * 10 / 13)


def test_counts_add_up_over_batches():
    matrix = AccuracyMatrix(1)
    matrix.update(0, 0, 2, 3)
    matrix.update(0, 0, 1, 7)
    assert matrix.rows == [[30]] and isinstance(matrix.rows[0][0], float)


def test_a_run_that_stopped_has_metrics_over_the_tasks_seen():
    """After two of three tasks of the matrix above: cdl = (-10 + 0) / 2, max = 90 - 90, bwt = 10, coda = -10."""
    matrix = matrix_of([[80], [90, 60]], num_tasks=3)
    matrix.update(2, 0, 70, 100)  # stopped within the third evaluation: that row does not count yet
    assert matrix.tasks_seen == 2 and matrix.rows == [[80], [90, 60]]
    assert matrix.summary() == {
        "accuracy_matrix": [[80], [90, 60]],
        "average_accuracy": 75,
        "average_accuracy_by_image": 75,
        "average_incremental_accuracy": 77.5,
        "learning_accuracy": 70,
        "forgetting": {"cdl": -5, "max": 0, "bwt": 10, "coda": -10},
    }


def test_the_final_accuracy_is_learning_accuracy_less_forgetting():
    matrix = matrix_of([[80], [70, 60], [50, 30, 90]])
    assert matrix.learning_accuracy == pytest.approx((80 + 60 + 90) / 3)
    assert matrix.learning_accuracy - forgetting_cdl(matrix.rows) == pytest.approx(matrix.average_accuracy)


def test_state_goes_through_json():
    matrix = matrix_of([[80], [90, 60]], num_tasks=3)
    copy = AccuracyMatrix.from_dict(json.loads(json.dumps(matrix.to_dict())))
    assert copy.summary() == matrix.summary() and copy.num_tasks == 3
    copy.update(2, 0, 1, 1)
    assert matrix.to_dict()["total"][2][0] == 0, "a copy shares nothing"
    assert json.loads(json.dumps(matrix.summary())) == matrix.summary()


def test_task_known_accuracy_and_right_tasks_by_hand():
    matrix = AccuracyMatrix(3)
    matrix.update(0, 0, 8, 10, 8, 10)
    matrix.update(1, 0, 4, 10, 8, 5)
    matrix.update(1, 1, 9, 20, 10, 18)
    summary = matrix.summary()
    assert summary["task_known_accuracies"] == [80, (80 + 50) / 2] and summary["task_known_accuracy"] == 65
    assert summary["right_task_shares"] == [100, (50 + 90) / 2] and summary["right_task_share"] == 70
    assert matrix.counts(1) == [TaskCounts(4, 10, 8, 5), TaskCounts(9, 20, 10, 18)]
    copy = AccuracyMatrix.from_dict(json.loads(json.dumps(matrix.to_dict())))
    assert copy.summary() == summary and copy.counts(1) == matrix.counts(1)


def test_without_counts_by_task_there_are_no_metrics_of_them():
    """As in a stream of domains, or where an earlier version has counted a part."""
    matrix = AccuracyMatrix.from_dict({"correct": [[8, 0], [0, 0]], "total": [[10, 0], [0, 0]]})
    assert matrix.counts(0) == [TaskCounts(8, 10)]
    for task in range(2):
        matrix.update(1, task, 8, 10, 9, 8)
    assert matrix.average_accuracies == [80, 80] and matrix.task_known_accuracies is None
    assert not {name for name in matrix.summary() if "task_known" in name or "right_task" in name}


@pytest.mark.parametrize("entry", [(0, 1), (2, 0), (-1, -1), (1, -1)])
def test_entries_outside_are_refused(entry):
    with pytest.raises(ValueError, match="is no entry"):
        AccuracyMatrix(2).update(*entry, 1, 1)


@pytest.mark.parametrize("counts", [(2, 1), (-1, 1), (1, 1, 2, 1), (1, 1, 1, -1)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="between 0 and total"):
        AccuracyMatrix(2).update(0, 0, *counts)


def test_empty_matrix_has_no_metrics():
    matrix = AccuracyMatrix(2)
    assert matrix.rows == []
    for compute in (
        AccuracyMatrix.summary,
        *(metric.compute for name, metric in METRICS.items() if "." not in name and metric.compute),
    ):
        with pytest.raises(ValueError, match="empty"):
            compute(matrix)


def test_a_metric_is_found_by_its_name(monkeypatch):
    before = matrix_of([[80], [90, 60]]).summary()
    monkeypatch.setitem(METRICS, "worst_task", Metric("worst task", "%", lambda matrix: min(matrix.rows[-1])))
    now = matrix_of([[80], [90, 60]]).summary()
    assert (metric_in(now, "worst_task"), metric_in(now, "forgetting.bwt")) == (60, 10)
    assert metric_in(before, "worst_task") is None and metric_in({}, "forgetting.bwt") is None
    assert METRICS["worst_task"].title == "Worst task (%)"


def test_importing_is_cheap():
    code = "import sys, cdl_hf.evaluation; print(*sorted({'evaluate', 'matplotlib', 'datasets'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
