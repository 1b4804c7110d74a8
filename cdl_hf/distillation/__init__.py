"""Distillation methods and their losses."""

from .methods import METHODS
from .objective import TrainingObjective

__all__ = ["METHODS", "TrainingObjective"]
