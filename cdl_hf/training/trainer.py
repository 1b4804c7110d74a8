"""The continual learning of a teacher and a student over a stream of tasks."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from transformers import CLIPImageProcessor

from ..arguments.config import CDLConfig
from ..cli import ParsedArguments, to_dict, to_yaml
from ..data import Task, TaskImages, TaskStream, eval_transform, train_transform, unlabeled_images
from ..distillation import TrainingObjective
from ..evaluation import AccuracyMatrix
from ..evaluation.evaluator import Evaluator
from ..models import PromptViTForImageClassification
from ..runs.checkpointing import checkpoint_name, save_checkpoint
from ..runs.distributed import (
    build_accelerator,
    compile_blocks,
    raise_on_all_ranks,
    shard_transformers,
    start_trackers,
    uses_fsdp,
)
from ..runs.fingerprint import fingerprint, load_run_checkpoint
from ..runs.folder import RunFolder
from ..runs.interruptions import StopRequest
from ..runs.progress import RunProgress
from .build import arguments_of, check_fit, run_name
from .callbacks import ContinualCallback, ShowAccuracy
from .classifier_fitting import ClassifierFitting
from .fisher import measure_fisher
from .learner import STUDENT, TEACHER, Learner, end_task, load_state_of, make_learners, roles, stage_name, state_of
from .memory import advice, check_division, explain_oom, find_accumulation_steps
from .online_evaluation import OnlineEvaluation
from .results import finish_run, save_model
from .run_images import RunImages
from .stage import Epoch, EpochSampler, Stage, StageError, StageSettings, StageState, order_seed
from .teacher_outputs import TeacherOutputs

logger = get_logger(__name__)


class ContinualDistillationTrainer:
    """For each task: the teacher's stage, the student's stage, evaluation of both on all tasks seen, a checkpoint.

    Everything that `recipes/train.py` writes is written by it: arguments, metrics, task checkpoints, and in the end
    pictures, models with their cards, and results.

    Args:
        stream: The tasks.
        objective: The distillation method, which owns the student and knows the teacher; or, with
            `args.stages == "teacher"`, a [`TrainingObjective`] of the teacher.
        image_processor: Prepares the images, and is saved with the models.
        args: The configuration of the run.
        folder: Where the run is written; by default `args.output_dir`, or a new folder under `runs/`.
        accelerator: As [`build_accelerator`] makes it, which is the default.
        arguments: All arguments of the run, as parsed from the command line; by default they are read off the objects.
        callbacks: Called after each stage, evaluation and task; by default the accuracies are printed.

    Raises:
        ValueError: Stream, models and configuration do not fit each other, a batch cannot be divided as they and the
            processes ask for, or the output folder cannot be used.
    """

    def __init__(
        self,
        stream: TaskStream,
        objective: TrainingObjective,
        image_processor: CLIPImageProcessor,
        args: CDLConfig,
        *,
        folder: RunFolder | None = None,
        accelerator: Accelerator | None = None,
        arguments: ParsedArguments | None = None,
        callbacks: Sequence[ContinualCallback] = (ShowAccuracy(),),
    ):
        check_fit(stream, objective, image_processor, args)
        self.stream, self.args, self.image_processor, self.callbacks = stream, args, image_processor, callbacks
        self.arguments = arguments or arguments_of(stream, objective, image_processor, args)
        if folder is None:
            options = {"overwrite": args.overwrite_output_dir, "resume": args.resume_from_checkpoint}
            self.folder = RunFolder.open(args.output_dir, run_name(self.arguments), **options)
        else:
            self.folder = folder
        self.accelerator = accelerator or build_accelerator(args, self.folder.path)
        self.learners = make_learners(objective, stream, args, image_processor, self.folder.path)
        objectives = {role: learner.objective for role, learner in self.learners.items()}
        task_sizes = [len(task.train) for task in stream]
        self._num_trained = objective.model.config.num_trained_tasks
        check_division(objectives, task_sizes[: self._num_trained], args, self.accelerator.num_processes)
        self.fingerprint = fingerprint(self.arguments, stream, objectives, image_processor, self.accelerator)
        for owner in objectives.values():
            if uses_fsdp() and self.accelerator.num_processes > 1:
                shard_transformers(owner, self.accelerator)
            compile_blocks(owner)
            owner.to(self.accelerator.device)
        learners = list(self.learners.values())
        self.stages = [learners] if args.schedule == "same_step" else [[learner] for learner in learners]
        names = [stage_name(stage) for stage in self.stages]
        self.seconds = dict.fromkeys([*names, "evaluation", "saving"], 0.0)
        self._stage: tuple[str, float, float] | None = None  # under way: its name, when it began, see `_seconds_apart`
        self.accumulation_steps = dict.fromkeys(names, args.gradient_accumulation_steps)
        trained = sum(stage[0].is_trained for stage in self.stages)
        per_epoch = sum(EpochSampler(size, args.batch_size, 0).steps for size in task_sizes[: self._num_trained])
        self.progress = RunProgress(args.num_train_epochs * per_epoch * trained)
        self._stop_request = StopRequest(self.accelerator)
        self._after_batch = self._stop_request.raise_if_requested
        self.evaluator = Evaluator(
            self.accelerator, args.eval_batch_size, args.dataloader_num_workers, self._after_batch
        )
        self.test_images = [self.images_for_test(task) for task in stream]
        self._task_of_class = stream.task_of_class if len(stream) > 1 else None
        if args.eval_steps is not None:
            self.callbacks = [OnlineEvaluation(self.accelerator, stream, self.test_images, args), *callbacks]
        self.unlabeled_images: list[TaskImages] = []
        if args.unlabeled_dataset is not None:
            self.unlabeled_images = unlabeled_images(args.unlabeled_dataset, eval_transform(image_processor))
        self._start: tuple[int, int, StageState | None] | None = None  # task, stage, where in it
        self._teacher_outputs = TeacherOutputs(self.accelerator, self.learners, self._after_batch)
        self._classifiers = ClassifierFitting(self.accelerator, self.learners, self._after_batch)
        self._has_begun = self._has_trained = False
        self._has_opened_folder = folder is None

    @property
    def models(self) -> dict[str, PromptViTForImageClassification]:
        """Student and teacher by role; the student is first, for its query serves both."""
        return {role: self.learners[role].model for role in (STUDENT, TEACHER) if role in self.learners}

    @property
    def matrices(self) -> dict[str, AccuracyMatrix]:
        """The accuracy of each model on each task after each."""
        return {role: learner.matrix for role, learner in self.learners.items()}

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds that the rest of the stream will take; `None` before the first step of this process."""
        return self.progress.seconds_left

    def train(self) -> dict[str, Any]:
        """Runs the whole stream, or with `args.resume_from_checkpoint` the rest of it; returns the run's results.

        Raises:
            ValueError: There is nothing that can be resumed, or this trainer has trained already.
            Stopped: SIGTERM or SIGINT came, or a callback called [`stop`]; a checkpoint was saved.
            StageError: A loss is not finite; a checkpoint of an earlier step was saved, if there was one.
            FloatingPointError: Weights, features or logits are not finite.
            OutOfMemory: A batch does not fit into the device's memory.
        """
        if self._has_trained:
            raise ValueError(
                "this trainer has trained already: make a new one, with resume_from_checkpoint=True to continue"
            )
        with ExitStack() as folder:  # closed whatever ends the run: another process may then continue it
            folder.enter_context(self.folder)
            self.begin()
            self._has_trained = True
            start_trackers(self.accelerator, self.args, to_dict(self.arguments), self.progress.steps)
            with self._stop_request, self.progress.shown():
                self._train()
            results = finish_run(self)
            if not self._has_opened_folder:  # its owner closes it
                folder.pop_all()
        return results

    def begin(self) -> None:
        """Makes the output folder and writes arguments, split and images; with `args.resume_from_checkpoint`, resumes.

        [`train`] does it where it has not been done.

        Raises:
            ValueError: The folder cannot be written to, or there is nothing that can be resumed.
        """
        if self._has_begun:
            return
        with ExitStack() as folder:  # closed where the run cannot begin
            folder.enter_context(self.folder)
            with raise_on_all_ranks():
                if self._start is None and self.args.resume_from_checkpoint:
                    self.resume()
            self.folder.create()  # only now, for it removes what an earlier run has left
            with raise_on_all_ranks():
                self.folder.write_arguments(self.arguments.given, to_yaml(self.arguments))
                self.folder.write_split(self.stream.split_list())
                images = RunImages.of(self.stream)
                self.folder.write_images(images.content())
            folder.pop_all()
        if note := images.repeats():
            logger.warning(note)
        self._has_begun = True

    def stop(self) -> None:
        """Ends the run as SIGTERM does: the step or the task is finished and saved, so that it can be resumed."""
        self._stop_request.request_stop()

    def _train(self) -> None:
        first_task, first_stage, state = self._start or (0, 0, None)
        for task in self.stream[first_task:]:
            for number in range(first_stage, len(self.stages) + 1):
                if number and TEACHER in roles(self.stages[number - 1]) and task.index < self._num_trained:
                    self._cache_teacher_outputs(task)
                if number < len(self.stages):
                    self._run_stage(task, number, state)
                state = None
            first_stage = 0
            self._teacher_outputs.forget_queries()
            self._fit_classifiers(task)
            self._evaluate(task)
            if self.accelerator.is_main_process:
                for learner in self.learners.values():
                    learner.save_task(task)
            for callback in self.callbacks:
                callback.on_task_end(self, task)
            self._checkpoint(task.index + 1, 0, None)

    def _run_stage(self, task: Task, number: int, state: StageState | None) -> None:
        learners = self.stages[number]
        self._stage = stage_name(learners), time.perf_counter(), self._seconds_apart()
        if state is None:
            if 0 < task.index < self._num_trained:
                self._classifiers.read_before(task, learners, self.images_for_fitting(task), self.args)
            for learner in learners:
                learner.begin_task(task)
        replay = learners[0].replay
        if replay is None:
            if task.index < self._num_trained:
                self._train_stage(task, number, state)
                options = (self.args.eval_batch_size, self.args.dataloader_num_workers, self._after_batch)
                for learner in learners:
                    measure_fisher(self.accelerator, learner.model, self.images_for_fitting(task), *options)
            end_task(learners, self.learners, self.args)
        else:
            replay.load(task.index)
        for learner in learners:
            learner.objective.eval()
        self.seconds, self._stage = self._seconds_so_far(), None
        for callback in self.callbacks:
            callback.on_stage_end(self, task, tuple(roles(learners)))
        self._checkpoint(task.index, number + 1, None)

    def _seconds_apart(self) -> float:
        """Seconds of what a stage may contain and is counted by itself: a callback's evaluation, saving."""
        return self.seconds["evaluation"] + self.seconds["saving"]

    def _seconds_so_far(self) -> dict[str, float]:
        """Seconds by part of the run, with those of a stage under way."""
        if self._stage is None:
            return self.seconds
        name, began, apart = self._stage
        elapsed = time.perf_counter() - began - (self._seconds_apart() - apart)
        return {**self.seconds, name: self.seconds[name] + elapsed}

    def _train_stage(self, task: Task, number: int, state: StageState | None) -> None:
        learners, name = self.stages[number], stage_name(self.stages[number])
        objectives = {learner.role: learner.objective for learner in learners}
        images, settings = self._images_for_training(task), self._settings(task, learners)
        if self.args.auto_find_batch_size and state is None:
            steps = self.accumulation_steps[name]
            self.accumulation_steps[name] = find_accumulation_steps(
                self.accelerator, objectives, images, self.args.batch_size, steps, self._after_batch
            )
        self.accelerator.gradient_accumulation_steps = self.accumulation_steps[name]
        cached = queries = None
        if roles(learners) == [STUDENT]:
            cached = self._teacher_outputs.of_task(task, settings, self.args)
        elif roles(learners) == [TEACHER] and state is None:
            queries = self._teacher_outputs.keep_queries(len(images), settings, self.args)
        stage = Stage(self.accelerator, objectives, images, settings, cached=cached, queries=queries, start=state)
        try:
            with explain_oom(f"{settings.name}: {self._memory_advice(name)}"):
                for epoch in stage:
                    for _ in epoch:
                        self.progress.step()
                        for callback in self.callbacks:
                            callback.on_step_end(self, task, tuple(roles(learners)), epoch.step)
                        if self.progress.steps % self.args.save_steps == 0 or self._stop_request.stop_requested():
                            self._checkpoint(task.index, number, stage.state())
                    self._log_epoch(task, epoch)
        except StageError as error:
            if error.state is not None:
                self._checkpoint(task.index, number, error.state)
            raise

    def _log_epoch(self, task: Task, epoch: Epoch) -> None:
        for role, values in epoch.means().items():
            tracked = {f"{role}/{key}": value for key, value in values.items() if key != "epoch"}
            self.accelerator.log(tracked, step=self.progress.steps)
            self.folder.log(event="epoch", task=task.index, stage=role, **values)

    def _settings(self, task: Task, learners: Sequence[Learner]) -> StageSettings:
        return StageSettings(
            name=f"task {task.index + 1}/{len(self.stream)} {stage_name(learners)}",
            num_train_epochs=self.args.num_train_epochs,
            batch_size=self.args.batch_size,
            learning_rate=self.args.learning_rate,
            num_workers=self.args.dataloader_num_workers,
            seed=order_seed(self.args, task),
        )

    def _memory_advice(self, stage: str) -> str:
        processes = self.accelerator.num_processes
        return advice(self.accelerator.device, self.args.batch_size, processes, self.accumulation_steps[stage])

    def _cache_teacher_outputs(self, task: Task) -> None:
        if not self.args.cache_teacher_outputs:
            return
        settings = self._settings(task, [self.learners[TEACHER]])
        with explain_oom(f"{settings.name}: {self._memory_advice(TEACHER)}"):
            self._teacher_outputs.store(task, self._images_for_training(task), settings)

    def _fit_classifiers(self, task: Task) -> None:
        if task.index == 0:
            self._classifiers.add_unlabeled(self.unlabeled_images, self.args)
        began = time.perf_counter()
        if self._classifiers.fit(task, self.images_for_fitting(task), self.args):
            self.seconds["classifiers"] = self.seconds.get("classifiers", 0.0) + time.perf_counter() - began

    def _evaluate(self, task: Task) -> None:
        began = time.perf_counter()
        recorded = {role: learner.recorded_counts(task) for role, learner in self.learners.items()}
        known = {role: counts for role, counts in recorded.items() if counts is not None}
        models = {role: model for role, model in self.models.items() if role not in known}
        smaller = f"take a smaller --eval_batch_size than {self.args.eval_batch_size}, which changes no result"
        with explain_oom(f"the evaluation after task {task.index + 1} does not fit into memory; {smaller}"):
            counts = dict(known)
            if models:
                counts |= self.evaluator(
                    models, self.test_images, task_of_class=self._task_of_class, num_tasks=task.index + 1
                )
        self.seconds["evaluation"] += time.perf_counter() - began
        values = {}
        for role, matrix in self.matrices.items():
            for j, of_task in enumerate(counts[role]):
                matrix.update(task.index, j, *of_task)
            values[role] = {"accuracies": matrix.rows[-1], "average_accuracy": matrix.average_accuracy}
        self.folder.log(event="evaluation", task=task.index, **values)
        tracked = {f"{role}/average_accuracy": matrix.average_accuracy for role, matrix in self.matrices.items()}
        self.accelerator.log(tracked, step=self.progress.steps)
        for callback in self.callbacks:
            callback.on_evaluation(self, task)

    def results(self) -> dict[str, Any]:
        """Metrics and sizes of each model, under its role; seconds and gradient accumulation steps of each stage."""
        unlabeled = {"unlabeled_images": sum(map(len, self.unlabeled_images))} if self.unlabeled_images else {}
        return {
            **unlabeled,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "gradient_accumulation_steps": self.accumulation_steps,
            **{role: learner.results() for role, learner in self.learners.items()},
        }

    def save_models(self) -> None:
        """Writes `teacher/` and `student/`: weights, configuration and image processor."""
        for role, model in self.models.items():
            folder, statistics = self.folder.path / role, self.args.save_statistics
            save_model(self.accelerator, model, self.image_processor, folder, statistics=statistics)

    def _images_for_training(self, task: Task) -> TaskImages:
        args, (low, high) = self.args, self.args.crop_scale
        transform = train_transform(self.image_processor, (low, high), horizontal_flip=args.horizontal_flip)
        return TaskImages(task.train, self.stream.label_to_class_id, transform, seed=args.seed, task=task.index)

    def images_for_fitting(self, task: Task) -> TaskImages:
        """The training images as they are tested, for classifiers that are computed."""
        return TaskImages(task.train, self.stream.label_to_class_id, eval_transform(self.image_processor))

    def images_for_test(self, task: Task) -> TaskImages:
        """The validation images where some are held out: hyper-parameters are chosen without the test images."""
        view = task.test if task.validation is None else task.validation
        return TaskImages(view, self.stream.label_to_class_id, eval_transform(self.image_processor))

    def _checkpoint(self, task_index: int, stage: int, state: StageState | None) -> None:
        """Saves everything that a resumed run needs; the task and stage are those that come next or are under way."""
        began = time.perf_counter()
        if self.accelerator.is_main_process:
            content = {
                "task": task_index,
                "stage": stage,
                "state": None if state is None else vars(state),
                "steps": self.progress.steps,
                "seconds": self._seconds_so_far(),
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                "parts": self.accumulation_steps,
                "logged_bytes": self.folder.logged_bytes(),
                "fingerprint": self.fingerprint,
                **state_of(self.learners),
            }
            save_checkpoint(self.folder.checkpoints, checkpoint_name(task_index, stage, self.progress.steps), content)
        self.accelerator.wait_for_everyone()
        self.seconds["saving"] += time.perf_counter() - began
        self._after_batch()

    def resume(self) -> None:
        """Loads the newest valid checkpoint of the folder; before the first one the run starts from the beginning.

        Raises:
            ValueError: It was made with arguments that give another result; no checkpoint is valid, or a task
                checkpoint is not; the run is finished, and its checkpoints are gone.
        """
        state = load_run_checkpoint(self.folder, self.fingerprint)
        if state is None:
            self.folder.cut_log(0)
            logger.info("No valid checkpoint found: starting from the beginning.")
            self._start = (0, 0, None)
            return
        for learner in self.learners.values():
            learner.verify_tasks(state["task"])
        load_state_of(self.learners, state)
        self.seconds, self.progress.steps = state["seconds"], state["steps"]
        if self.accelerator.scaler is not None and state.get("scaler") is not None:  # version 0.3.0 did not keep it
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.args.auto_find_batch_size:
            self.accumulation_steps = state["parts"]
        self.folder.cut_log(state["logged_bytes"])
        position = None if state["state"] is None else StageState(**state["state"])
        if state["task"] == len(self.stream):
            logger.info("The run was finished; writing its results again.")
        else:
            where = "" if position is None else f", epoch {position.epoch + 1}, step {position.step}"
            next_up = [*map(stage_name, self.stages), "evaluation"][state["stage"]]
            logger.info(f"Resuming in task {state['task'] + 1}, {next_up}{where}.")
        self._start = (state["task"], state["stage"], position)
