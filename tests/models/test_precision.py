"""Matrix products in float32, whatever TF32 allows elsewhere.

Fake tensors stand for those of a CUDA device, which need not be there.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cdl_hf.models import PromptViTConfig
from cdl_hf.models.classifiers import CLASSIFIERS
from cdl_hf.models.heads import LinearHead, UnitNormHead
from cdl_hf.models.low_rank import LowRankUpdate
from cdl_hf.models.precision import in_full_precision
from cdl_hf.models.prompt_pools import POOLS
from cdl_hf.models.ridge import RidgeSums
from cdl_hf.models.similarity import cosine

PRODUCTS = torch.backends.cuda.matmul


class Products(TorchDispatchMode):
    """Collects (dtype, whether TF32 was allowed) of the matrix products within."""

    def __init__(self):
        super().__init__()
        self.found: set[tuple[torch.dtype, bool]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "mm" in func.__name__:
            self.found.add((args[-1].dtype, PRODUCTS.fp32_precision == "tf32"))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def with_tf32():
    PRODUCTS.allow_tf32 = True
    yield
    PRODUCTS.allow_tf32 = False


@pytest.fixture
def cuda():
    with FakeTensorMode(), torch.device("cuda"):
        yield


def config(**fields):
    return PromptViTConfig(classes_per_task=[3, 2], **fields)


def ridge_sums(features):
    sums = RidgeSums.zeros(32, 3, features.device)
    return lambda: sums.add(lambda x: x, features, torch.zeros(len(features), 3))


def low_rank(features):
    update = LowRankUpdate(nn.Linear(32, 32), rank=2, scale=1.0, num_tasks=2)
    update.fisher = torch.zeros(32, 32)
    return lambda: (update.merging_terms(), update._fold(torch.zeros(32, 32)))


EXACT = {
    "head": lambda x: lambda: LinearHead(32, 3)(x, 3),
    "unit_norm_head": lambda x: lambda: UnitNormHead(32, 3)(x, 3),
    "ncm": lambda x: lambda: CLASSIFIERS["ncm"](config(), 32)(x, 3),
    "ranpac": lambda x: lambda: CLASSIFIERS["ranpac"](config(ranpac_width=10), 32)(x, 3),
    "ridge_sums": ridge_sums,
    "query": lambda x: lambda: cosine(x, torch.zeros(4, 32)),
    "coda_prompt": lambda x: lambda: POOLS["coda_prompt"](config(pool_size=4), 32, 32, 5)(x, 0, 0),
    "low_rank": low_rank,
}


@pytest.mark.parametrize("name", EXACT)
def test_is_computed_in_float32(cuda, name):
    features = torch.zeros(5, 32)
    compute = EXACT[name](features)
    with Products() as products:
        features @ features.T
        assert products.found == {(torch.float32, True)}
        products.found.clear()
        compute()
    assert products.found == {(torch.float32, False)}
    assert PRODUCTS.allow_tf32


def test_tf32_is_as_before_after_an_error(cuda):
    with pytest.raises(KeyError), in_full_precision(torch.zeros(1)), in_full_precision(torch.zeros(1)):
        raise KeyError
    assert PRODUCTS.allow_tf32


def test_tf32_that_was_set_by_torchs_newer_name(cuda):
    PRODUCTS.allow_tf32 = False
    PRODUCTS.fp32_precision = "tf32"  # now torch refuses to read `allow_tf32`
    with in_full_precision(torch.zeros(1)):
        assert PRODUCTS.fp32_precision == "ieee"
    assert PRODUCTS.fp32_precision == "tf32"


def test_other_devices_leave_it_alone():
    with in_full_precision(torch.zeros(1)):
        assert PRODUCTS.allow_tf32
