"""Similarities of queries and keys, and orthonormal vectors."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import in_full_precision, to_float64


def cosine(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine similarities (B, M) of queries (B, Dq) and keys (M, Dq), in float32 even under autocast.

    Selection is discrete: with the rounding of bfloat16 it would depend on the layout of the batch.
    """
    with in_full_precision(query):
        return F.normalize(query.float(), dim=-1) @ F.normalize(keys.float(), dim=-1).T


def attended_cosine(query: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    """cos(q * a_m, k_m) for all m as two matrix products, without the (B, M, Dq) tensor of the products.

    Args:
        query: (B, Dq)
        attention, keys: (..., M, Dq)

    Returns:
        (..., B, M)
    """
    dot = query @ (attention * F.normalize(keys, dim=-1)).mT
    squared_norm = query.square() @ attention.square().mT
    return dot * squared_norm.clamp_min(1e-24).rsqrt()


def orthonormal_rows(earlier: Tensor, count: int) -> Tensor:
    """Random rows (count, d), orthonormal to each other and to the rows of `earlier` (n, d), computed in float64."""
    rows = to_float64(earlier)
    draws = torch.randn(count, rows.shape[1], dtype=torch.float64).to(rows.device)  # equal on every device
    return torch.linalg.qr(torch.cat([rows, draws]).T).Q.T[len(rows) :].to(earlier)
