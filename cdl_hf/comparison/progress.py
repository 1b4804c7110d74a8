"""Progress of a comparison: how many runs are done, and the time left as estimated from finished runs."""

import statistics
from collections.abc import Iterable, Mapping

from .grid import PlannedRun


class Progress:
    """Counts runs and estimates the time that the rest will take.

    A run is expected to take as long as finished runs that differ from it in the seed alone; else as those that also
    train a teacher, train a student, or compute a classifier; else as all.

    Args:
        runs: The runs that are to be finished.
        planned: All runs of the comparison: others that are finished serve the estimate.
        seconds: Seconds of each run that is finished already, by name.
    """

    def __init__(self, runs: Iterable[PlannedRun], planned: Iterable[PlannedRun], seconds: Mapping[str, float]):
        self._runs = {run.name: run for run in runs}
        self._planned = {run.name: run for run in planned}
        self._done = self._runs.keys() & seconds.keys()
        self._seconds = {name: value for name, value in seconds.items() if value > 0}

    def finish(self, run: PlannedRun, seconds: float | None = None) -> None:
        """Counts a run as done.

        Args:
            seconds: How long it took; `None` if it was not run, or without success.
        """
        if run.name in self._runs:
            self._done.add(run.name)
        if seconds is not None:
            self._seconds[run.name] = seconds

    def describe(self, run: PlannedRun) -> str:
        """Number and name of a run that starts now, and the time left."""
        number = min(len(self._done) + 1, len(self._runs))
        left = self.seconds_left()
        estimate = "" if left is None else f", about {duration(left)} left"
        return f"run {number} of {len(self._runs)}: {run.name}{estimate}"

    def seconds_left(self) -> float | None:
        """Seconds that the runs not done are expected to take; `None` before any run has finished."""
        if not self._seconds:
            return None
        return sum(self._expected(run) for name, run in self._runs.items() if name not in self._done)

    def _expected(self, run: PlannedRun) -> float:
        finished = [(self._planned[name], value) for name, value in self._seconds.items()]
        same = [value for other, value in finished if other.experiment == run.experiment]
        alike = [value for other, value in finished if other.kind == run.kind]
        return statistics.fmean(same or alike or self._seconds.values())


def duration(seconds: float) -> str:
    """A time in its two largest units, such as `2 h 10 min`."""
    minutes = max(round(seconds / 60), 1)
    hours, days = minutes // 60, minutes // 1440
    if days:
        return f"{days} d {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
