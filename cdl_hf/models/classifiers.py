"""Classifiers that are computed from features instead of trained by gradients, one for all classes seen.

All share one contract. `classifier.fit(features, labels)` adds features (n, D) with class ids (n,), once per class;
`classifier(features, num_classes)` maps features (B, D) to scores (B, num_classes) of the first classes, in float32
also under autocast. `init_weights` resets the classifier. Buffers hold what a prediction needs. Tensors that are only
needed to add classes are not part of a saved model: a run stores them in its checkpoints (`statistics`,
`load_statistics`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_prompt_vit import PromptViTConfig
from .precision import in_full_precision, to_float64


class Classifier(nn.Module):
    """Base class of the computed classifiers, which have no gradients.

    Args:
        config: Configuration of the model.
        embed_dim: D, size of the features.
    """

    for_further_classes: tuple[str, ...] = ()  # names of the tensors that are needed only to add classes

    @property
    def num_values(self) -> int:
        """Number of values that a prediction needs; they are not parameters."""
        return sum(buffer.numel() for buffer in self.buffers())

    @property
    def num_statistics(self) -> int:
        """Number of values that are kept only to add classes."""
        return 0

    def statistics(self) -> dict[str, Tensor]:
        """Tensors that are needed to add classes, on the CPU; empty before the first fit."""
        found = {name: getattr(self, name) for name in self.for_further_classes}
        return {name: tensor.cpu() for name, tensor in found.items() if tensor is not None}

    def load_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Restores the output of [`statistics`]; without it, no classes can be added."""
        for name in self.for_further_classes:
            setattr(self, name, statistics[name].clone() if name in statistics else None)

    def init_weights(self) -> None:
        """Forgets all classes."""
        raise NotImplementedError

    def fit(self, features: Tensor, labels: Tensor) -> None:
        raise NotImplementedError


class NearestClassMean(Classifier):
    """Cosine similarity to the mean of each class's normalized features (SimpleCIL, arXiv 2303.07338, section 3.2).

    It is multiplied by `scale`, so that a softmax gives useful probabilities.
    """

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
    """Ridge regression from random features to classes (RanPAC, arXiv 2307.02251, sections 3 and 4).

    Features are projected to `ranpac_width` = M fixed random directions and rectified. Their second-order statistics
    over all images so far are accumulated, and the regression is solved after each task. The ridge is the power of ten
    with which four fifths of the new task's images best predict the rest.

    Attributes:
        gram: (M, M), sum of the outer products of the random features of all images so far; `None` before the first.
        sums: (M, C), sum of the random features of each class.
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
            ValueError: Classes have been fitted before, but their statistics are missing.
        """
        hidden, targets = self._prepare(features, labels)
        held_out = torch.arange(len(hidden), device=hidden.device) % 5 == 0
        with in_full_precision(hidden):
            self._add(hidden[~held_out], targets[~held_out])
            ridge = self._best_ridge(hidden[held_out], targets[held_out])
            self._add(hidden[held_out], targets[held_out])
            eigenvalues, vectors, sums = self._decompose()
            self.weight.copy_((vectors @ (sums / (eigenvalues + ridge)[:, None])).T.to(self.weight))

    @torch.no_grad()
    def accumulate(self, features: Tensor, labels: Tensor) -> None:
        """Adds a task's statistics without solving, which the next [`fit`] does for all tasks so far.

        Args:
            features: (n, D).
            labels: (n,), class ids.
        """
        hidden, targets = self._prepare(features, labels)
        with in_full_precision(hidden):
            self._add(hidden, targets)

    def _prepare(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Random features (n, M) and one-hot targets (n, C); the statistics begin at zero with the first task."""
        hidden = self._random_features(features)
        if self.gram is None or self.sums is None:
            if self.weight.any():
                raise ValueError(
                    "RanPAC cannot add classes to a saved model, which has no statistics: resume from the checkpoints "
                    "of the run, or fit all classes again"
                )
            self.gram, self.sums = hidden.new_zeros(hidden.shape[1], hidden.shape[1]), torch.zeros_like(self.weight.T)
        self.gram, self.sums = self.gram.to(hidden.device), self.sums.to(hidden.device)
        return hidden, F.one_hot(labels, self.sums.shape[1]).to(hidden.dtype)

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
        """Eigenvalues and eigenvectors of the Gram matrix, which solve every ridge at once, and the rotated sums."""
        assert self.gram is not None and self.sums is not None
        eigenvalues, vectors = torch.linalg.eigh(to_float64(self.gram))
        return eigenvalues.clamp_min(0), vectors, vectors.T @ to_float64(self.sums)

    def _best_ridge(self, hidden: Tensor, targets: Tensor) -> float:
        eigenvalues, vectors, sums = self._decompose()
        rotated, targets = to_float64(hidden) @ vectors, to_float64(targets)
        errors = [F.mse_loss(rotated @ (sums / (eigenvalues + ridge)[:, None]), targets) for ridge in self.ridges]
        return self.ridges[int(torch.stack(errors).argmin())]


CLASSIFIERS: dict[str, type[Classifier]] = {"ncm": NearestClassMean, "ranpac": RanPAC}
