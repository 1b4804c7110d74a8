"""Accuracy on every task seen so far, after every task, and what is computed from it."""

from collections.abc import Callable

import numpy as np

Rows = list[list[float]]


def forgetting_cdl(rows: Rows) -> float:
    """(1/N) sum over all tasks j of R[j,j] - R[N-1,j]: the last task counts, with 0 (CDL)."""
    last = rows[-1]
    return float(np.mean([rows[j][j] - last[j] for j in range(len(rows))]))


def forgetting_max(rows: Rows) -> float:
    """Mean over the earlier tasks j of max_i R[i,j] - R[N-1,j] (Chaudhry et al., the default elsewhere)."""
    earlier = range(len(rows) - 1)
    return float(np.mean([max(row[j] for row in rows[j:]) - rows[-1][j] for j in earlier])) if earlier else 0.0


def forgetting_bwt(rows: Rows) -> float:
    """Backward transfer: mean over the earlier tasks j of R[N-1,j] - R[j,j]; negative where something is forgotten."""
    earlier = range(len(rows) - 1)
    return float(np.mean([rows[-1][j] - rows[j][j] for j in earlier])) if earlier else 0.0


def forgetting_coda(rows: Rows) -> float:
    """Mean over tasks t >= 1 of the mean loss on the tasks before t through learning t, R[t-1,i] - R[t,i] (CODA)."""
    steps = range(1, len(rows))
    return float(np.mean([np.mean([rows[t - 1][i] - rows[t][i] for i in range(t)]) for t in steps])) if steps else 0.0


FORGETTING: dict[str, Callable[[Rows], float]] = {
    "cdl": forgetting_cdl,
    "max": forgetting_max,
    "bwt": forgetting_bwt,
    "coda": forgetting_coda,
}


class AccuracyMatrix:
    """R[i,j], the accuracy in % on task j's test images after training task i, kept as integer counts.

    All figures are over the tasks trained so far, so that a run that stopped early has them too.

    Args:
        num_tasks: N, the tasks of the whole stream.
    """

    def __init__(self, num_tasks: int):
        self.num_tasks = num_tasks
        self._correct = np.zeros((num_tasks, num_tasks), dtype=np.int64)
        self._total = np.zeros((num_tasks, num_tasks), dtype=np.int64)

    def update(self, after_task: int, task: int, correct: int, total: int) -> None:
        """Add `correct` of `total` images of `task`, counted after training `after_task` >= `task`."""
        if not 0 <= task <= after_task < self.num_tasks:
            raise ValueError(f"No entry (after task {after_task}, task {task}) in a matrix of {self.num_tasks} tasks.")
        if not 0 <= correct <= total:
            raise ValueError(f"{correct} correct of {total} images cannot be.")
        self._correct[after_task, task] += correct
        self._total[after_task, task] += total

    @property
    def tasks_seen(self) -> int:
        """Number of rows that are complete, from the first on."""
        complete = [bool((self._total[i, : i + 1] > 0).all()) for i in range(self.num_tasks)]
        return complete.index(False) if False in complete else self.num_tasks

    @property
    def rows(self) -> Rows:
        """R in %: row i has the i + 1 entries of the tasks seen by then."""
        return [(100 * self._correct[i, : i + 1] / self._total[i, : i + 1]).tolist() for i in range(self.tasks_seen)]

    def _last(self) -> int:
        if not self.tasks_seen:
            raise ValueError("The accuracy matrix is empty: evaluate after the first task before asking for figures.")
        return self.tasks_seen - 1

    @property
    def average_accuracies(self) -> list[float]:
        """After every task, the mean over the tasks seen by then in %, each task with equal weight."""
        self._last()
        return [float(np.mean(row)) for row in self.rows]

    @property
    def average_accuracy(self) -> float:
        """A_N in %: the mean over all tasks seen, each task with equal weight."""
        return self.average_accuracies[-1]

    @property
    def average_accuracy_by_image(self) -> float:
        """A_N in %, each test image with equal weight."""
        last = self._last()
        return float(100 * self._correct[last].sum() / self._total[last].sum())

    @property
    def average_incremental_accuracy(self) -> float:
        """Mean over i of the average accuracy after task i, in %."""
        return float(np.mean(self.average_accuracies))

    def forgetting(self, definition: str) -> float:
        """Forgetting by one of the definitions in `FORGETTING`, in percentage points; 0 after a single task."""
        self._last()
        return FORGETTING[definition](self.rows)

    def summary(self) -> dict:
        """All figures in plain numbers, as results.json has them."""
        return {
            "accuracy_matrix": self.rows,
            "average_accuracy": self.average_accuracy,
            "average_accuracy_by_image": self.average_accuracy_by_image,
            "average_incremental_accuracy": self.average_incremental_accuracy,
            "forgetting": {definition: self.forgetting(definition) for definition in FORGETTING},
        }

    def counts(self, after_task: int) -> list[tuple[int, int]]:
        """(correct, total) images of each task so far after training `after_task`."""
        seen = slice(after_task + 1)
        return list(zip(self._correct[after_task, seen].tolist(), self._total[after_task, seen].tolist(), strict=True))

    def to_dict(self) -> dict:
        """The counts, for a checkpoint."""
        return {"correct": self._correct.tolist(), "total": self._total.tolist()}

    @classmethod
    def from_dict(cls, state: dict) -> "AccuracyMatrix":
        matrix = cls(len(state["total"]))
        matrix._correct[:] = state["correct"]
        matrix._total[:] = state["total"]
        return matrix
