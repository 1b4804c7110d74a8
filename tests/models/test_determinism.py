"""The same gradient in every bit, each time: what a resumed run's equality stands on."""

import pytest
import torch
from tiny_models import PROMPTS, WITHOUT_QUERY, images, labels_for, tiny_model

from cdl_hf.models.kd_branches import BRANCHES

COMBINATIONS = [(p, b) for p in PROMPTS for b in ("none", *BRANCHES) if b != "cdl_prompt" or p not in WITHOUT_QUERY]


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("prompt_method", "kd_branch"), COMBINATIONS)
def test_gradients_are_equal_from_run_to_run_with_two_threads(prompt_method, kd_branch, two_threads):
    large = {"l2p": {"pool_size": 30, "prompt_length": 20, "top_k": 5}}.get(
        prompt_method, {}
    )  # so that threads share it
    model = tiny_model(prompt_method, kd_branch, tasks=2, **large).train()
    x, labels = images(16), labels_for(model, 16)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients():
        output = model(x, labels=labels)
        loss = output.loss if output.kd_logits is None else output.loss + output.kd_logits.square().mean()
        return torch.autograd.grad(loss, trained, allow_unused=True)

    first = gradients()
    for _ in range(10):
        for one, other in zip(first, gradients(), strict=True):
            assert one is other is None or torch.equal(one, other)
