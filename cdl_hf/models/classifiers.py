"""Classifiers that are computed from features rather than learnt by gradients: one for all classes, never forgotten.

One contract. `classifier.fit(features, labels)` adds the features (n, D) of classes, which are columns (n,), once;
`classifier(features, columns)` answers (B, D) with scores (B, columns). `init_weights` forgets everything.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_prompt_vit import PromptViTConfig


class Classifier(nn.Module):
    """What the classifiers share: they take no gradient.

    Args:
        config: The model's.
        width: D of the features.
    """

    predicting: tuple[str, ...]  # buffers that predict; the others are for the classes to come

    @property
    def num_values(self) -> int:
        """How many numbers a prediction needs: these are no parameters."""
        return sum(self.get_buffer(name).numel() for name in self.predicting)

    def fit(self, features: Tensor, labels: Tensor) -> None:
        raise NotImplementedError  # every classifier has its own


class NearestClassMean(Classifier):
    """Cosine of the angle to each class's mean of unit features (SimpleCIL, arXiv 2303.07338, section 3.2), times
    `scale`, which only makes probabilities of it."""

    predicting = ("sums",)
    scale = 16.0

    def __init__(self, config: PromptViTConfig, width: int):
        super().__init__()
        self.register_buffer("sums", torch.empty(config.num_classes, width))

    def init_weights(self) -> None:
        init.zeros_(self.sums)

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        self.sums.index_add_(0, labels, F.normalize(features.float(), dim=1))

    def forward(self, features: Tensor, columns: int) -> Tensor:
        return self.scale * F.normalize(features.float(), dim=1) @ F.normalize(self.sums[:columns], dim=1).T


class RanPAC(Classifier):
    """Ridge regression onto the classes from random features (RanPAC, arXiv 2307.02251, sections 3 and 4).

    Features are projected to `ranpac_width` fixed random directions and rectified; their second-order statistics over
    all images so far are kept, and solved after each task. The ridge is the power of ten with which four fifths of the
    new task's images predict the rest best.
    """

    predicting = ("projection", "weight")
    ridges = [10.0**k for k in range(-8, 9)]

    def __init__(self, config: PromptViTConfig, width: int):
        super().__init__()
        wide = config.ranpac_width
        self.register_buffer("projection", torch.empty(width, wide))
        self.register_buffer("gram", torch.empty(wide, wide))
        self.register_buffer("sums", torch.empty(wide, config.num_classes))
        self.register_buffer("weight", torch.empty(config.num_classes, wide))

    def init_weights(self) -> None:
        init.normal_(self.projection)
        for buffer in (self.gram, self.sums, self.weight):
            init.zeros_(buffer)

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        wide = self._widen(features)
        targets = F.one_hot(labels, self.sums.shape[1]).to(wide.dtype)
        held_out = torch.arange(len(wide), device=wide.device) % 5 == 0
        self._add(wide[~held_out], targets[~held_out])
        ridge = self._best_ridge(wide[held_out], targets[held_out])
        self._add(wide[held_out], targets[held_out])
        eigenvalues, vectors, sums = self._decompose()
        self.weight.copy_((vectors @ (sums / (eigenvalues + ridge)[:, None])).T)

    def forward(self, features: Tensor, columns: int) -> Tensor:
        return self._widen(features) @ self.weight[:columns].T

    def _widen(self, features: Tensor) -> Tensor:
        return F.relu(features.float() @ self.projection)

    def _add(self, wide: Tensor, targets: Tensor) -> None:
        self.gram.addmm_(wide.T, wide)
        self.sums.addmm_(wide.T, targets)

    def _decompose(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues and -vectors of the Gram matrix, which solve every ridge at once, and the rotated sums."""
        eigenvalues, vectors = torch.linalg.eigh(self.gram.double())
        return eigenvalues.clamp_min(0), vectors, vectors.T @ self.sums.double()

    def _best_ridge(self, wide: Tensor, targets: Tensor) -> float:
        eigenvalues, vectors, sums = self._decompose()
        rotated = wide.double() @ vectors
        errors = [
            F.mse_loss(rotated @ (sums / (eigenvalues + ridge)[:, None]), targets.double()) for ridge in self.ridges
        ]
        return self.ridges[int(torch.stack(errors).argmin())]


CLASSIFIERS: dict[str, type[Classifier]] = {"ncm": NearestClassMean, "ranpac": RanPAC}
