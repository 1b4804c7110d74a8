"""What a stream's learner is judged by. `continual_accuracy` and `plots` are imported where they are used."""

from .accuracy_matrix import FORGETTING, AccuracyMatrix

__all__ = ["FORGETTING", "AccuracyMatrix"]
