"""Progress of a training that ends after its steps or at a given time."""

import time


class Progress:
    """Share of the training that is done, from 0 to 1: of its steps or of its time, whichever is larger.

    A learning rate that follows it ends its schedule in time, however fast the steps are. The time counts from the end
    of the first step, which may compile.

    Args:
        num_steps: Steps of the whole training.
        start: Share that earlier calls have done.
        deadline: `time.monotonic()` by which it must end; `None` for no limit.
    """

    def __init__(self, num_steps: int, start: float = 0.0, deadline: float | None = None):
        self.num_steps, self.start, self.deadline = num_steps, start, deadline
        self._began: float | None = None

    def begin(self) -> None:
        """Marks the end of the first step; further calls change nothing."""
        if self._began is None:
            self._began = time.monotonic()

    def after(self, step: int) -> float:
        """The share when so many steps are done, now."""
        share = step / self.num_steps
        if self.deadline is None:
            return share
        if self._began is None:
            return max(share, self.start)
        left = self.deadline - self._began
        of_time = (time.monotonic() - self._began) / left if left > 0 else 1.0
        return min(1.0, max(share, self.start + (1 - self.start) * of_time))
