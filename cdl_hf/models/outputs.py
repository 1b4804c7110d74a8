"""Outputs of a prompted transformer: for users, and between its transformer and its heads."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class PromptViTOutput(ModelOutput):
    """
    Output of [`PromptViTForImageClassification`]. C_seen is the number of classes seen so far.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            Cross-entropy plus `prompt_loss`. In training mode between [`start_task`] and [`end_task`], the
            cross-entropy is that of `head_logits` over the classes of the task, as in the papers. Otherwise it is
            over all classes seen, with the KD head mixed in, and in evaluation mode of `logits`.
        logits (`torch.FloatTensor` of shape `(B, C_seen)`):
            In evaluation mode the logits to predict with: of the computed classifier, if there is one, or of the head,
            mixed with those of the KD branch. In training mode the same as `head_logits`.
        head_logits (`torch.FloatTensor` of shape `(B, C_seen)`): Logits of the trained head, which a student distills.
        kd_logits (`torch.FloatTensor` of shape `(B, C_seen)`, *optional*): Logits of the KD head, if there is one.
        prompt_loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned in training mode or with `labels`):
            Loss of the prompt method, if it has one.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            Tokens (B, n, D) before the first block and after each, before the final norm, in the blocks' precision.
    """

    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]  # always given; ModelOutput wants a default
    head_logits: Tensor = None  # type: ignore[assignment]
    kd_logits: Tensor | None = None
    prompt_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class Encoded:
    """Output of the transformer.

    Args:
        features: (B, h, W), what is read for the head, and for the KD head where there is one.
        prompt_loss: Loss of the prompt method, if it has one.
        hidden_states: All tokens, if requested.
    """

    features: Tensor
    prompt_loss: Tensor | None
    hidden_states: tuple[Tensor, ...] | None
