"""Drift: how the features of a network change while it learns a task, as a linear map."""

import torch
from torch import Tensor

from .precision import to_float64
from .ridge import RIDGES, held_out


@torch.no_grad()
def drift(before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
    """The linear map (W, W) in float64 that turns features before a task into features after it: after = before @ map.

    A ridge regression towards the identity, so that a direction in which the task's images do not vary stays as it is.
    The ridge is the one that predicts the change of held-out images best. Linear drift compensation in the manner of
    SLDC (arXiv 2511.09926).

    Args:
        before: (n, W), features of a task's images by the network that has not learned the task.
        after: (n, W), features of the same images by the network that has.
        labels: (n,), their class ids; they choose the images that are held out, see [`held_out`]. Without any, as of
            classes with one image each, the map is all but the identity.
    """
    before, change = to_float64(before), to_float64(after) - to_float64(before)
    left_out = held_out(labels.to(before.device))

    def regression(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors, lengths, directions = torch.linalg.svd(before[rows], full_matrices=False)
        return directions.T, lengths, vectors.T @ change[rows]

    directions, lengths, rotated = regression(~left_out)
    inputs = before[left_out] @ directions
    errors = [
        (inputs * (lengths / (lengths.square() + ridge)) @ rotated - change[left_out]).square().sum()
        for ridge in RIDGES
    ]
    ridge = RIDGES[int(torch.stack(errors).argmin())] if left_out.any() else RIDGES[-1]
    directions, lengths, rotated = regression(torch.ones_like(left_out))
    return torch.eye(before.shape[1]).to(before) + directions * (lengths / (lengths.square() + ridge)) @ rotated
