"""The training objective: the contract of every distillation method, and learning from labels alone.

An objective owns the model that it trains and its training-only modules as one `nn.Module`, which
DistributedDataParallel wraps. It returns `{"loss": ..., "logits": ..., <named loss terms>}` for
`objective(pixel_values, labels)`. Labels are class ids of the current task; `logits` are the model's over the task's
classes, (B, C_task). Where prompts take a query, (B, Dq), it is returned as well. Outputs of frozen networks that are
cached may be passed in, and are then not computed: `query`, and `teacher_logits` (B, C_task).
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ..models import PromptViTForImageClassification, PromptViTOutput


class TrainingObjective(nn.Module):
    """No distillation: cross-entropy over the current task's classes plus the prompt loss.

    Args:
        model: The model to train, in training mode during training.
        teacher: A second model that learns the same tasks. This objective learns nothing from it: it is trained and
            evaluated beside `model`, for comparison.
    """

    kd_branch = "none"  # what the model must carry
    needs_whole_batch = False  # whether the loss relates all images of a batch, which then cannot be split

    def __init__(self, model: PromptViTForImageClassification, teacher: PromptViTForImageClassification | None = None):
        super().__init__()
        self.model = model
        self._teacher = (teacher,)  # in a tuple: not a child, so neither trained, wrapped nor saved with the model

    @property
    def teacher(self) -> PromptViTForImageClassification | None:
        """The teacher; `None` for a model that learns alone."""
        return self._teacher[0]

    def forward(
        self, pixel_values: Tensor, labels: Tensor, query: Tensor | None = None, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        query = self.model.query(pixel_values) if query is None else query
        logits, terms = self._hard_loss(self.model(pixel_values, query=query), labels)
        return self._output(terms, logits, query)

    def _output(self, terms: dict[str, Tensor], logits: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        loss = cast(Tensor, sum(terms.values()))
        return {"loss": loss, "logits": logits, **terms, **({} if query is None else {"query": query})}

    def _hard_loss(self, output: PromptViTOutput, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        current = self.model.config.current_classes
        logits = output.logits[:, current]
        terms = {"cross_entropy": F.cross_entropy(logits.float(), labels - current.start)}
        if output.prompt_loss is not None:
            terms["prompt_loss"] = output.prompt_loss
        return logits, terms
