"""Distillation in closed form, which needs no training."""

from torch import Tensor

from ..models import PromptViTForImageClassification
from .objective import FeatureReader, TrainingObjective, check_pair


class Analytic(TrainingObjective):
    """The student predicts its teacher's features by ridge regression, and takes over the classifier of these.

    After each task, the student's frozen layers (class tokens and patch means of all blocks, through random features)
    are regressed on what the teacher's computed classifier reads. That classifier, computed from the teacher's own
    features, classifies the predictions; its scores, the student's own, or both predict, whichever makes held-out
    training images more likely. Both parts are sums over images: for a given standardization and ridge, a stream gives
    the same as all images at once, in any order, and no gradient is needed. `forward` trains what there is
    to train with labels alone.

    The idea of the reused classifier is SimKD's (arXiv 2203.14001), which trains its projector by gradients on all
    classes at once. See [`AnalyticHead`] for the mathematics.

    Args:
        student: With a computed classifier and `kd_branch="analytic"`.
        teacher: Its features must not change from task to task.

    Raises:
        ValueError: The student lacks what the method needs, the models do not share their classes, or the teacher's
            features change with each task.
    """

    kd_branch = "analytic"
    trains = False

    def __init__(self, student: PromptViTForImageClassification, teacher: PromptViTForImageClassification):
        super().__init__(student, teacher.eval())
        check_pair(self, student, teacher)
        config = teacher.config
        if config.prompt_method != "none" and config.num_trained_tasks > 1:
            raise ValueError(
                "analytic adds up the teacher's features over the tasks, but its prompts, which are trained in each "
                "task, change them: take a teacher with prompt_method=none, with train_tasks=1, or of joint training"
            )
        ours, theirs = student.config, teacher.config
        if theirs.head != "linear" and (ours.head, ours.ranpac_width) != (theirs.head, theirs.ranpac_width):
            raise ValueError(
                f"the student takes over its teacher's classifier, {theirs.head} of width {theirs.ranpac_width:,}, "
                f"but was made for {ours.head} of width {ours.ranpac_width:,}: make both alike"
            )
        width = teacher.network.width(teacher.readout)
        if student.config.teacher_width != width:
            raise ValueError(
                f"the student predicts {student.config.teacher_width} features of its teacher, but the teacher's "
                f"classifier reads {width}: make it with teacher_width={width}"
            )

    @property
    def teacher(self) -> PromptViTForImageClassification:
        teacher = super().teacher
        assert teacher is not None
        return teacher

    def add_unlabeled(self, read: FeatureReader, mirror: bool) -> None:
        """Adds images without labels to what the prediction of features is computed from, before the first task.

        Args:
            read: As in [`fit_classifier`], of these images.
            mirror: Whether to add their mirror images.
        """
        assert self.model.analytic is not None
        for mirrored in (False, True) if mirror else (False,):
            student, teacher = read(self.model, mirrored)[:, 0], read(self.teacher, mirrored)[:, 0]
            self.model.analytic.predictor.add(student, teacher)

    def fit_classifier(self, features: Tensor, labels: Tensor, read: FeatureReader, mirror: bool) -> None:
        assert self.model.analytic is not None
        if self.teacher.classifier is not None:
            self.model.analytic.classifier.share_random(self.teacher.classifier)
        taught = read(self.teacher, False)[:, 0]
        mirrored = (read(self.model, True)[:, 0], read(self.teacher, True)[:, 0]) if mirror else None
        self.model.fit_classifier(features, labels, taught, mirrored)
