"""What a student's stage takes from its teacher, in memory or from files, instead of computing it again."""

from collections.abc import Callable, Mapping

from accelerate import Accelerator

from ..arguments.config import CDLConfig
from ..data import Task, TaskImages
from ..runs.output_cache import OutputCache, QueryCache
from .learner import STUDENT, TEACHER, Learner
from .stage import StageSettings, training_loader


class TeacherOutputs:
    """The queries of the teacher's newest stage, and the outputs that a run stores in files.

    Its methods take the run's `args`, since a callback may change them between the stages.

    Args:
        accelerator: As in [`Stage`].
        learners: By role.
        after_batch: Called on every process after each batch; what it raises ends the work.
    """

    def __init__(
        self, accelerator: Accelerator, learners: Mapping[str, Learner], after_batch: Callable[[], None] = lambda: None
    ):
        self.accelerator, self.learners, self.after_batch = accelerator, learners, after_batch
        self._queries: QueryCache | None = None

    def keep_queries(self, num_images: int, settings: StageSettings, args: CDLConfig) -> QueryCache | None:
        """Where the teacher's stage keeps its queries; `None` where the student's stage does not need these."""
        self._queries = None
        if self._shares_query() and args.schedule != "same_step":
            self._queries = QueryCache(num_images, self._division(settings, args))
        return self._queries

    def forget_queries(self) -> None:
        """Frees the queries of a task that is over."""
        self._queries = None

    def of_task(self, task: Task, settings: StageSettings, args: CDLConfig) -> OutputCache | None:
        """The outputs that a student's stage with these settings need not compute; `None` without a teacher.

        Raises:
            DamagedFile, ValueError: As [`TeacherOutputCache.open`].
        """
        if TEACHER not in self.learners:
            return None
        cached = self.learners[TEACHER].cached_outputs(task, args)
        if not self._shares_query():
            cached.pop("query", None)
        elif self._queries is not None and self._queries.division == self._division(settings, args):
            cached["query"] = self._queries.epochs
        return OutputCache(cached)

    def store(self, task: Task, images: TaskImages, settings: StageSettings) -> None:
        """Writes the outputs of the teacher, whose stage is over, for the task's images, unless they are there.

        Args:
            images: The task's training images.
            settings: As of a student's stage with the teacher's batch size.

        Raises:
            OSError: There is no room.
            FloatingPointError: An output is not finite.
        """
        teacher = self.learners[TEACHER]
        files = teacher.checkpoints.cached_outputs(task.index)
        if files.exist(teacher.model.prompt_pool.needs_query_pass):
            return
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        _, loader = training_loader(self.accelerator, images, settings, every_image=True)
        files.write(
            self.accelerator,
            teacher.model,
            images,
            loader,
            settings.num_train_epochs,
            name=f"{settings.name}'s outputs",
            after_batch=self.after_batch,
        )

    def _shares_query(self) -> bool:
        """Whether the teacher computes the very queries that the student needs."""
        if not {TEACHER, STUDENT} <= self.learners.keys():
            return False
        return self.learners[STUDENT].model.shares_query_with(self.learners[TEACHER].model)

    def _division(self, settings: StageSettings, args: CDLConfig) -> tuple:
        """What decides which images each process has in each step of a stage, and how they are augmented."""
        steps = self.accelerator.gradient_accumulation_steps
        return settings.seed, settings.batch_size, steps, args.seed, list(args.crop_scale), args.horizontal_flip
