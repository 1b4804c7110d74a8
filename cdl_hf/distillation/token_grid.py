"""What a transformer's tokens stand for, and how they are brought to another's layout."""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TokenGrid:
    """Layout of tokens: CLS, registers, then patches in rows.

    Args:
        before: Tokens before the patches: CLS and registers.
        height, width: Patches.
    """

    before: int
    height: int
    width: int

    @classmethod
    def of(cls, vit: VisionTransformer) -> "TokenGrid":
        return cls(vit.num_prefix_tokens, *vit.patch_embed.grid_size)

    def resample(self, tokens: Tensor, grid: "TokenGrid") -> Tensor:
        """CLS and patches, these interpolated to the other grid: (B, n, D) -> (B, 1 + height * width, D).

        Registers stand for no place in the image and are left out.
        """
        cls, patches = tokens[:, :1], tokens[:, self.before :]
        if (self.height, self.width) != (grid.height, grid.width):
            image = patches.float().transpose(1, 2).unflatten(2, (self.height, self.width))
            image = F.interpolate(image, (grid.height, grid.width), mode="bilinear", antialias=True)
            patches = image.flatten(2).transpose(1, 2).to(tokens.dtype)
        return torch.cat([cls, patches], dim=1)
