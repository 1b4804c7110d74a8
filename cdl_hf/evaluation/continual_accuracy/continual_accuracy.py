"""Accuracy and forgetting over a stream of tasks, as a metric of the library `evaluate`."""

import datasets
import evaluate
import numpy as np

from cdl_hf.catalogue import CONTINUAL_DISTILLATION
from cdl_hf.evaluation.accuracy_matrix import AccuracyMatrix

_DESCRIPTION = """
Accuracy R[i,j] on the test images of task j after training on task i, over all classes seen by then, and what is
computed from it: average accuracy A_N, average incremental accuracy, and forgetting by four definitions (cdl, max,
bwt, coda).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: class predicted for each image.
    references: true class of each image.
    task_ids: index of the task that each image belongs to, from 0.
    after_task: index of the task trained last when each prediction was made; one number stands for all images.

Returns:
    accuracy_matrix (rows in %, row i with tasks 0..i), average_accuracy, average_accuracy_by_image,
    average_incremental_accuracy, learning_accuracy, forgetting (by definition). All over the tasks evaluated so far.

Examples:
    >>> metric = evaluate.load("cdl_hf/evaluation/continual_accuracy")
    >>> metric.add_batch(predictions=[0, 1], references=[0, 1], task_ids=[0, 0], after_task=0)
    >>> metric.add_batch(predictions=[0, 2, 2, 3], references=[0, 1, 2, 3], task_ids=[0, 0, 1, 1], after_task=1)
    >>> results = metric.compute()
    >>> results["accuracy_matrix"], results["average_accuracy"], results["forgetting"]["max"]
    ([[100.0], [50.0, 100.0]], 75.0, 50.0)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ContinualAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        columns = ("predictions", "references", "task_ids", "after_task")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CONTINUAL_DISTILLATION.bibtex,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({column: datasets.Value("int64") for column in columns}),
        )

    def add_batch(self, *, predictions, references, task_ids, after_task) -> None:
        """Add the predictions for a batch of images; `after_task` is one number or one an image."""
        after_task = np.broadcast_to(np.asarray(after_task), len(predictions))
        super().add_batch(predictions=predictions, references=references, task_ids=task_ids, after_task=after_task)

    def _compute(self, predictions, references, task_ids, after_task) -> dict:
        predictions, references, task_ids, after_task = map(
            np.asarray, (predictions, references, task_ids, after_task)
        )
        matrix = AccuracyMatrix(int(after_task.max()) + 1)
        entries, entry_of_image = np.unique(np.stack([after_task, task_ids]), axis=1, return_inverse=True)
        totals = np.bincount(entry_of_image)
        correct = np.bincount(entry_of_image, weights=predictions == references).astype(np.int64)
        for (after, task), right, total in zip(entries.T.tolist(), correct.tolist(), totals.tolist(), strict=True):
            matrix.update(after, task, right, total)
        if matrix.tasks_seen < matrix.num_tasks:
            raise ValueError(
                f"not all of tasks 0 to {matrix.tasks_seen} have predictions with after_task={matrix.tasks_seen}: "
                "after every task, evaluate all tasks seen by then"
            )
        return matrix.summary()
