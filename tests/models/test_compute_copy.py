"""Frozen blocks that compute with a copy in bfloat16, as on a GPU, for which a CPU with its autocast stands here."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from tiny_models import PROMPTS, images, labels_for, tiny_backbone, tiny_model, tiny_pair
from tiny_networks import PROMPTED, tiny_network
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cdl_hf.models import compute_copy as module
from cdl_hf.models import networks
from cdl_hf.models.compute_copy import compute_copy

pytestmark = pytest.mark.usefixtures("as_on_a_gpu")


def bf16(enabled=True):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


class Casts(TorchDispatchMode):
    """Counts the tensors of some shapes that are cast to bfloat16."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.count = shapes, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.bfloat16:
            self.count += args[0].shape in self.shapes
        return func(*args, **(kwargs or {}))


def count_casts(model, x):
    matrices = {m.weight.shape for m in model.backbone.blocks.modules() if isinstance(m, nn.Linear)}
    with bf16(), Casts(matrices) as casts:
        model(x)
    return casts.count


def test_frozen_weights_are_cast_once():
    model, x = tiny_model("coda_prompt").train(), images()
    assert count_casts(model, x) == 2 * 4
    assert count_casts(model, x) == 0
    with torch.no_grad():
        model.backbone.blocks[0].attn.qkv.weight.zero_()
    assert count_casts(model, x) == 4


def test_it_is_no_part_of_the_model():
    model, x = tiny_model("coda_prompt"), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with bf16():
        model(x)
        assert compute_copy(model.backbone.blocks[0], x) is not None
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    size = len(pickle.dumps(model.backbone))
    assert size == len(pickle.dumps(copy.deepcopy(model.backbone)))
    count = len(module._COPIES)
    assert count >= 2
    del model
    gc.collect()
    assert len(module._COPIES) <= count - 2


