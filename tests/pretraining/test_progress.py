import time

import pytest

from cdl_hf.pretraining.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_without_a_deadline_it_is_that_of_the_steps():
    progress = Progress(8)
    assert [progress.after(step) for step in (0, 2, 8)] == [0, 0.25, 1]


def test_time_counts_from_the_first_step(clock):
    progress = Progress(1000, deadline=200.0)
    clock[0] = 120.0  # of compiling
    assert progress.after(1) == 0.001
    progress.begin()
    clock[0] = 160.0
    progress.begin()
    assert progress.after(2) == 0.5
    assert progress.after(700) == 0.7
    clock[0] = 300.0
    assert progress.after(701) == 1


def test_a_resumed_training_fits_the_rest_into_its_time(clock):
    progress = Progress(1000, start=0.5, deadline=200.0)
    assert progress.after(1) == 0.5
    progress.begin()
    clock[0] = 150.0
    assert progress.after(2) == 0.75


def test_a_first_step_that_takes_all_the_time_ends_it(clock):
    progress = Progress(1000, deadline=110.0)
    clock[0] = 120.0
    progress.begin()
    assert progress.after(1) == 1
