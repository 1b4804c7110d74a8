"""The accuracy matrix as a metric of `evaluate`."""

from .continual_accuracy import ContinualAccuracy

__all__ = ["ContinualAccuracy"]
