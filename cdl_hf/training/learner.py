"""The learners of a run: teacher and student, each with all that belongs to its role."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed
from torch import Tensor
from transformers import CLIPImageProcessor

from ..arguments.config import CDLConfig
from ..data import Task, TaskStream
from ..distillation import TrainingObjective
from ..distillation.logit_methods import KD
from ..evaluation import AccuracyMatrix, OnlineAccuracy, TaskCounts
from ..models import PromptViTForImageClassification
from ..runs.checkpointing import load_trained_state, trained_state
from ..runs.task_checkpoints import TaskCheckpointReplay, TaskCheckpoints, describe, drifts
from ..utils import DamagedFile, derive_seed, verify
from .classifier_alignment import ClassifierAlignment

TEACHER, STUDENT = "teacher", "student"


class Learner:
    """The teacher or the student of a run, trained in it or loaded from an earlier run.

    Args:
        role: `"teacher"` or `"student"`.
        objective: What it is trained by; it owns the model.
        stream: The tasks.
        args: The run's.
        image_processor: The run's.
        folder: The run's, where its task checkpoints are.
        run: Output folder of an earlier run whose task checkpoints are loaded in place of training.

    Attributes:
        matrix: Its accuracy on each task after each.
        online: Its accuracy while it learns; `None` where that is not measured, or it is not trained.
        replay: What loads an earlier run's checkpoints; `None` where it is trained.
        alignment: What aligns its heads after each task; `None` where they stay as they are trained.
        is_compensated: Whether its classifier's earlier tasks are carried along as its features change.
        features_before: What its classifier reads of the task's images, as it was before the task; `None` where
            nothing is carried along.

    Raises:
        ValueError: The earlier run has no such model.
    """

    def __init__(
        self,
        role: str,
        objective: TrainingObjective,
        stream: TaskStream,
        args: CDLConfig,
        image_processor: CLIPImageProcessor,
        folder: Path,
        run: str | None = None,
    ):
        self.role, self.objective, self.seed = role, objective, args.seed
        self.checkpoints = TaskCheckpoints(folder, role)
        self.metadata = describe(self.model, stream, args, image_processor)
        self.matrix = AccuracyMatrix(len(stream))
        self.replay: TaskCheckpointReplay | None = None
        if run is not None:
            self.replay = TaskCheckpointReplay(TaskCheckpoints(Path(run), role), self.model, self.metadata)
            self.metadata["head_epochs"] = self.replay.head_epochs
        self.online = OnlineAccuracy() if args.eval_steps is not None and self.replay is None else None
        self.alignment = ClassifierAlignment() if args.classifier_alignment and self.fits_classifier else None
        self.is_compensated = args.drift_compensation and drifts(self.model.config) and self.has_classifier_to_fit
        self.features_before: Tensor | None = None

    @property
    def model(self) -> PromptViTForImageClassification:
        return self.objective.model

    @property
    def is_trained(self) -> bool:
        """Whether it is trained in this run."""
        return self.replay is None

    @property
    def is_joint(self) -> bool:
        """Whether it has learned all classes before this run's first task."""
        return self.replay is not None and self.replay.is_joint

    @property
    def fits_classifier(self) -> bool:
        """Whether this run computes its classifier; otherwise an earlier run has."""
        return self.replay is None or not self.replay.reuses_predictions

    @property
    def has_classifier_to_fit(self) -> bool:
        """Whether there is anything for [`fit_classifier`] to do."""
        return self.fits_classifier and (self.model.classifier is not None or self.alignment is not None)

    def begin_task(self, task: Task) -> None:
        """Seeds what is drawn for the task, and makes its classes known to the model."""
        set_seed(derive_seed(self.seed, self.role, task.index))
        if not self.is_joint:
            self.model.start_task(task.class_names)

    def cached_outputs(self, task: Task, args: CDLConfig) -> dict[str, Sequence[np.ndarray | None]]:
        """Its cached outputs for the task's training images, by name: (n, D) of each epoch; empty without a cache."""
        if self.replay is not None:
            return {**self.replay.cached_outputs(task.index)}
        if not args.cache_teacher_outputs:
            return {}
        return {**self.checkpoints.cached_outputs(task.index).read(args.num_train_epochs, len(task.train))}

    def fit_classifier(
        self,
        task: Task,
        read: Callable[[PromptViTForImageClassification, bool], tuple[Tensor, Tensor]],
        mirror: bool,
        after_batch: Callable[[], None] = lambda: None,
    ) -> None:
        """Adds a task to the classifier that is computed, and aligns the heads where they are.

        Args:
            read: From a model, and whether to mirror the task's images, to the output of [`head_features`].
            mirror: Whether training mirrors images.
            after_batch: Called on every process after each step of the alignment.
        """
        features, labels = read(self.model, False)
        if self.features_before is not None:
            before, self.features_before = self.features_before.to(features.device), None
            self.model.carry_classifier(before, features, labels)
            if self.alignment is not None:
                self.alignment.carry(self._of_heads(before), self._of_heads(features), labels)
        self.objective.fit_classifier(features, labels, lambda model, mirrored: read(model, mirrored)[0], mirror)
        if self.alignment is not None:
            self.alignment.add(self._of_heads(features), labels)
            self.alignment.align(self.model, derive_seed(self.seed, "alignment", self.role, task.index), after_batch)

    def _of_heads(self, features: Tensor) -> Tensor:
        """What the heads read, of all that is read."""
        return features[..., -self.model.network.embed_dim :]

    def recorded_counts(self, task: Task) -> list[TaskCounts] | None:
        """Counts of each task, as an earlier run found them after this one."""
        if self.replay is None or not self.replay.has_counts:
            return None
        return self.replay.checkpoints.correct_counts(task.index)

    def save_task(self, task: Task) -> None:
        """Writes the task checkpoint, unless it is an earlier run's."""
        if self.fits_classifier:
            self.checkpoints.save(task.index, self.model, self.matrix.counts(task.index), self.metadata)

    def verify_tasks(self, num_tasks: int) -> None:
        """
        Raises:
            ValueError: A task checkpoint of this run is damaged: a resumed run does not write it again.
        """
        if not self.fits_classifier:
            return
        for path in filter(Path.is_file, map(self.checkpoints.path, range(num_tasks))):
            try:
                verify(path)
            except DamagedFile as error:
                raise ValueError(f"{error}; put back a copy, or delete it to go on without it") from error

    def results(self) -> dict[str, Any]:
        """Metrics and sizes."""
        model = self.model
        self.objective.train()
        results = {
            **self.matrix.summary(),
            **({} if self.online is None else self.online.summary()),
            "num_tasks": model.config.num_tasks,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "classifier_values": sum(module.num_values for module in model.computed),
        }
        if model.analytic is not None:
            results["analytic"] = model.analytic.report()
        self.objective.eval()
        return results

    def state_dict(self) -> dict[str, Any]:
        """What a run's checkpoint holds of it, under the names of [`load_state_dict`]."""
        config = self.model.config
        return {
            "modules": trained_state(self.objective, statistics=True),
            "class_names": list((config.id2label or {}).values()),
            "tasks_seen": config.tasks_seen,
            "matrices": self.matrix.to_dict(),
            "online": None if self.online is None else self.online.counts(),
            "alignments": None if self.alignment is None else self.alignment.state(),
            "features_before": self.features_before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: The state is of another model.
        """
        load_trained_state(self.objective, state["modules"])
        config = self.model.config
        config.tasks_seen = state["tasks_seen"]
        if config.tasks_seen:
            config.id2label = dict(enumerate(state["class_names"]))
            config.label2id = {name: i for i, name in config.id2label.items()}
        self.objective.eval()
        self.matrix = AccuracyMatrix.from_dict(state["matrices"])
        if self.online is not None:
            self.online = OnlineAccuracy(state["online"])
        if self.alignment is not None:
            self.alignment.load_state(state["alignments"])
        self.features_before = state["features_before"]


def make_learners(
    objective: TrainingObjective,
    stream: TaskStream,
    args: CDLConfig,
    image_processor: CLIPImageProcessor,
    folder: Path,
) -> dict[str, Learner]:
    """The learners of a run by role, the teacher first. A teacher learns as a student does that has no teacher.

    Args:
        objective: Of the student; or, with `args.stages == "teacher"`, of the teacher.
        stream, args, image_processor, folder: As in [`Learner`].

    Raises:
        ValueError: An earlier run has no such model, or its teacher cannot teach.
    """
    objectives = {TEACHER if args.stages == TEACHER else STUDENT: objective}
    if STUDENT in objectives and objective.teacher is not None:
        objectives = {TEACHER: TrainingObjective(objective.teacher), STUDENT: objective}
    runs = {TEACHER: args.teacher_run, STUDENT: args.student_run}
    learners = {
        role: Learner(role, owner, stream, args, image_processor, folder, runs[role])
        for role, owner in objectives.items()
    }
    replay = learners[TEACHER].replay if TEACHER in learners else None
    reads_heads = isinstance(objective, KD) and args.student_run is None
    if replay is not None and reads_heads and replay.has_untrained_heads:
        raise ValueError(
            f"the heads of the teacher of {args.teacher_run} were not trained (num_train_epochs=0), and "
            f"{type(objective).__name__} learns from their logits: take a run with trained heads, or "
            "distillation=analytic"
        )
    if replay is not None and reads_heads and replay.lost_heads and (objective.reads_tokens or not replay.has_logits):
        raise ValueError(
            f"the heads of the teacher of {args.teacher_run} were aligned after each task, and a student learns from "
            "heads as they were trained: take a run without classifier_alignment, whose teacher this run aligns itself"
        )
    return learners


def end_task(stage: Sequence[Learner], learners: Mapping[str, Learner], args: CDLConfig) -> None:
    """Ends the task for the models just trained; a teacher's prompts may be merged with its student's instead.

    Args:
        stage: The learners that were trained together.
        learners: All of the run, by role.
    """
    teacher = learners.get(TEACHER)
    is_late = STUDENT in learners and teacher is not None and teacher.is_trained
    is_late = is_late and args.teacher_merge == "after_student"
    for learner in stage:
        if learner is not teacher or not is_late:
            learner.model.end_task()
    if STUDENT in roles(stage) and is_late and teacher is not None:
        teacher.model.end_task()


def state_of(learners: Mapping[str, Learner]) -> dict[str, dict[str, Any]]:
    """What a run's checkpoint holds of its learners: name -> role -> value."""
    states = {role: learner.state_dict() for role, learner in learners.items()}
    names = next(iter(states.values()))
    return {name: {role: state[name] for role, state in states.items()} for name in names}


def load_state_of(learners: Mapping[str, Learner], state: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: The state is of other models.
    """
    state = {"online": {}, "features_before": {}, **state}  # version 0.3.0 had neither
    names = ("modules", "class_names", "tasks_seen", "matrices", "online", "alignments", "features_before")
    for role, learner in learners.items():
        learner.load_state_dict({name: state[name].get(role) for name in names})


def roles(learners: Sequence[Learner]) -> list[str]:
    return [learner.role for learner in learners]


def stage_name(learners: Sequence[Learner]) -> str:
    """Name of the stage in which these learners are trained together."""
    return " and ".join(roles(learners))
