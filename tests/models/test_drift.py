"""How the features of a network change in a task, as a linear map."""

import torch

from cdl_hf.models.drift import drift

LABELS = torch.arange(60) % 6


def test_a_linear_change_is_found():
    torch.manual_seed(0)
    before, change = torch.randn(60, 8), torch.randn(8, 8)
    assert torch.allclose(drift(before, before @ change, LABELS), change.double(), atol=1e-4)


def test_without_a_change_it_is_the_identity():
    before = torch.randn(60, 8)
    assert torch.equal(drift(before, before, LABELS), torch.eye(8).double())


def test_directions_of_which_the_images_tell_nothing_stay():
    torch.manual_seed(0)
    seen, further = torch.linalg.qr(torch.randn(8, 8))[0].split([3, 5])
    before = torch.randn(60, 3) @ seen
    found = drift(before, before @ torch.randn(8, 8), LABELS).float()
    assert torch.allclose(further @ found, further, atol=1e-5) and not torch.allclose(seen @ found, seen, atol=0.1)


def test_a_change_that_no_map_predicts_is_left_out():
    """Held-out images choose a ridge so large that the identity remains."""
    torch.manual_seed(0)
    before = torch.randn(60, 50)
    found = drift(before, before + torch.randn(60, 50), LABELS)
    assert torch.allclose(found, torch.eye(50).double(), atol=0.05)


def test_one_image_a_class_is_enough():
    before = torch.randn(6, 8)
    found = drift(before, before + 1, torch.arange(6))
    assert torch.allclose(found, torch.eye(8).double(), atol=1e-3)
