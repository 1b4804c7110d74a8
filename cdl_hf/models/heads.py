"""Trained heads of a prompted Vision Transformer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .precision import in_full_precision


class LinearHead(nn.Module):
    """Linear classifier over all classes of the stream: (B, D) -> (B, num_classes) for the first classes, in float32.

    In half precision about one prediction in a hundred would change, and ties would go to the older classes.
    """

    def __init__(self, embed_dim: int, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, embed_dim))
        self.bias = nn.Parameter(torch.empty(num_classes))

    def init_weights(self) -> None:
        bound = self.weight.shape[1] ** -0.5
        init.uniform_(self.weight, -bound, bound)
        init.uniform_(self.bias, -bound, bound)

    def forward(self, features: Tensor, num_classes: int) -> Tensor:
        with in_full_precision(features):
            return F.linear(features.float(), self.weight[:num_classes].float(), self.bias[:num_classes].float())


class UnitNormHead(LinearHead):
    """Head of APT (arXiv 2503.07979): a LayerNorm with frozen affine parameters, then weight rows of unit length."""

    def __init__(self, embed_dim: int, num_classes: int):
        super().__init__(embed_dim, num_classes)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6).requires_grad_(False)

    def forward(self, features: Tensor, num_classes: int) -> Tensor:
        with in_full_precision(features):
            norm, weight = self.norm, F.normalize(self.weight[:num_classes].float(), dim=1)
            features = F.layer_norm(
                features.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
            )
            return F.linear(features, weight, self.bias[:num_classes].float())
