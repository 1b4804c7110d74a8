import copy

import pytest
import torch
from tiny_models import images, labels_for, start_task, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from cdl_hf.models.low_rank import LowRankUpdate


def random_update(layer, num_tasks=2, scale=0.5):
    update = LowRankUpdate(layer, 3, scale, num_tasks)
    for tensor in (*update.parameters(), *update.buffers()):
        nn.init.normal_(tensor)
    return update


def trained(model, tasks=2):
    """The model after tasks whose updates were drawn."""
    for _ in range(tasks):
        start_task(model)
        for update in updates(model):
            nn.init.normal_(update.up, std=0.3)
        model.end_task()
    return model.eval()


def updates(model):
    return [module for module in model.modules() if isinstance(module, LowRankUpdate)]


def test_one_layer_is_that_of_peft():
    peft = pytest.importorskip("peft")
    layer, x = nn.Linear(8, 12), torch.randn(5, 8)
    update = random_update(layer)
    nn.init.zeros_(update.merged_up)
    config = peft.LoraConfig(r=3, lora_alpha=1.5, target_modules=["0"])
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(layer)), config)
    factors = {"lora_A": update.down, "lora_B": update.up}
    for name, factor in factors.items():
        getattr(theirs.base_model.model[0], name)["default"].weight.data.copy_(factor.data)
    ours, reference = update(layer, x), theirs(x)
    assert torch.allclose(ours, reference, atol=1e-6)
    (ours**2).sum().backward()
    (reference**2).sum().backward()
    for name, factor in factors.items():
        assert torch.allclose(factor.grad, getattr(theirs.base_model.model[0], name)["default"].weight.grad, atol=1e-4)


@torch.no_grad()
def test_rows_are_those_of_the_whole_layer():
    layer, x = nn.Linear(8, 12), torch.randn(5, 8)
    update = random_update(layer)
    for mode in (True, False):
        whole = update.train(mode)(layer, x)
        assert torch.allclose(update(layer, x, slice(4)), whole[:, :4], atol=1e-6)
        assert torch.allclose(update(layer, x, slice(4, None)), whole[:, 4:], atol=1e-6)


@pytest.mark.parametrize("merging", ["average", "none"])
@torch.no_grad()
def test_the_merged_weights_are_the_mean_of_those_after_each_task(merging):
    model = tiny_model("lora", tasks=0, lora_merging=merging, lora_alpha=6)
    layer, update = model.backbone.blocks[1].mlp.fc1, model.prompt_pool.updates_of(1)["fc1"]
    merged, after_each = layer.weight.clone(), []
    for _ in range(3):
        start_task(model)
        assert not update.up.any() and update.down.any()
        nn.init.normal_(update.up)
        after_each.append(merged + 3 * update.up @ update.down)  # lora_alpha / lora_rank = 3
        model.end_task()
        merged = torch.stack(after_each).mean(0) if merging == "average" else after_each[-1]
        assert torch.allclose(update.folded(layer.weight), merged, atol=1e-5)


@torch.no_grad()
def test_a_trained_update_counts_in_evaluation_once_it_is_merged():
    model, x = tiny_model("lora"), images()
    before = model.eval()(x).logits
    for update in updates(model):
        nn.init.normal_(update.up)
    assert torch.equal(model(x).logits, before)
    in_training = model.train()(x).logits
    assert not torch.allclose(in_training, before)
    model.end_task()  # all of the first task's
    assert torch.allclose(model.eval()(x).logits, in_training, atol=1e-4)
    assert torch.allclose(model.train()(x).logits, in_training, atol=1e-4)  # not twice


def test_the_folded_weight_follows_every_change():
    layer, x = nn.Linear(8, 12), torch.randn(5, 8)
    update = random_update(layer).eval()

    def expected():
        delta = torch.einsum("tor,tri->oi", update.merged_up, update.merged_down)
        return F.linear(x.to(layer.weight.dtype), layer.weight + delta, layer.bias)

    with torch.inference_mode():
        update(layer, x)
    kept = update.folded(layer.weight)
    assert update.folded(layer.weight) is kept and not kept.is_inference()
    changes = [
        lambda: update.merge(1, 0.5),
        lambda: nn.init.normal_(layer.weight),
        lambda: update.load_state_dict(random_update(layer).state_dict()),
        lambda: nn.ModuleList([layer, update]).double(),
    ]
    for change in changes:
        change()
        with torch.no_grad():
            assert torch.allclose(update(layer, x.to(layer.weight.dtype)), expected(), atol=1e-5)
    twin = copy.deepcopy(update)
    nn.init.zeros_(twin.merged_up)
    assert torch.equal(twin.folded(layer.weight), layer.weight)


def test_each_task_trains_its_own_update_alone():
    model, x = trained(tiny_model("lora", tasks=0), 1), images()
    start_task(model)
    buffers = [buffer.clone() for update in updates(model) for buffer in update.buffers()]
    output = model.train()(x, labels=labels_for(model))
    output.loss.backward()
    assert all(update.up.grad.any() for update in updates(model))
    now = [buffer for update in updates(model) for buffer in update.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(buffers, now, strict=True))


@torch.no_grad()
def test_the_frozen_backbone_stays_and_a_saved_model_predicts_the_same(tmp_path):
    model, x = trained(tiny_model("lora", "kdp", tasks=0)), images()
    frozen = tiny_model("none", tasks=2, backbone=None)
    frozen.backbone.load_state_dict(model.backbone.state_dict())
    assert not torch.allclose(model.head_features(x)[:, 0], frozen.eval().head_features(x)[:, 0], atol=1e-2)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(x).logits, model(x).logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(loaded(x).logits, model(x).logits, atol=0.05)


def test_targets_and_blocks():
    model = tiny_model("lora", lora_targets=["qkv", "fc2"], prompt_blocks=[1])
    names = {
        name.removeprefix("prompt_pool.updates.") for name, _ in model.prompt_pool.named_parameters("prompt_pool")
    }
    assert names == {f"1.{layer}.{factor}" for layer in ("qkv", "fc2") for factor in ("down", "up")}
    for fields, message in [
        (
            {"lora_targets": ["qkv", "head"]},
            r"lora_targets may name qkv, proj, fc1, fc2 once each, got \['qkv', 'head'\]",
        ),
        ({"lora_targets": []}, "lora_targets may name"),
        ({"lora_merging": "sum"}, "lora_merging is 'sum'; choose one of average, fisher, none"),
        ({"lora_rank": 0}, "lora_rank must be at least 1"),
        (
            {"lora_rank": 10_000, "classes_per_task": [1] * 11},
            r"lora_rank \(10,000\) times the number of tasks \(11\)",
        ),
        ({"lora_alpha": float("nan")}, "lora_alpha must not be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny_model("lora", **fields)


@torch.no_grad()
def test_what_is_folded_for_good_predicts_the_same():
    model, x = trained(tiny_model("lora", tasks=0)), images()
    logits, frozen = model(x).logits, model.backbone.blocks[0].attn.qkv.weight.clone()
    model.prompt_pool.fold(model.backbone.blocks)
    assert not updates(model) and not torch.equal(model.backbone.blocks[0].attn.qkv.weight, frozen)
    assert torch.allclose(model(x).logits, logits, atol=1e-6)
