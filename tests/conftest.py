"""Everything in the tests is offline and deterministic."""

import gc
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

# Two processes run the tests, each on a core of its own: with two threads each they would wait for each other.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and sys.platform == "linux":
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def imports_are_not_collected():
    """Each stage of a run ends with a garbage collection, which need not look at what has been imported each time."""
    import cdl_hf.evaluation.plots
    import cdl_hf.training.trainer  # noqa: F401

    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
