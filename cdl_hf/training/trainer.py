"""The continual learning of a teacher and a student over a stream of tasks."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import BaseImageProcessor
from transformers.utils import logging

from ..data import Task, TaskImages, TaskStream, eval_transform, train_transform
from ..distillation import TrainingObjective
from ..evaluation import AccuracyMatrix
from ..evaluation.evaluator import Evaluator
from ..models import PromptViTForImageClassification
from ..utils import DamagedFile, atomic_folder, derive_seed, seal_file, verify
from .arguments import CDLConfig
from .callbacks import ContinualCallback, ShowAccuracy
from .checkpointing import load_newest_checkpoint, load_trained_state, save_checkpoint, trained_state
from .classifier_fitting import ClassifierAlignment, head_features
from .distributed import build_accelerator, shard_transformers, uses_fsdp, whole_state
from .fingerprint import compare, fingerprint
from .interruptions import StopRequest
from .memory import advice, check_division, explain_oom, find_accumulation_steps
from .output_cache import QueryCache
from .run_folder import RunFolder
from .stage import StageError, StageSettings, StageState, run_stage
from .task_checkpoints import TaskCheckpointReplay, TaskCheckpoints, describe

TEACHER, STUDENT = "teacher", "student"


class ContinualDistillationTrainer:
    """Per task: the teacher's stage, the student's stage, evaluation of both on all tasks seen, a checkpoint.

    Args:
        stream: The tasks.
        method: The distillation method; it owns the student and knows the teacher.
        teacher: The teacher; `None` where the student learns alone.
        image_processor: What prepares test images, and what the models are saved with.
        args: The run.
        folder: Where the run is written; `args.output_dir` by default.
        accelerator: As [`build_accelerator`] makes it, which is the default.
        arguments: Instances of all argument classes that decide the result, `args` among them; a checkpoint made
            with others, or of other images or weights, is not resumed from. By default `args` alone.
        callbacks: What is called after each stage, evaluation and task; by default the accuracies are printed.

    Raises:
        ValueError: Batches cannot be divided as `args` and the processes ask for, or a given model does not fit.
    """

    def __init__(
        self,
        stream: TaskStream,
        method: TrainingObjective,
        teacher: PromptViTForImageClassification | None,
        image_processor: BaseImageProcessor,
        args: CDLConfig,
        *,
        folder: RunFolder | None = None,
        accelerator: Accelerator | None = None,
        arguments: Iterable[Any] | None = None,
        callbacks: Sequence[ContinualCallback] = (ShowAccuracy(),),
    ):
        self.stream, self.args = stream, args
        if folder is None:
            name = f"run-seed{args.seed}"
            self.folder = RunFolder.open(
                args.output_dir, name, overwrite=args.overwrite_output_dir, resume=args.resume_from_checkpoint
            )
        else:
            self.folder = folder
        self.accelerator = accelerator or build_accelerator(args, self.folder.path)
        self.image_processor = image_processor
        self.callbacks = callbacks
        # What is trained, by role: a teacher learns as a student does that has no teacher.
        self.modules: dict[str, TrainingObjective] = {}
        if teacher is not None:
            self.modules[TEACHER] = TrainingObjective(teacher)
        if args.stages != TEACHER:
            self.modules[STUDENT] = method
        check_division(self.modules, map(len, (task.train for task in stream)), args, self.accelerator.num_processes)
        # What this run leaves with the models' states; told by weights that may be in shards afterwards.
        self._about = {
            role: describe(module.model, stream, args, image_processor) for role, module in self.modules.items()
        }
        self.fingerprint = fingerprint(arguments or (args,), stream, self.modules, image_processor, self.accelerator)
        for module in self.modules.values():
            if uses_fsdp() and self.accelerator.num_processes > 1:
                shard_transformers(module, self.accelerator)
            module.to(self.accelerator.device)
        # The roles that are trained together, stage after stage.
        self.stages = [tuple(self.modules)] if args.schedule == "same_step" else [(role,) for role in self.modules]
        self.matrices = {role: AccuracyMatrix(len(stream)) for role in self.modules}
        self.seconds = dict.fromkeys([*map(" and ".join, self.stages), "evaluation", "saving"], 0.0)
        # In how many parts each stage computes a batch.
        self.parts = dict.fromkeys(map(" and ".join, self.stages), args.gradient_accumulation_steps)
        self._stop_request = StopRequest(self.accelerator)
        self._heed = self._stop_request.raise_if_requested
        self.evaluator = Evaluator(self.accelerator, args.eval_batch_size, args.dataloader_num_workers, self._heed)
        self.steps = 0  # optimizer steps of the whole run, which number the checkpoints
        self._test_images = [self._images_for_test(task) for task in stream]
        self._start: tuple[int, int, StageState | None] | None = None  # task, stage, where in it
        self.states = {role: TaskCheckpoints(self.folder.path, role) for role in self.modules}
        self._queries: QueryCache | None = None
        # Models that an earlier run has trained; the kept ones are taken with their classifiers and counts.
        runs = {TEACHER: args.teacher_run, STUDENT: args.student_run}
        self.given = {
            role: TaskCheckpointReplay(TaskCheckpoints(Path(run), role), self.models[role], self._about[role])
            for role, run in runs.items()
            if run is not None
        }
        self.kept = {role for role, given in self.given.items() if given.kept}
        self.at_once = {role for role, given in self.given.items() if given.at_once}
        aligned = self.modules.keys() - self.kept if args.classifier_alignment else ()
        self.alignments = {role: ClassifierAlignment() for role in aligned}
        self._has_begun = False
        if folder is None:
            self.folder.create()  # last, for it removes what an earlier run has left

    @property
    def models(self) -> dict[str, PromptViTForImageClassification]:
        """Teacher and student, the student first: its query serves both."""
        return {role: self.modules[role].model for role in (STUDENT, TEACHER) if role in self.modules}

    def train(self) -> None:
        """Runs the whole stream; where `args.resume_from_checkpoint` is set, what is left of it (see [`resume`]).

        Raises:
            ValueError: There is nothing that can be resumed, or this trainer has trained already.
            Stopped: SIGTERM or SIGINT came, or a callback called [`stop`]; a checkpoint was saved.
            StageError: A loss is not finite; a checkpoint of the state before it was saved.
            FloatingPointError: Weights, features or logits are not finite.
            OutOfMemory: A batch does not fit into the device's memory.
        """
        if self._has_begun:
            raise ValueError(
                "this trainer has trained already: make a new one, with resume_from_checkpoint=True to go on"
            )
        try:
            if self._start is None and self.args.resume_from_checkpoint:
                self.resume()
            self._has_begun = True
            with self._stop_request:
                self._train()
        except BaseException:  # whatever has ended it: another process may go on with it
            self.folder.close()
            raise

    def stop(self) -> None:
        """Ends the run as SIGTERM does: the step or the task is finished and saved, so that it can be resumed."""
        self._stop_request.request_stop()

    def _train(self) -> None:
        first_task, first_stage, state = self._start or (0, 0, None)
        for task in self.stream[first_task:]:
            for stage in range(first_stage, len(self.stages) + 1):
                if stage > 0 and TEACHER in self.stages[stage - 1]:
                    self._store_answers(task)
                if stage < len(self.stages):
                    self._train_stage(task, stage, state)
                state = None
            first_stage = 0
            self._queries = None
            self._refit(task)
            self._evaluate(task)
            self._save_states(task)
            for callback in self.callbacks:
                callback.on_task_end(self, task)
            self._checkpoint(task.index + 1, 0, None)

    def _train_stage(self, task: Task, stage: int, state: StageState | None) -> None:
        began, roles = time.perf_counter(), self.stages[stage]
        name = " and ".join(roles)
        if state is None:
            for role in roles:
                set_seed(derive_seed(self.args.seed, role, task.index))
                if role not in self.at_once:
                    self.models[role].start_task(task.class_names)
        if len(roles) == 1 and name in self.given:
            self.given[name].load(task.index)
        else:
            images, settings = self._images_for_training(task), self._settings(task, name)
            modules = {role: self.modules[role] for role in roles}
            if self.args.auto_find_batch_size and state is None:
                self.parts[name] = find_accumulation_steps(
                    self.accelerator, modules, images, self.args.batch_size, self.parts[name], self._heed
                )
            self.accelerator.gradient_accumulation_steps = self.parts[name]
            division = self._division(settings, self.parts[name])
            if roles == (STUDENT,):
                images.answers = self._known_answers(task, division)
            elif self._passes_queries_on() and state is None:
                self._queries = QueryCache(len(images), division)

            def on_answer(epoch, index, answer):
                if self._queries is not None and roles == (TEACHER,):
                    self._queries.add(epoch, index, answer["query"])

            def on_step(take_state):
                self.steps += 1
                if self.steps % self.args.save_steps == 0 or self._stop_request.stop_requested():
                    self._checkpoint(task.index, stage, take_state())

            def on_epoch(role, values):
                tracked = {f"{role}/{key}": value for key, value in values.items() if key != "epoch"}
                self.accelerator.log(tracked, step=self.steps)
                self.folder.log(event="epoch", task=task.index, stage=role, **values)

            with explain_oom(f"{settings.name}: {self._memory_advice(name)}"):
                try:
                    run_stage(
                        self.accelerator,
                        modules,
                        images,
                        settings,
                        start=state,
                        on_answer=on_answer,
                        on_step=on_step,
                        on_epoch=on_epoch,
                    )
                except StageError as error:
                    self._checkpoint(task.index, stage, error.state)
                    raise
            self._end_task(roles)
        for role in roles:
            self.modules[role].eval()
        self.seconds[name] += time.perf_counter() - began
        for callback in self.callbacks:
            callback.on_stage_end(self, task, roles)
        self._checkpoint(task.index, stage + 1, None)

    def _memory_advice(self, stage: str) -> str:
        return advice(self.accelerator.device, self.args.batch_size, self.accelerator.num_processes, self.parts[stage])

    def _settings(self, task: Task, name: str) -> StageSettings:
        return StageSettings(
            name=f"task {task.index + 1}/{len(self.stream)} {name}",
            num_train_epochs=self.args.num_train_epochs,
            batch_size=self.args.batch_size,
            learning_rate=self.args.learning_rate,
            num_workers=self.args.dataloader_num_workers,
            seed=derive_seed(self.args.seed, "order", task.index),
        )

    def _end_task(self, roles: tuple[str, ...]) -> None:
        """Ends the task for the models just trained; a teacher's prompts may be merged with its student's instead."""
        both = {TEACHER, STUDENT} <= self.modules.keys() and TEACHER not in self.given
        is_late = both and self.args.teacher_merge == "after_student"
        for role in roles:
            if role != TEACHER or not is_late:
                self.models[role].end_task()
        if STUDENT in roles and is_late:
            self.models[TEACHER].end_task()

    def _refit(self, task: Task) -> None:
        """Fits the classifiers that predict in place of the heads to the task's images, or aligns the heads."""
        began, args = time.perf_counter(), self.args
        smaller = f"take a smaller --eval_batch_size than {args.eval_batch_size}, or a smaller --ranpac_width"
        for role, model in self.models.items():
            if role in self.kept or (model.classifier is None and role not in self.alignments):
                continue
            images = TaskImages(task.train, self.stream.label_to_class_id, eval_transform(self.image_processor))
            where = f"the {role}'s classifier after task {task.index + 1}"
            with explain_oom(f"computing {where} does not fit into memory; {smaller}"), _divergence_told(where):
                features, labels = head_features(
                    self.accelerator, model, images, args.eval_batch_size, args.dataloader_num_workers, self._heed
                )
                model.fit_classifier(features, labels)
                if role in self.alignments:
                    seed = derive_seed(args.seed, "alignment", role, task.index)
                    self.alignments[role].add(features, labels)
                    self.alignments[role].align(model, seed, self._heed)
            self.seconds["classifiers"] = self.seconds.get("classifiers", 0.0) + time.perf_counter() - began
            began = time.perf_counter()

    def _evaluate(self, task: Task) -> None:
        began = time.perf_counter()
        counted = self.kept - self.at_once
        models = {role: model for role, model in self.models.items() if role not in counted}
        smaller = f"take a smaller --eval_batch_size than {self.args.eval_batch_size}, which changes no result"
        with explain_oom(f"the evaluation after task {task.index + 1} does not fit into memory; {smaller}"):
            counts = self.evaluator(models, self._test_images[: task.index + 1])
        counts |= {role: self.given[role].counts(task.index) for role in counted}
        self.seconds["evaluation"] += time.perf_counter() - began
        values = {}
        for role, matrix in self.matrices.items():
            for j, (correct, total) in enumerate(counts[role]):
                matrix.update(task.index, j, correct, total)
            values[role] = {"accuracies": matrix.rows[-1], "average_accuracy": matrix.average_accuracy}
        self.folder.log(event="evaluation", task=task.index, **values)
        self.accelerator.log(
            {f"{role}/average_accuracy": matrix.average_accuracy for role, matrix in self.matrices.items()},
            step=self.steps,
        )
        for callback in self.callbacks:
            callback.on_evaluation(self, task)

    def results(self) -> dict[str, Any]:
        """Metrics and sizes of each model, under its role."""
        results = {
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "gradient_accumulation_steps": self.parts,
        }
        for role, module in self.modules.items():
            model = module.model
            module.train()
            classifiers = [c for c in (model.classifier, model.kd_classifier) if c is not None]
            results[role] = {
                **self.matrices[role].summary(),
                "num_tasks": model.config.num_tasks,
                "parameters": sum(p.numel() for p in model.parameters()),
                "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "classifier_values": sum(classifier.num_values for classifier in classifiers),
            }
            module.eval()
        return results

    def save_models(self) -> None:
        """Writes `teacher/` and `student/`: weights, configuration and image processor."""
        for role, model in self.models.items():
            state = whole_state(model)
            if self.accelerator.is_main_process:
                with atomic_folder(self.folder.path / role) as place:
                    with _no_progress_bar():
                        model.save_pretrained(place, state_dict=state)
                    self.image_processor.save_pretrained(place)
                    for weights in place.glob("*.safetensors"):
                        seal_file(weights)

    def _images_for_training(self, task: Task) -> TaskImages:
        transform = train_transform(
            self.image_processor, tuple(self.args.crop_scale), horizontal_flip=self.args.horizontal_flip
        )
        return TaskImages(task.train, self.stream.label_to_class_id, transform, seed=self.args.seed, task=task.index)

    def _images_for_test(self, task: Task) -> TaskImages:
        """The validation images where some are held out: hyper-parameters are chosen without the test images."""
        view = task.test if task.validation is None else task.validation
        return TaskImages(view, self.stream.label_to_class_id, eval_transform(self.image_processor))

    def _save_states(self, task: Task) -> None:
        """What each model had learnt after the task: for further students of this teacher, and to look back."""
        if self.accelerator.is_main_process:
            for role, model in self.models.items():
                if role not in self.kept:
                    counts = self.matrices[role].counts(task.index)
                    self.states[role].save(task.index, model, counts, self._about[role])

    def _passes_queries_on(self) -> bool:
        """Whether the teacher's stage computes the very queries that the student's stage needs."""
        models = self.models
        return len(models) == len(self.stages) == 2 and models[STUDENT].shares_query_with(models[TEACHER])

    def _store_answers(self, task: Task) -> None:
        """Stores what the teacher, whose stage is over, answers to the task's images, unless it is stored already."""
        if not self.args.cache_teacher_outputs:
            return
        answers = self.states[TEACHER].answers(task.index)
        if answers.are_there(self.models[TEACHER].prompt_pool.needs_query):
            return
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        images, settings = self._images_for_training(task), self._settings(task, "teacher's answers")
        with explain_oom(f"{settings.name}: {self._memory_advice(TEACHER)}"):
            answers.write(self.accelerator, self.models[TEACHER], images, settings, self._heed)

    def _division(self, settings: StageSettings, parts: int) -> tuple:
        """What decides which images each process has in each step of a stage, and what they look like.

        A callback may alter the arguments between the stages.
        """
        args = self.args
        return settings.seed, settings.batch_size, parts, args.seed, list(args.crop_scale), args.horizontal_flip

    def _known_answers(self, task: Task, division: tuple) -> dict[str, Sequence[np.ndarray | None]]:
        """What need not be computed again in a student's stage of this division."""
        if TEACHER not in self.models:
            return {}
        known = {}
        if TEACHER in self.given:
            known = self.given[TEACHER].answers(task.index)
        elif self.args.cache_teacher_outputs:
            answers = self.states[TEACHER].answers(task.index)
            known = answers.read(self.args.num_train_epochs, len(task.train))
        if not self.models[STUDENT].shares_query_with(self.models[TEACHER]):
            known.pop("query", None)
        elif self._queries is not None and self._queries.division == division:
            known["query"] = self._queries.epochs
        return known

    def _checkpoint(self, task_id: int, stage: int, state: StageState | None) -> None:
        """Saves everything a resumed run needs; `task_id` and `stage` say which stage is next or under way.

        After the last stage there are still the classifiers and the evaluation.
        """
        began = time.perf_counter()
        if self.accelerator.is_main_process:
            content = {
                "task": task_id,
                "stage": stage,
                "state": None if state is None else vars(state),
                "steps": self.steps,
                "seconds": self.seconds,
                "parts": self.parts,
                "logged_bytes": self.folder.logged_bytes(),
                "matrices": {role: matrix.to_dict() for role, matrix in self.matrices.items()},
                "class_names": {role: list(m.config.id2label.values()) for role, m in self.models.items()},
                "tasks_seen": {role: m.config.tasks_seen for role, m in self.models.items()},
                "modules": {role: trained_state(module, statistics=True) for role, module in self.modules.items()},
                "alignments": {role: alignment.state() for role, alignment in self.alignments.items()},
                "fingerprint": self.fingerprint,
            }
            # The number grows with the run: a finished stage comes after the last step within it.
            place = (self.steps * (len(self.stream) + 1) + task_id) * 2 + (state is None)
            save_checkpoint(self.folder.checkpoints, 2 * place + stage, content)
        self.accelerator.wait_for_everyone()
        self.seconds["saving"] += time.perf_counter() - began
        self._heed()

    def resume(self) -> None:
        """Takes up the newest whole checkpoint of the folder; before the first one the run starts from the beginning.

        Raises:
            ValueError: It was made with arguments that give another result; no checkpoint is whole, or a state that
                the run has left; the run is finished, and its checkpoints are gone.
        """
        state = load_newest_checkpoint(self.folder.checkpoints)
        if state is None:
            if self.folder.is_finished:
                raise ValueError(
                    f"the run in {self.folder.path} is finished, and its checkpoints are gone: there is nothing to "
                    "resume; --overwrite_output_dir would run it again"
                )
            self.folder.cut_log(0)
            self.accelerator.print("There is no checkpoint yet: starting from the beginning.")
            self._start = (0, 0, None)
            return
        try:
            notes = compare(state["fingerprint"], self.fingerprint)
        except ValueError as error:
            raise ValueError(
                f"the run in {self.folder.path} was made with other arguments, images or weights, and cannot go on: "
                f"{error}. Resume it with the old ones (args.yaml there), or choose another output_dir"
            ) from error
        for note in notes:
            self.accelerator.print(note)
        self._verify_states(state["task"])
        for role, module in self.modules.items():
            load_trained_state(module, state["modules"][role])
            config = module.model.config
            config.tasks_seen = state["tasks_seen"][role]
            if config.tasks_seen:
                config.id2label = dict(enumerate(state["class_names"][role]))
                config.label2id = {name: i for i, name in config.id2label.items()}
            module.eval()
        self.matrices = {role: AccuracyMatrix.from_dict(matrix) for role, matrix in state["matrices"].items()}
        for role, alignment in self.alignments.items():
            alignment.load_state(state["alignments"][role])
        self.seconds, self.steps = state["seconds"], state["steps"]
        if self.args.auto_find_batch_size:
            self.parts = state["parts"]
        self.folder.cut_log(state["logged_bytes"])
        position = None if state["state"] is None else StageState(**state["state"])
        if state["task"] == len(self.stream):
            self.accelerator.print("The run was finished; writing its results again.")
        else:
            where = "" if position is None else f", epoch {position.epoch + 1}, step {position.step}"
            names = [*map(" and ".join, self.stages), "evaluation"]
            self.accelerator.print(f"Resuming in task {state['task'] + 1}, {names[state['stage']]}{where}.")
        self._start = (state["task"], state["stage"], position)

    def _verify_states(self, num_tasks: int) -> None:
        """What was left after each task is not made again: its damage is told while there may be a copy."""
        for role in self.modules.keys() - self.kept:
            for path in filter(Path.is_file, map(self.states[role].path, range(num_tasks))):
                try:
                    verify(path)
                except DamagedFile as error:
                    raise ValueError(f"{error}; put back a copy, or delete it to go on without it") from error


@contextmanager
def _divergence_told(where: str) -> Iterator[None]:
    """A matrix that cannot be solved or factored within is raised as numbers that have grown out of bounds.

    Raises:
        FloatingPointError: There was one.
    """
    try:
        yield
    except (torch.linalg.LinAlgError, FloatingPointError) as error:
        raise FloatingPointError(f"{where} cannot be computed ({str(error).splitlines()[0]})") from error


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers shows one for each file that it writes, and a model is one file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
