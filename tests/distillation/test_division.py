"""A batch's gradient does not depend on how the batch is divided into parts and over processes."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import PAIRS, images, labels_for, tiny_pair

from cdl_hf.arguments.config import CDLConfig
from cdl_hf.distillation import METHODS, losses
from cdl_hf.training.memory import check_division


def gradients(method, batches) -> dict[str, torch.Tensor]:
    """Mean over the batches of their losses' gradients."""
    method.train()
    method.zero_grad()
    for pixel_values, labels in batches:
        (method(pixel_values, labels)["loss"] / len(batches)).backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def divided(method, count: int, parts: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    pixel_values, labels = images(count), labels_for(method.model, count)
    return list(zip(pixel_values.chunk(parts), labels.chunk(parts), strict=True))


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("prompt_method", "name"), PAIRS)
def test_four_parts_give_the_gradient_of_the_whole_or_are_refused(prompt_method, name):
    _, method = tiny_pair(prompt_method, name)
    whole, parts = (gradients(method, divided(method, 8, n)) for n in (1, 4))
    if method.needs_whole_batch:
        assert any(not torch.allclose(whole[key], parts[key], rtol=1e-3, atol=1e-5) for key in whole)
        for options in ({"gradient_accumulation_steps": 4}, {"auto_find_batch_size": True}):
            with pytest.raises(ValueError, match=r"loss relates all images of a batch"):
                check_division({"student": method}, [8], CDLConfig(batch_size=8, **options), 1)
    else:
        assert_close(whole, parts)
        check_division({"student": method}, [8], CDLConfig(batch_size=8, gradient_accumulation_steps=4), processes=1)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_whole_batch] + ["kd"])
def test_two_processes_have_the_gradient_of_one(monkeypatch, name):
    """The processes in turn, the first time to learn what rows they have for the other."""
    _, method = tiny_pair("coda_prompt", name)
    whole = gradients(method, divided(method, 8, 1))
    halves, rows = divided(method, 8, 2), {0: [], 1: []}

    def in_process(rank: int, known: bool) -> dict[str, torch.Tensor]:
        given = iter(list(zip(rows[0], rows[1], strict=True)) if known else ())

        def all_gather(gathered, own):
            if not known:
                rows[rank].append(own.detach().clone())
            for into, tensor in zip(gathered, next(given) if known else (own, own), strict=True):
                into.copy_(tensor)

        group = {"is_available": lambda: True, "is_initialized": lambda: True, "get_world_size": lambda: 2}
        fake = SimpleNamespace(**group, get_rank=lambda: rank, all_gather=all_gather)
        monkeypatch.setattr(losses, "distributed", fake)
        return gradients(method, [halves[rank]])

    for rank in (0, 1):
        in_process(rank, known=False)
    first, second = (in_process(rank, known=True) for rank in (0, 1))
    assert_close(whole, {key: (first[key] + second[key]) / 2 for key in first})  # as DDP does


@pytest.mark.parametrize(
    ("count", "processes", "parts", "told"),
    [
        (5, 2, 1, "task 2 has 5 training images, fewer than batch_size (8), .* 2 processes .* at most 4"),
        (6, 1, 4, "gradient_accumulation_steps (4): take a batch_size of at most 4"),
        (1, 2, 2, r"take fewer$"),
        (6, 2, 1, None),
        (9, 2, 2, None),
    ],
)
def test_a_task_smaller_than_a_batch_must_be_shared_evenly(count, processes, parts, told):
    _, method = tiny_pair("apt", "kd")
    args = CDLConfig(batch_size=8, gradient_accumulation_steps=parts)
    if told is None:
        check_division({"student": method}, [40, count], args, processes)
    else:
        with pytest.raises(ValueError, match=told.replace("(", r"\(").replace(")", r"\)")):
            check_division({"student": method}, [40, count], args, processes)
