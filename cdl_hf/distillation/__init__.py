"""How a student learns from a teacher: losses and methods."""

from .methods import METHODS, Supervised

__all__ = ["METHODS", "Supervised"]
