"""Shards of frozen transformers; that training is the same is in tests/recipes/test_processes.py."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_model
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from cdl_hf.training.sharding import shard_transformers


@pytest.fixture
def two_processes():
    """The first of two, of which the other is not there."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    distributed.destroy_process_group()


def test_each_process_holds_its_share_of_the_blocks(two_processes):
    model = tiny_model("coda_prompt")
    whole = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    shard_transformers(model, two_processes)
    held = dict(model.named_parameters())
    assert held.keys() == whole.keys()
    for name, parameter in held.items():
        if name.startswith("backbone.blocks."):
            assert not parameter.requires_grad and parameter.to_local().nbytes == whole[name] / 2
        else:
            assert not isinstance(parameter, DTensor) and parameter.nbytes == whole[name]
