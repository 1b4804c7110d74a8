"""Everything in the tests is offline and deterministic."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

# Two processes run the tests, each on a core of its own: with two threads each they would wait for each other.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and sys.platform == "linux":
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
