"""The fixtures of all tests, which are offline and deterministic."""

import functools
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

# Two processes run the tests, each on a core of its own: with two threads each they would wait for each other.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and sys.platform == "linux":
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# A shell starts what runs in the background with Ctrl-C ignored, which tests of Ctrl-C and their processes inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_data import labelled
from tiny_runs import arguments, run_recipe, save_backbone, save_drawings


@pytest.fixture(scope="session", autouse=True)
def imports_are_not_collected():
    """Each stage of a run ends with a garbage collection, which need not look at what has been imported each time."""
    import cdl_hf.evaluation.plots
    import cdl_hf.training.trainer  # noqa: F401

    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def latency_is_timed_once():
    """Each run measures its models in the end; of a tiny one, that was a quarter of the time."""
    from cdl_hf.training import results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "latency", functools.partial(results.latency, repeats=1))
        yield


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """What `datasets` caches stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def launched():
    """Each test starts as a process that accelerate launches: without the precision of another test's Accelerator."""
    AcceleratorState._reset_state(True)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost tiny models more than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Runs the code for other devices on the CPU."""
    from cdl_hf.models import compute_copy, networks, prefix_attention, prompt_pools

    for module in (compute_copy, networks, prefix_attention, prompt_pools):
        monkeypatch.setattr(module, "is_on_cpu", lambda tensor: False)


@pytest.fixture(scope="session")
def quickdraw_images() -> list:
    """Some of the bundled drawings as PIL images."""
    from cdl_hf.data import load_image_dataset

    return load_image_dataset("quickdraw100")["test"].select(range(20))["image"][:]


@pytest.fixture
def stream_data() -> Callable[..., datasets.DatasetDict]:
    """Makes splits of `num_classes` classes c0, c1, ... with interleaved rows, train and test images a class."""

    def make(num_classes=10, train=4, test=2):
        names = [f"c{label}" for label in range(num_classes)]
        return datasets.DatasetDict(
            train=labelled(list(range(num_classes)) * train, names),
            test=labelled(list(range(num_classes)) * test, names),
        )

    return make


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a teacher's and a student's backbone."""
    folder = tmp_path_factory.mktemp("backbones")
    return save_backbone(folder / "teacher", 24), save_backbone(folder / "student", 16)


@pytest.fixture(scope="session")
def drawings(tmp_path_factory) -> Path:
    """A folder of six classes of noisy patterns; see [`save_drawings`]."""
    return save_drawings(tmp_path_factory.mktemp("drawings"))


@pytest.fixture
def command(pair, drawings) -> list[str]:
    """The arguments of a small run: three tasks of two classes, two epochs of three steps."""
    return arguments(pair, drawings)


@pytest.fixture
def train() -> Callable[..., None]:
    """Runs recipes/train.py with the given arguments."""
    return functools.partial(run_recipe, "train")


@pytest.fixture(scope="session")
def finished_run(pair, drawings, tmp_path_factory) -> Path:
    """The output folder of the small run, to read from."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_recipe("train", *arguments(pair, drawings), "--output_dir", folder)
    return folder
