"""Which tokens of a transformer a computed classifier reads."""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from .prefix_attention import final_norm


@dataclass(frozen=True)
class Readout:
    """Tokens of the last blocks, each after the transformer's final norm.

    Features that are read so are one vector for each image, W = layers x (1 or 2) x D: for each block, the first of
    them first, the mean of its patch tokens (if read) and its class token.

    Args:
        layers: Number of last blocks; 1 reads the class token that the heads read (LayUP, arXiv 2312.08888, reads
            more).
        patch_means: Whether to read the means of the patch tokens too.
    """

    layers: int = 1
    patch_means: bool = False

    def width(self, embed_dim: int) -> int:
        """W"""
        return self.layers * (1 + self.patch_means) * embed_dim

    def read(self, vit: VisionTransformer, x: Tensor, rows: list[int] | slice, patches: slice) -> Tensor:
        """What is read of one block.

        Args:
            x: Its tokens (B, n, D).
            rows: Positions of the class tokens of the h heads.
            patches: Positions of the patch tokens.

        Returns:
            (B, h, 1 or 2, D)
        """
        if not self.patch_means:
            return final_norm(vit, x[:, rows])[:, :, None]
        tokens = final_norm(vit, x)
        of_heads = tokens[:, rows]
        means = tokens[:, patches].mean(1, keepdim=True).expand_as(of_heads)
        return torch.stack([means, of_heads], dim=2)

    def select(self, features: Tensor, source: "Readout") -> Tensor:
        """Features that were read by `source`, which reads no less, as this reads them: (..., W') -> (..., W)."""
        if self == source:
            return features
        blocks = features.unflatten(-1, (source.layers, 1 + source.patch_means, -1))
        first_kind = 0 if self.patch_means or not source.patch_means else 1
        return blocks[..., source.layers - self.layers :, first_kind:, :].flatten(-3)


LAST = Readout()  # the class token that the heads read
