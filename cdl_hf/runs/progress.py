"""The progress of a run: optimizer steps, their bar, and the time left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from .distributed import progress_bar


class RunProgress:
    """Counts the optimizer steps of all tasks and stages.

    Args:
        total: Steps of the whole run.

    Attributes:
        steps: Steps done so far, those before the run was resumed too.
    """

    def __init__(self, total: int):
        self.total, self.steps = total, 0
        self._began: float | None = None  # when this process did, and at which step
        self._first_step = 0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows a bar, and measures the time from now on."""
        self._began, self._first_step = time.perf_counter(), self.steps
        options = {"desc": "all tasks", "unit": "step", "smoothing": 0, "position": 0}
        with progress_bar(total=self.total, initial=self.steps, **options) as self._bar:
            yield

    def step(self) -> None:
        self.steps += 1
        self._bar.update()

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds that the rest will take; `None` before the first step of this process."""
        if self._began is None or self.steps == self._first_step:
            return None
        each = (time.perf_counter() - self._began) / (self.steps - self._first_step)
        return each * max(self.total - self.steps, 0)
