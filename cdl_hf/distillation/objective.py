"""Learning from labels alone, and the contract that every distillation method keeps.

A method owns the student and its training-only modules as one `nn.Module` (what DistributedDataParallel wraps) and
answers `method(pixel_values, labels)` with `{"loss": ..., "logits": ..., <named parts of the loss>}`. Labels are
columns of the current task's classes; `logits` are the student's over those classes, (B, C_task). Where prompts take a
query, (B, Dq), it is in the answer too. What frozen networks have answered to these images before need not be computed
again: `query`, and `teacher_logits` (B, C_task) of the teacher.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ..models import PromptViTForImageClassification, PromptViTOutput


class TrainingObjective(nn.Module):
    """No distillation: cross-entropy over the current task's classes plus the prompt loss.

    This trains a teacher, and a student without one.
    """

    kd_branch = "none"  # what the student must carry
    needs_whole_batch = False  # whether the loss is no mean over images: a batch is not computed in parts then

    def __init__(self, student: PromptViTForImageClassification):
        super().__init__()
        self.model = student

    def forward(
        self, pixel_values: Tensor, labels: Tensor, query: Tensor | None = None, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        query = self.model.query(pixel_values) if query is None else query
        logits, parts = self._hard_loss(self.model(pixel_values, query=query), labels)
        return self._answer(parts, logits, query)

    def _answer(self, parts: dict[str, Tensor], logits: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        loss = cast(Tensor, sum(parts.values()))
        return {"loss": loss, "logits": logits, **parts, **({} if query is None else {"query": query})}

    def _hard_loss(self, output: PromptViTOutput, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        current = self.model.config.current_classes
        logits = output.logits[:, current]
        parts = {"cross_entropy": F.cross_entropy(logits.float(), labels - current.start)}
        if output.prompt_loss is not None:
            parts["prompt_loss"] = output.prompt_loss
        return logits, parts
