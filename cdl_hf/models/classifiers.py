"""Classifiers that are computed from features rather than learnt by gradients: one for all classes, never forgotten.

One contract. `classifier.fit(features, labels)` adds the features (n, D) of classes, which are columns (n,), once;
`classifier(features, columns)` answers (B, D) with scores (B, columns) in float32, under autocast too. `init_weights`
forgets everything. Buffers are what predicts; what only further classes need is no part of a saved model: a run keeps
it in its checkpoints (`statistics`, `load_statistics`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_prompt_vit import PromptViTConfig
from .precision import in_full_precision, to_float64


class Classifier(nn.Module):
    """What the classifiers share: they take no gradient.

    Args:
        config: The model's.
        embed_dim: D of the features.
    """

    for_further_classes: tuple[str, ...] = ()  # names of the tensors that a prediction does not need

    @property
    def num_values(self) -> int:
        """How many numbers a prediction needs: these are no parameters."""
        return sum(buffer.numel() for buffer in self.buffers())

    @property
    def num_statistics(self) -> int:
        """How many numbers are kept beside them for further classes."""
        return 0

    def statistics(self) -> dict[str, Tensor]:
        """What fitting further classes needs beside the buffers, on the CPU; nothing before the first are fitted."""
        found = {name: getattr(self, name) for name in self.for_further_classes}
        return {name: tensor.cpu() for name, tensor in found.items() if tensor is not None}

    def load_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Puts back what [`statistics`] gave; without, no further classes can be fitted."""
        for name in self.for_further_classes:
            setattr(self, name, statistics[name].clone() if name in statistics else None)

    def init_weights(self) -> None:
        """Forgets all classes."""
        raise NotImplementedError  # every classifier has its own

    def fit(self, features: Tensor, labels: Tensor) -> None:
        raise NotImplementedError  # every classifier has its own


class NearestClassMean(Classifier):
    """Cosine of the angle to each class's mean of unit features (SimpleCIL, arXiv 2303.07338, section 3.2), times
    `scale`, which only makes probabilities of it."""

    scale = 16.0
    sums: Tensor

    def __init__(self, config: PromptViTConfig, embed_dim: int):
        super().__init__()
        self.register_buffer("sums", torch.empty(config.num_classes, embed_dim))

    def init_weights(self) -> None:
        init.zeros_(self.sums)

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        self.sums.index_add_(0, labels, F.normalize(features.float(), dim=1))

    def forward(self, features: Tensor, num_classes: int) -> Tensor:
        with in_full_precision(features):
            directions = F.normalize(self.sums[:num_classes].float(), dim=1)
            return self.scale * F.normalize(features.float(), dim=1) @ directions.T


class RanPAC(Classifier):
    """Ridge regression onto the classes from random features (RanPAC, arXiv 2307.02251, sections 3 and 4).

    Features are projected to `ranpac_width` = M fixed random directions and rectified; their second-order statistics
    over all images so far are kept, and solved after each task. The ridge is the power of ten with which four fifths
    of the new task's images predict the rest best.

    Attributes:
        gram: (M, M), products of the random features, summed over all images so far; `None` before the first.
        sums: (M, C), the random features summed for each class.
    """

    for_further_classes = ("gram", "sums")
    ridges = [10.0**k for k in range(-8, 9)]
    projection: Tensor
    weight: Tensor

    def __init__(self, config: PromptViTConfig, embed_dim: int):
        super().__init__()
        self.register_buffer("projection", torch.empty(embed_dim, config.ranpac_width))
        self.register_buffer("weight", torch.empty(config.num_classes, config.ranpac_width))
        self.gram: Tensor | None = None
        self.sums: Tensor | None = None

    def init_weights(self) -> None:
        init.normal_(self.projection)
        init.zeros_(self.weight)
        self.load_statistics({})

    @property
    def num_statistics(self) -> int:
        num_classes, num_random_features = self.weight.shape
        return num_random_features * (num_random_features + num_classes)

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        """See [`Classifier`].

        Raises:
            ValueError: Classes have been fitted before, but the statistics of their images are not here.
        """
        hidden = self._random_features(features)
        if self.gram is None or self.sums is None:
            if self.weight.any():
                raise ValueError(
                    "RanPAC cannot add classes to a saved model, which holds only what predicts: go on from the run's "
                    "checkpoints, or fit all classes again"
                )
            self.gram, self.sums = hidden.new_zeros(hidden.shape[1], hidden.shape[1]), torch.zeros_like(self.weight.T)
        self.gram, self.sums = self.gram.to(hidden.device), self.sums.to(hidden.device)
        targets = F.one_hot(labels, self.sums.shape[1]).to(hidden.dtype)
        held_out = torch.arange(len(hidden), device=hidden.device) % 5 == 0
        with in_full_precision(hidden):
            self._add(hidden[~held_out], targets[~held_out])
            ridge = self._best_ridge(hidden[held_out], targets[held_out])
            self._add(hidden[held_out], targets[held_out])
            eigenvalues, vectors, sums = self._decompose()
            self.weight.copy_((vectors @ (sums / (eigenvalues + ridge)[:, None])).T.to(self.weight))

    def forward(self, features: Tensor, num_classes: int) -> Tensor:
        with in_full_precision(features):
            return self._random_features(features) @ self.weight[:num_classes].float().T

    def _random_features(self, features: Tensor) -> Tensor:
        with in_full_precision(features):
            return F.relu(features.float() @ self.projection.float())

    def _add(self, hidden: Tensor, targets: Tensor) -> None:
        assert self.gram is not None and self.sums is not None
        self.gram.addmm_(hidden.T, hidden)
        self.sums.addmm_(hidden.T, targets)

    def _decompose(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues and -vectors of the Gram matrix, which solve every ridge at once, and the rotated sums."""
        assert self.gram is not None and self.sums is not None
        eigenvalues, vectors = torch.linalg.eigh(to_float64(self.gram))
        return eigenvalues.clamp_min(0), vectors, vectors.T @ to_float64(self.sums)

    def _best_ridge(self, hidden: Tensor, targets: Tensor) -> float:
        eigenvalues, vectors, sums = self._decompose()
        rotated, targets = to_float64(hidden) @ vectors, to_float64(targets)
        errors = [F.mse_loss(rotated @ (sums / (eigenvalues + ridge)[:, None]), targets) for ridge in self.ridges]
        return self.ridges[int(torch.stack(errors).argmin())]


CLASSIFIERS: dict[str, type[Classifier]] = {"ncm": NearestClassMean, "ranpac": RanPAC}
