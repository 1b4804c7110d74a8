"""Metrics, predictions and plots of models. `continual_accuracy` and `plots` are imported where they are used."""

from .accuracy_matrix import METRICS, AccuracyMatrix, Metric, metric_in, metrics_of, tasks_of

__all__ = ["METRICS", "AccuracyMatrix", "Metric", "metric_in", "metrics_of", "tasks_of"]
