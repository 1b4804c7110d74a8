"""The training objective: the contract of every distillation method, and learning from labels alone.

An objective owns the model that it trains and its training-only modules as one `nn.Module`, which
DistributedDataParallel wraps. It returns `{"loss": ..., "logits": ..., <named loss terms>}` for
`objective(pixel_values, labels)`. Labels are class ids of the current task; `logits` are the model's over the task's
classes, (B, C_task). Where prompts take a query, (B, Dq), it is returned as well. Outputs of frozen networks that are
cached may be passed in, and are then not computed: `query`, and `teacher_logits` (B, C_task).
"""

from collections.abc import Callable
from itertools import accumulate
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ..models import PromptViTForImageClassification, PromptViTOutput

# From a model, and whether to mirror the images, to its features of a task's images: (n, 1 or 2, W).
FeatureReader = Callable[[PromptViTForImageClassification, bool], Tensor]


class TrainingObjective(nn.Module):
    """No distillation: cross-entropy over the current task's classes plus the prompt loss.

    Args:
        model: The model to train, in training mode during training.
        teacher: A second model that learns the same tasks. This objective learns nothing from it: it is trained and
            evaluated beside `model`, for comparison.
    """

    kd_branch = "none"  # what the model must carry
    trains = True  # whether it needs epochs: one that does not distils in `fit_classifier`
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

    def fit_classifier(self, features: Tensor, labels: Tensor, read: FeatureReader, mirror: bool) -> None:
        """Fits a task's images to the model's computed classifiers, if it has them.

        Args:
            features: (n, 1 or 2, W), of the model.
            labels: (n,), class ids.
            read: What gives the features of the same images, of another model or mirrored.
            mirror: Whether training mirrors images.
        """
        self.model.fit_classifier(features, labels)

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


def check_pair(
    objective: TrainingObjective, student: PromptViTForImageClassification, teacher: PromptViTForImageClassification
) -> None:
    """
    Raises:
        ValueError: The student lacks the KD branch of the objective, or the models do not share their classes.
    """
    if student.config.kd_branch != objective.kd_branch:
        raise ValueError(
            f"{type(objective).__name__} needs a student with kd_branch={objective.kd_branch!r}, "
            f"this one has {student.config.kd_branch!r}"
        )
    theirs, ours = teacher.config.classes_per_task, student.config.classes_per_task
    # A jointly trained teacher has one task for several of the student's, and both may have learned further classes.
    if theirs != ours and (sum(theirs) != sum(ours) or not set(accumulate(theirs)) <= set(accumulate(ours))):
        raise ValueError(
            "teacher and student must learn the same tasks, or the teacher all classes at once, but theirs have "
            f"{theirs} and {ours} classes"
        )
