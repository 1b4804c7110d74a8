"""Merging by Fisher information: its measurement, and the share that it gives."""

import copy
import json

import pytest
import torch
from accelerate import Accelerator
from tiny_models import images, labels_for, start_task, tiny_model
from torch import nn

from cdl_hf.training import fisher as fisher_module
from cdl_hf.training.fisher import measure_fisher


class Images(torch.utils.data.Dataset):
    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixel_values": self.pixels[i], "labels": self.labels[i]}

    def for_device(self, device):
        return self


@pytest.fixture
def model():
    """A model in its second task, whose updates act."""
    torch.manual_seed(0)
    model = tiny_model("lora", tasks=1, lora_merging="fisher")
    for update in model.prompt_pool.each_update():
        update.fisher = torch.rand(len(update.up), update.down.shape[1])
        nn.init.normal_(update.up, std=0.3)
    model.end_task()
    start_task(model)
    for update in model.prompt_pool.each_update():
        nn.init.normal_(update.up, std=0.3)
    return model


def test_it_is_the_mean_squared_gradient_of_each_image(model, monkeypatch):
    monkeypatch.setattr(fisher_module, "Batches", lambda loader, images: loader)
    x = images(5)
    labels = labels_for(model, 5)
    measure_fisher(Accelerator(cpu=True), model, Images(x, labels), 3, 0)
    dense = copy.deepcopy(model).train()
    for block, name in ((0, "qkv"), (1, "qkv"), (1, "proj"), (0, "fc1"), (1, "fc2")):
        update = model.prompt_pool.updates_of(block)[name]
        squares = 0
        for i in range(5):
            twin = dense.prompt_pool.updates_of(block)[name]
            attn, mlp = dense.backbone.blocks[block].attn, dense.backbone.blocks[block].mlp
            layer = {"qkv": attn.qkv, "proj": attn.proj, "fc1": mlp.fc1, "fc2": mlp.fc2}[name]
            weight = (layer.weight + twin._merged()).detach().requires_grad_()
            twin.folded = lambda _, weight=weight: weight
            loss = dense(x[i : i + 1], labels=labels[i : i + 1]).loss
            squares = squares + torch.autograd.grad(loss, weight)[0] ** 2
        assert torch.allclose(update.fisher, squares / 5, atol=1e-8, rtol=1e-3)
        del twin.folded
    assert not any(update.is_measuring for update in model.prompt_pool.each_update())
    assert all(parameter.grad is None for parameter in model.parameters())


@torch.no_grad()
def test_the_share_adds_least_to_the_losses_of_all_tasks(model):
    updates = list(model.prompt_pool.each_update())
    merged = [update._merged() for update in updates]  # after the first task: all of its update
    trained = [update._trained() for update in updates]
    first = [update.precision for update in updates]
    for update in updates:
        update.fisher = torch.rand_like(update._merged())
    second = [update.fisher for update in updates]

    def loss(share):
        """Of the two tasks, whose minima are at the first merged weights and at those trained in the second."""
        of_first = sum((f * (share * d) ** 2).sum() for f, d in zip(first, trained, strict=True))
        return of_first + sum((f * ((share - 1) * d) ** 2).sum() for f, d in zip(second, trained, strict=True))

    shares = torch.linspace(0, 1, 2001)
    best = shares[torch.stack([loss(share) for share in shares]).argmin()]
    model.end_task()
    for update, before, change in zip(updates, merged, trained, strict=True):
        assert torch.allclose(update._merged(), before + best * change, atol=2e-3 * change.abs().max().item())
        assert update.fisher is None and update.precision is not None


@torch.no_grad()
def test_with_equal_information_it_is_the_mean():
    model, twin = (tiny_model("lora", tasks=0, lora_merging=merging) for merging in ("fisher", "average"))
    for _ in range(3):
        for each in (model, twin):
            start_task(each)
        for ours, theirs in zip(model.prompt_pool.each_update(), twin.prompt_pool.each_update(), strict=True):
            nn.init.normal_(theirs.up)
            ours.up.copy_(theirs.up)
            ours.down.copy_(theirs.down)
            ours.fisher = torch.ones(len(ours.up), ours.down.shape[1])
        model.end_task()
        twin.end_task()
        for ours, theirs in zip(model.prompt_pool.each_update(), twin.prompt_pool.each_update(), strict=True):
            assert torch.allclose(ours._merged(), theirs._merged(), atol=1e-3)


def test_a_checkpoint_holds_what_was_measured(train, command, tmp_path):
    command = [*command, "--prompt_method", "lora", "--lora_merging", "fisher", "--distillation", "none"]
    command += ["--stages", "student", "--classifier", "ncm", "--num_train_epochs", "1"]
    train(*command, "--output_dir", tmp_path / "run")
    (newest,) = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1:]
    state = torch.load(newest / "state.pt", weights_only=True)["modules"]["student"]
    assert "model.prompt_pool.updates.1.fc1.precision" in state
    assert json.loads((tmp_path / "run" / "results.json").read_text())["student"]["num_tasks"] == 3
