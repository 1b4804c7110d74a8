"""Shards of frozen transformers; that training is the same is in tests/recipes/test_processes.py."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import images, labels_for, tiny_model
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from cdl_hf.training.distributed import shard_transformers


@pytest.fixture
def two_processes(monkeypatch):
    """The first of two, of which the other is not there."""
    monkeypatch.setenv("FSDP_VERSION", "2")
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


def test_blocks_are_whole_one_at_a_time(two_processes):
    model = tiny_model("coda_prompt").train()
    shard_transformers(model, two_processes)
    blocks = model.backbone.blocks
    whole = []

    def note(*_):
        whole.append([i for i, block in enumerate(blocks) if not isinstance(block.mlp.fc1.weight, DTensor)])

    for block in blocks:  # within a block's turn, forwards and backwards
        block.mlp.fc1.register_forward_hook(note)
        block.mlp.fc1.register_full_backward_hook(note)
    loss = model(images(), labels_for(model)).loss
    assert whole == [[0], [1], [0], [1]]  # the query's pass, then the prompted one
    loss.backward()
    assert whole[4:] == [[1], [0]]
    note()
    assert whole[-1] == [] and model.prompt_pool.prompts.grad is not None