CHANGES = {
    "in place": lambda block: nn.init.ones_(block.attn.qkv.weight),
    "bias": lambda block: nn.init.ones_(block.attn.qkv.bias),
    "loaded": lambda block: block.load_state_dict({k: torch.ones_like(v) for k, v in block.state_dict().items()}),
    "assigned": lambda block: block.load_state_dict(
        {k: torch.ones_like(v) for k, v in block.state_dict().items()}, assign=True
    ),
    "moved": lambda block: block._apply(lambda tensor: torch.ones_like(tensor)),
    "data": lambda block: setattr(block.attn.qkv.weight, "data", torch.ones_like(block.attn.qkv.weight)),
    "module": lambda block: setattr(block.attn, "qkv", nn.Linear(32, 96).requires_grad_(False)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_follows_each_change_of_the_weights(change):
    block, x = tiny_model("none").backbone.blocks[0], torch.randn(2, 5, 32)
    with bf16():
        first = compute_copy(block, x)
        assert compute_copy(block, x) is first
        CHANGES[change](block)
        block.requires_grad_(False)
        second = compute_copy(block, x)
    assert second is not first
    for name, weight in second.state_dict().items():
        assert torch.equal(weight, block.state_dict()[name].bfloat16())
    assert not torch.equal(first.attn.qkv.weight, second.attn.qkv.weight) or change == "bias"


def test_where_there_is_none(monkeypatch):
    block, x = tiny_model("none").backbone.blocks[0], torch.randn(2, 5, 32)
    assert compute_copy(block, x) is None
    with torch.autocast("cpu", torch.float16):
        assert compute_copy(block, x) is None
    with bf16():
        assert compute_copy(block, x.to("meta")) is None
        assert compute_copy(block.to(torch.bfloat16), x) is None
        assert compute_copy(block.float(), x) is not None
        block.attn.qkv.weight.requires_grad_()
        assert compute_copy(block, x) is None
        block.requires_grad_(False)
        assert compute_copy(block.train(), x) is None
        with monkeypatch.context() as patch:  # as FSDP2's
            patch.setattr(type(block.eval()), "unshard", lambda block: None, raising=False)
            assert compute_copy(block, x) is None
        block.attn.qkv.forward = block.attn.qkv.forward  # as Accelerate's hooks
        assert compute_copy(block, x) is None
        del block.attn.qkv.forward
        assert compute_copy(block, x) is not None
        monkeypatch.setattr(module, "is_on_cpu", lambda tensor: True)
        assert compute_copy(block, x) is None


def test_hooks_of_a_block_see_its_passes():
    model, x, seen = tiny_model("none"), images(), []
    with bf16(), torch.no_grad():
        model(x)
        handle = model.backbone.blocks[0].mlp.register_forward_hook(lambda *args: seen.append(args[2]))
        model(x)
        passes = len(seen)
        handle.remove()
        model(x)
    assert passes and len(seen) == passes and all(each.dtype == torch.bfloat16 for each in seen)


def test_a_copy_is_gone_when_its_weights_are():
    block, x = tiny_model("none").backbone.blocks[0], torch.randn(2, 5, 32)
    with bf16():
        weight = weakref.ref(compute_copy(block, x).attn.qkv.weight)
    block._apply(lambda tensor: tensor.clone())  # as `module.to` another device
    gc.collect()
    assert weight() is None and block not in module._COPIES


def test_a_copy_of_an_evaluation_serves_in_training():
    model, x = tiny_model("coda_prompt"), images()
    with bf16():
        with torch.inference_mode():
            model.eval()(x)
        model.train()(x).logits.sum().backward()
    assert model.prompt_pool.prompts.grad.any()


def gradient(objective, x, enabled=True):
    objective.train().zero_grad()
    with bf16(enabled):
        loss = objective(x, labels_for(objective.model))["loss"]
    loss.backward()
    return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


METHOD_PAIRS = [(prompts, "kdp") for prompts in PROMPTS] + [("coda_prompt", "deit"), ("l2p", "cdl_prompt")]


@pytest.mark.parametrize(("prompts", "method"), METHOD_PAIRS)
def test_gradients_are_close_to_those_of_float32(prompts, method):
    _, objective = tiny_pair(prompts, method, tasks=2)
    x = images()
    ours, exact = gradient(objective, x), gradient(objective, x, enabled=False)
    assert not torch.equal(ours, exact)
    assert F.cosine_similarity(ours, exact, dim=0) > 0.999


@pytest.mark.parametrize("name", PROMPTED)
@torch.no_grad()
def test_all_tokens_are_in_bf16_and_features_close_to_those_of_float32(name):
    model, x = tiny_model("none", backbone=tiny_network(name)), images()
    exact = model.head_features(x)
    with bf16():
        ours = model.head_features(x)
        tokens = model(x, output_hidden_states=True).hidden_states
    assert F.cosine_similarity(ours.float().flatten(), exact.flatten(), dim=0) > 0.999
    assert all(each.dtype == torch.bfloat16 for each in tokens[1:])


def test_an_updated_weight_is_not_rounded_before_its_update(monkeypatch):
    _, objective = tiny_pair("lora", "kdp", tasks=2)
    x = images()
    ours = gradient(objective, x)
    monkeypatch.setattr(networks, "compute_copy", lambda block, x: None)
    assert torch.equal(ours, gradient(objective, x))


def test_compiled_blocks_take_it_without_compiling_again():
    model, x = tiny_model("coda_prompt", backbone=tiny_backbone(depth=4)).train(), images()
    matrices = {m.weight.shape for m in model.backbone.blocks.modules() if isinstance(m, nn.Linear)}
    dtypes = []

    def backend(graph, inputs):
        dtypes.append({each.dtype for each in inputs if isinstance(each, torch.Tensor) and each.shape in matrices})
        return graph

    torch._dynamo.reset()
    for block in model.backbone.blocks:
        block.compile(backend=backend, fullgraph=True)
    for _ in range(2):
        with bf16():
            model(x).logits.sum().backward()
        count = len(dtypes)
        nn.init.zeros_(model.backbone.blocks[0].attn.qkv.weight)
    assert len(dtypes) == count < 8
    assert all(found == {torch.bfloat16} for found in dtypes)
