"""What a student carries besides its prompts so that the teacher's knowledge has a place of its own.

One contract. A branch adds tokens to the sequence (`add_token`), says where its head reads (`index`), and may add keys
and values after those of the tokens in a block (`suffix`). It acts in training and in predictions alike.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_prompt_vit import PromptViTConfig
from .prefix_attention import Prefix


class KDP(nn.Module):
    """Knowledge distillation prompts (CDL, arXiv 2407.13911 v3): one token at the end of the sequence, and in the
    later blocks vectors that follow the tokens' keys and values. Shared by all tasks, never reset.

    Raises:
        ValueError: There are more prompted blocks than the transformer has.
    """

    index = -1  # the KD head reads the last token's output

    def __init__(self, config: PromptViTConfig, width: int, depth: int):
        super().__init__()
        blocks = depth if config.kd_prompt_blocks is None else config.kd_prompt_blocks
        if not 1 <= blocks <= depth:
            raise ValueError(f"kd_prompt_blocks is {blocks}, but the backbone has {depth} blocks")
        self.token = nn.Parameter(torch.empty(1, width))
        self.prompts = nn.Parameter(torch.empty(blocks - 1, config.kd_prompt_length, width))

    def init_weights(self) -> None:
        init.uniform_(self.token)
        init.uniform_(self.prompts)

    def add_token(self, x: Tensor) -> Tensor:
        """(B, n, D) -> (B, n + 1, D)."""
        return torch.cat([x, self.token.to(x.dtype).expand(len(x), 1, -1)], dim=1)

    def suffix(self, block: int) -> Prefix | None:
        """The vectors of a block: the first half are keys, the second values. Block 0 has only the token."""
        if not 1 <= block <= len(self.prompts):
            return None
        key, value = self.prompts[block - 1].chunk(2)
        return Prefix(key[None], value[None])


BRANCHES: dict[str, type[nn.Module]] = {"kdp": KDP}
