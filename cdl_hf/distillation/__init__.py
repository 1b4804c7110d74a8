"""How a student learns from a teacher: losses and methods."""

from .methods import METHODS
from .objective import TrainingObjective

__all__ = ["METHODS", "TrainingObjective"]
