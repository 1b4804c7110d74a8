"""Progress of a comparison, with times worked out by hand."""

import pytest

from cdl_hf.comparison.grid import PlannedRun
from cdl_hf.comparison.progress import Progress, duration


@pytest.fixture
def runs() -> dict[str, PlannedRun]:
    """Two seeds of a teacher, a student and a classifier of the student."""
    runs = {}
    for seed in (0, 1):
        teacher = PlannedRun("teacher", seed, "teacher", {})
        student = PlannedRun("kd", seed, "student", {}, teacher)
        classifier = PlannedRun("kd-ncm", seed, "student", {}, student)
        runs |= {run.name: run for run in (teacher, student, classifier)}
    return runs


def test_the_time_left_is_that_of_the_same_experiment_with_another_seed(runs):
    progress = Progress(runs.values(), runs.values(), {})
    assert progress.describe(runs["teacher-seed0"]) == "run 1 of 6: teacher-seed0"
    progress.finish(runs["teacher-seed0"], 600.0)
    assert progress.seconds_left() == 5 * 600  # there is nothing else to go by
    progress.finish(runs["kd-seed0"], 300.0)
    progress.finish(runs["kd-ncm-seed0"], 60.0)
    assert progress.seconds_left() == 600 + 300 + 60
    assert progress.describe(runs["teacher-seed1"]) == "run 4 of 6: teacher-seed1, about 16 min left"


def test_another_experiment_is_estimated_by_its_kind(runs):
    other = PlannedRun("kdp", 0, "student", {}, runs["teacher-seed0"])
    seconds = {"teacher-seed0": 600.0, "kd-seed0": 300.0, "kd-ncm-seed0": 60.0}
    progress = Progress([other], [*runs.values(), other], seconds)  # a job: what is finished is not of it
    assert progress.describe(other) == "run 1 of 1: kdp-seed0, about 5 min left"
    progress.finish(other)  # without success
    assert progress.seconds_left() == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "1 min"), (3540, "59 min"), (3600, "1 h 0 min"), (7810, "2 h 10 min"), (9e4, "1 d 1 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
