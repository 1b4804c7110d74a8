"""How a student learns from a teacher: losses and methods."""

from .methods import METHODS
from .supervised import Supervised

__all__ = ["METHODS", "Supervised"]
