"""Distillation methods that match the teacher's logits."""

import torch
from torch import Tensor

from ..models import PromptViTForImageClassification, PromptViTOutput
from .losses import dist_loss, dkd_loss, gather_rows, kd_loss, standardized_kd_loss
from .objective import TrainingObjective, check_pair


class KD(TrainingObjective):
    """Knowledge distillation (arXiv 1503.02531) on the student's own head, over the current task's classes.

    Loss = (1 - kd_alpha) CE + kd_alpha tau^2 KL(teacher || student) + prompt loss (+ feature loss of some methods).
    The teacher is frozen and not a child of the method; it predicts as in evaluation, whatever mode it is in, so that
    it may be trained in the same step. The images it sees are the student's.

    Args:
        student: In training mode during training.
        teacher: Trained on the current task, or in the same step, or before on all classes at once.
        kd_alpha: Weight of the soft loss against the cross-entropy, between 0 and 1; the student's own, which weighs
            its KD head in predictions, when `None`.
        temperature: tau; the method's own default when `None`.

    Raises:
        ValueError: The student lacks the KD branch that the method reads, or the models do not share their classes.
    """

    default_temperature = 2.0
    reads_tokens = False  # whether `feature_loss` compares the tokens of the blocks

    def __init__(
        self,
        student: PromptViTForImageClassification,
        teacher: PromptViTForImageClassification,
        kd_alpha: float | None = None,
        temperature: float | None = None,
    ):
        super().__init__(student, teacher.eval())
        check_pair(self, student, teacher)
        self.kd_alpha = student.config.kd_alpha if kd_alpha is None else kd_alpha
        self.temperature = self.default_temperature if temperature is None else temperature
        self.shares_query = student.shares_query_with(teacher)

    @property
    def teacher(self) -> PromptViTForImageClassification:
        teacher = super().teacher
        assert teacher is not None
        return teacher

    def forward(
        self, pixel_values: Tensor, labels: Tensor, query: Tensor | None = None, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        query = self.model.query(pixel_values) if query is None else query
        current = self.model.config.current_classes
        taught = None
        if teacher_logits is None or self.reads_tokens:
            taught = self._teach(pixel_values, query)
            teacher_logits = taught.head_logits[:, current]
        output = self.model(pixel_values, query=query, output_hidden_states=self.reads_tokens)
        logits, terms = self._hard_loss(output, labels)
        terms["cross_entropy"] = (1 - self.kd_alpha) * terms["cross_entropy"]
        soft = self.soft_loss(self.soft_logits(output)[:, current], teacher_logits, labels - current.start)
        terms["soft_loss"] = self.kd_alpha * soft
        if taught is not None and taught.hidden_states is not None:
            terms["feature_loss"] = self.feature_loss(output.hidden_states, taught.hidden_states)
        return self._output(terms, logits, query)

    @torch.no_grad()
    def _teach(self, pixel_values: Tensor, query: Tensor | None) -> PromptViTOutput:
        trained_too = self.teacher.training  # in the same-step schedule
        if trained_too:
            self.teacher.eval()
        output = self.teacher(
            pixel_values, query=query if self.shares_query else None, output_hidden_states=self.reads_tokens
        )
        if trained_too:
            self.teacher.train()
        return output

    def soft_logits(self, output: PromptViTOutput) -> Tensor:
        """The student's logits that are compared with the teacher's: (B, C_seen)."""
        return output.logits

    def soft_loss(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Loss between logits (B, C_task) of the current task's classes, before its weight kd_alpha.

        Args:
            labels: (B,), positions in these logits.
        """
        return kd_loss(student_logits, teacher_logits, self.temperature)

    def feature_loss(self, student_tokens: tuple[Tensor, ...], teacher_tokens: tuple[Tensor, ...]) -> Tensor:
        """Loss between the tokens (B, n, D) before the first block and after each, with its weight."""
        raise NotImplementedError  # methods with `reads_tokens` override it


class DKD(KD):
    """Decoupled knowledge distillation (arXiv 2203.08679, eq. 7): target and other classes weighted separately."""

    default_temperature = 4.0

    def soft_loss(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        return dkd_loss(student_logits, teacher_logits, labels, self.temperature)


class StandardizedKD(KD):
    """Knowledge distillation of standardized logits (arXiv 2403.01427)."""

    def soft_loss(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        return standardized_kd_loss(student_logits, teacher_logits, self.temperature)


class DIST(KD):
    """DIST (arXiv 2205.10536): Pearson correlations within images and within classes instead of probabilities.

    Those within classes are computed over the images of the whole batch, on all processes.
    """

    default_temperature = 1.0
    needs_whole_batch = True

    def soft_loss(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        return dist_loss(student_logits, teacher_logits, self.temperature, gather_rows)
