"""Registry of the distillation methods by name."""

from .analytic import Analytic
from .branch_methods import KDP, CDLPrompt, DeiT
from .feature_methods import FitNets, FrozenFeatures, ReviewKD
from .logit_methods import DIST, DKD, KD, StandardizedKD
from .objective import TrainingObjective

METHODS: dict[str, type[TrainingObjective]] = {
    "none": TrainingObjective,
    "kd": KD,
    "dkd": DKD,
    "lskd": StandardizedKD,
    "dist": DIST,
    "fitnets": FitNets,
    "reviewkd": ReviewKD,
    "features": FrozenFeatures,
    "deit": DeiT,
    "kdp": KDP,
    "cdl_prompt": CDLPrompt,
    "analytic": Analytic,
}
