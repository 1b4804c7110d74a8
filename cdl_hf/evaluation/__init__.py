"""Metrics, predictions and plots of models. `continual_accuracy` and `plots` are imported where they are used."""

from .accuracy_matrix import METRICS, AccuracyMatrix, Metric, TaskCounts, metric_in, metrics_of, tasks_of
from .online_accuracy import OnlineAccuracy

__all__ = [
    "METRICS",
    "AccuracyMatrix",
    "Metric",
    "OnlineAccuracy",
    "TaskCounts",
    "metric_in",
    "metrics_of",
    "tasks_of",
]
