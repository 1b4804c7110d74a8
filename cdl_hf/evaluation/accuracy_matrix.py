"""The accuracy matrix of a run, and the metrics that are computed from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

Rows = list[list[float]]


class TaskCounts(NamedTuple):
    """Number of test images of one task, and of those among them that a model predicts correctly.

    Attributes:
        correct: Images whose class is predicted, with all classes seen so far competing.
        total: All images.
        task_known: Images whose class is predicted among the classes of their own task alone.
        right_task: Images for which a class of their own task is predicted. Those with the correct class are among
            them, and among `task_known`. Both are `None` where a class has images in several tasks, as in
            domain-incremental streams, and in runs of earlier versions.
    """

    correct: int
    total: int
    task_known: int | None = None
    right_task: int | None = None


def learning_accuracy(rows: Rows) -> float:
    """Mean over the tasks j of R[j,j]; the final accuracy A_N is this less [`forgetting_cdl`]."""
    return float(np.mean([row[-1] for row in rows]))


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


class AccuracyMatrix:
    """R[i,j], the accuracy in % on task j's test images after training task i, kept as integer counts.

    All metrics are over the tasks trained so far, so that a run that stopped early has them too.

    An image is classified correctly only if a class of its own task is predicted, and if its class scores highest
    among the classes of that task (task-id prediction and within-task prediction, arXiv 2211.02633). Two further
    counts show which of the two a model lacks. Domain-incremental streams have neither: their classes come again, so
    that a class does not have one task.

    Args:
        num_tasks: N, the tasks of the whole stream.
    """

    def __init__(self, num_tasks: int):
        self.num_tasks = num_tasks
        self._correct = np.zeros((num_tasks, num_tasks), dtype=np.int64)
        self._total = np.zeros((num_tasks, num_tasks), dtype=np.int64)
        self._task_known = np.zeros((num_tasks, num_tasks), dtype=np.int64)
        self._right_task = np.zeros((num_tasks, num_tasks), dtype=np.int64)
        self._total_by_task = np.zeros((num_tasks, num_tasks), dtype=np.int64)  # images that these two are of

    def update(
        self,
        after_task: int,
        task: int,
        correct: int,
        total: int,
        task_known: int | None = None,
        right_task: int | None = None,
    ) -> None:
        """Add [`TaskCounts`] of `task`, counted after training `after_task` >= `task`."""
        if not 0 <= task <= after_task < self.num_tasks:
            raise ValueError(
                f"task {task} after task {after_task} is no entry of a matrix of {self.num_tasks} tasks: it must be "
                "among the tasks seen by then"
            )
        for name, count in (("correct", correct), ("task_known", task_known), ("right_task", right_task)):
            if count is not None and not 0 <= count <= total:
                raise ValueError(f"{name} must be between 0 and total ({total}), got {count}")
        self._correct[after_task, task] += correct
        self._total[after_task, task] += total
        if task_known is not None and right_task is not None:
            self._task_known[after_task, task] += task_known
            self._right_task[after_task, task] += right_task
            self._total_by_task[after_task, task] += total

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
            raise ValueError("the accuracy matrix is empty: there are no metrics before the first evaluation")
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

    @property
    def learning_accuracy(self) -> float:
        """Mean over j of R[j,j] in %."""
        self._last()
        return learning_accuracy(self.rows)

    @property
    def task_known_accuracies(self) -> list[float] | None:
        """After every task, the mean over the tasks seen by then of the accuracy (%) among the classes of the image's
        own task, also called task-incremental accuracy; `None` where it was not counted: see [`TaskCounts`]."""
        return self._mean_shares(self._task_known)

    @property
    def right_task_shares(self) -> list[float] | None:
        """After every task, the mean over the tasks seen by then of the share (%) of test images for which a class of
        their own task is predicted; `None` where it was not counted: see [`TaskCounts`]."""
        return self._mean_shares(self._right_task)

    def _mean_shares(self, counts: np.ndarray) -> list[float] | None:
        seen = self._last() + 1
        if (self._total_by_task != self._total)[:seen].any():
            return None
        return [float(np.mean(100 * counts[i, : i + 1] / self._total[i, : i + 1])) for i in range(seen)]

    def summary(self) -> dict[str, Any]:
        """The matrix and all [`METRICS`] in plain numbers, as results.json has them."""
        self._last()
        summary: dict[str, Any] = {"accuracy_matrix": self.rows}
        for name, values in (
            ("task_known_accuracies", self.task_known_accuracies),
            ("right_task_shares", self.right_task_shares),
        ):
            if values is not None:
                summary[name] = values
        for name, metric in METRICS.items():
            value = None if metric.compute is None else metric.compute(self)
            if value is not None:
                group, _, key = name.rpartition(".")
                (summary.setdefault(group, {}) if group else summary)[key] = value
        return summary

    def counts(self, after_task: int) -> list[TaskCounts]:
        """Of each task so far after training `after_task`."""
        found = []
        for task in range(after_task + 1):
            place = after_task, task
            own = (self._task_known, self._right_task)
            is_counted = self._total_by_task[place] == self._total[place]
            by_task = (int(counts[place]) if is_counted else None for counts in own)
            found.append(TaskCounts(int(self._correct[place]), int(self._total[place]), *by_task))
        return found

    def to_dict(self) -> dict:
        """The counts, for a checkpoint."""
        return {name: getattr(self, f"_{name}").tolist() for name in _STORED}

    @classmethod
    def from_dict(cls, state: dict) -> "AccuracyMatrix":
        """From counts of this version, or of version 0.3.0, which had `correct` and `total` only."""
        matrix = cls(len(state["total"]))
        for name in _STORED:
            if name in state:
                getattr(matrix, f"_{name}")[:] = state[name]
        return matrix


_STORED = ("correct", "total", "task_known", "right_task", "total_by_task")


@dataclass(frozen=True)
class Metric:
    """A number that sums up how a model has learned a stream.

    Args:
        label: What tables call it, in lower case.
        unit: `%` or `points`.
        compute: From a matrix that is not empty, or `None` where it was not counted; `None` for a metric that
            results.json has from elsewhere.
        is_headline: Whether the table at the end of a run shows it; the others are in the cards and the reports.
        hub_type: Its metric type in the metadata of a model card; `None` leaves it out there.
    """

    label: str
    unit: str
    compute: Callable[[AccuracyMatrix], float | None] | None
    is_headline: bool = False
    hub_type: str | None = None

    @property
    def title(self) -> str:
        """Label and unit, for the head of a row or column."""
        return f"{self.label[:1].upper()}{self.label[1:]} ({self.unit})"

    def over(self, parts: str) -> "Metric":
        """The same metric for a stream whose tasks are called otherwise: `"domains"`."""
        return replace(self, label=self.label.replace("tasks", parts))


def _last_of(values: list[float] | None) -> float | None:
    return None if values is None else values[-1]


# Name in results.json, a dot for a name within a group -> metric. Tables show them in this order.
METRICS: dict[str, Metric] = {
    "average_accuracy": Metric(
        "final accuracy A_N, mean over tasks",
        "%",
        lambda matrix: matrix.average_accuracy,
        is_headline=True,
        hub_type="accuracy",
    ),
    "average_accuracy_by_image": Metric(
        "final accuracy, mean over images", "%", lambda matrix: matrix.average_accuracy_by_image, hub_type="accuracy"
    ),
    "average_incremental_accuracy": Metric(
        "average incremental accuracy",
        "%",
        lambda matrix: matrix.average_incremental_accuracy,
        is_headline=True,
        hub_type="accuracy",
    ),
    "learning_accuracy": Metric(
        "learning accuracy, of each task right after it", "%", lambda matrix: matrix.learning_accuracy
    ),
    "task_known_accuracy": Metric(
        "task-known accuracy, among the classes of the image's own task",
        "%",
        lambda matrix: _last_of(matrix.task_known_accuracies),
    ),
    "right_task_share": Metric(
        "images assigned to the right task", "%", lambda matrix: _last_of(matrix.right_task_shares)
    ),
    "forgetting.cdl": Metric(
        "forgetting (cdl)",
        "points",
        lambda matrix: forgetting_cdl(matrix.rows),
        is_headline=True,
        hub_type="forgetting",
    ),
    "forgetting.max": Metric("forgetting (max)", "points", lambda matrix: forgetting_max(matrix.rows)),
    "forgetting.bwt": Metric("backward transfer", "points", lambda matrix: forgetting_bwt(matrix.rows)),
    "forgetting.coda": Metric("forgetting (coda)", "points", lambda matrix: forgetting_coda(matrix.rows)),
    "a_auc": Metric("area under online accuracy, A_AUC", "%", None, is_headline=True, hub_type="accuracy"),
}


def metrics_of(stream: Mapping[str, Any]) -> dict[str, Metric]:
    """[`METRICS`], named for the tasks of a stream.

    Args:
        stream: Description of the stream as results.json has it.
    """
    return {name: metric.over(tasks_of(stream)) for name, metric in METRICS.items()}


def tasks_of(stream: Mapping[str, Any]) -> str:
    """What the tasks of a stream are, in the plural: domains, or simply tasks."""
    domains = stream.get("domains") or []
    return "domains" if domains and len(set(domains)) == len(domains) else "tasks"


def metric_in(summary: Mapping[str, Any], name: str) -> float | None:
    """A metric, by its name in [`METRICS`], in the results of a model; `None` where it was not measured, or an earlier
    version did not compute it."""
    group, _, key = name.rpartition(".")
    return (summary.get(group, {}) if group else summary).get(key)
