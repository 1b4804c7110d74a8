"""Classifiers that are computed from features instead of trained by gradients, one for all classes seen.

All share one contract. `classifier.fit(features, labels)` adds features (n, W) with class ids (n,), of new classes or
of known ones. `classifier.add` adds them, too, or takes them back, and chooses nothing by them. `classifier.carry`
changes what was fitted as the features of a network that goes on learning change.
`classifier(features, num_classes)` maps features (B, W) to scores (B, num_classes) of the first classes, in float32
also under autocast. `init_weights` resets the classifier. Buffers hold what a prediction needs. Tensors that are only
needed to add classes are not part of the weights of a saved model: see `statistics` and `load_statistics`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import initialization as init

from .computed import NO_STATISTICS, Computed
from .configuration_prompt_vit import PromptViTConfig
from .drift import drift
from .precision import in_full_precision, to_float64
from .readout import LAST, Readout
from .ridge import NAMES, RIDGES, RidgeSums, held_out


class Classifier(Computed):
    """Base class of the computed classifiers.

    Args:
        config: Configuration of the model.
        width: W, size of the features.
    """

    @staticmethod
    def readout(config: PromptViTConfig) -> Readout:
        """Which tokens it reads."""
        return LAST

    def share_random(self, other: "Classifier") -> None:
        """Takes over what another one of its kind has drawn at random, so that both compute the same."""

    def fit(self, features: Tensor, labels: Tensor) -> None:
        raise NotImplementedError

    def add(self, features: Tensor, labels: Tensor, *, subtract: bool = False) -> None:
        """Adds images, or takes back images that were added; what [`fit`] has chosen, such as a ridge, stays."""
        raise NotImplementedError

    def carry(self, before: Tensor, after: Tensor, labels: Tensor) -> None:
        """Carries along what it keeps of earlier tasks, as the features have changed; the task itself is fitted then.

        Args:
            before, after: (n, W), features of the task's images before and after the network has learned the task.
            labels: (n,), their class ids.

        Raises:
            NotImplementedError: It cannot, as RanPAC: a map of its thousands of random features has more values than
                the images of a task can tell.
        """
        raise NotImplementedError

    def held_out(self, labels: Tensor) -> Tensor:
        """(n,) which of a task's images with class ids (n,) [`fit`] adds last, after choosing by them."""
        return held_out(labels)

    def held_out_scores(self, features: Tensor, num_classes: int) -> Tensor:
        """As `forward`, but as it was in the last [`fit`] before the held-out images were added.

        Of those images, these scores are as honest as of new ones. A classifier that cannot tell has those of
        `forward`, by which its probabilities get too confident.
        """
        return self(features, num_classes)


class NearestClassMean(Classifier):
    """Cosine similarity to the mean of each class's normalized features (SimpleCIL, arXiv 2303.07338, section 3.2).

    It is multiplied by `scale`, so that a softmax gives useful probabilities.
    """

    scale = 16.0
    sums: Tensor

    def __init__(self, config: PromptViTConfig, width: int):
        super().__init__()
        self.register_buffer("sums", torch.empty(config.num_classes, width))
        self._sums_without: Tensor | None = None

    def init_weights(self) -> None:
        init.zeros_(self.sums)

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        directions = F.normalize(features.float(), dim=1)
        left_out = self.held_out(labels)
        self.sums.index_add_(0, labels[~left_out], directions[~left_out])
        self._sums_without = self.sums.clone()
        self.sums.index_add_(0, labels[left_out], directions[left_out])

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, *, subtract: bool = False) -> None:
        self.sums.index_add_(0, labels, F.normalize(features.float(), dim=1), alpha=-1 if subtract else 1)

    @torch.no_grad()
    def carry(self, before: Tensor, after: Tensor, labels: Tensor) -> None:
        change = drift(F.normalize(before.float(), dim=1), F.normalize(after.float(), dim=1), labels)
        self.sums.copy_(to_float64(self.sums) @ change)

    def forward(self, features: Tensor, num_classes: int) -> Tensor:
        return self._scores(features, self.sums[:num_classes])

    def held_out_scores(self, features: Tensor, num_classes: int) -> Tensor:
        assert self._sums_without is not None
        return self._scores(features, self._sums_without[:num_classes])

    def _scores(self, features: Tensor, sums: Tensor) -> Tensor:
        with in_full_precision(features):
            directions = F.normalize(sums.float(), dim=1)
            return self.scale * F.normalize(features.float(), dim=1) @ directions.T


class RanPAC(Classifier):
    """Ridge regression from random features to classes (RanPAC, arXiv 2307.02251, sections 3 and 4).

    Features are projected to `ranpac_width` = M fixed random directions and rectified. Their second-order statistics
    over all images so far are accumulated, and the regression is solved after each task. A fifth of each task's images
    is held out to choose the ridge, a power of ten, and added afterwards.

    With `ranpac_ridge="accuracy"` it is the ridge that classified the most of the images held out so far correctly,
    each among the classes seen at its time. With `"error"`, the paper's rule, it has the least squared error on those
    of the newest task; on the bundled drawings this takes a ridge ten times too large.

    Attributes:
        sums: What is kept to add classes; `None` before the first.
    """

    for_further_classes = NAMES
    projection: Tensor
    weight: Tensor

    def __init__(self, config: PromptViTConfig, width: int):
        super().__init__()
        self.register_buffer("projection", torch.empty(width, config.ranpac_width))
        self.register_buffer("weight", torch.empty(config.num_classes, config.ranpac_width))
        self.by_error = config.ranpac_ridge == "error"
        self.sums: RidgeSums | None = None
        self._weight_without: Tensor | None = None

    @staticmethod
    def readout(config: PromptViTConfig) -> Readout:
        return Readout(config.ranpac_layers, config.ranpac_patch_means)

    def init_weights(self) -> None:
        init.normal_(self.projection)
        init.zeros_(self.weight)
        self.sums = None

    @torch.no_grad()
    def share_random(self, other: Classifier) -> None:
        assert isinstance(other, RanPAC)
        self.projection.copy_(other.projection)

    @property
    def num_statistics(self) -> int:
        num_classes, num_random_features = self.weight.shape
        return num_random_features * (num_random_features + num_classes) + len(RIDGES)

    def statistics(self) -> dict[str, Tensor]:
        return {} if self.sums is None else self.sums.tensors()

    def load_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        self.sums = RidgeSums.load(statistics, self.weight.shape[1], self.weight.shape[0])

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        """See [`Classifier`].

        Raises:
            ValueError: Classes have been fitted before, but their statistics are missing.
        """
        sums, targets = self._begin(features, labels)
        seen = (sums.sums != 0).any(0).index_fill(0, labels, True)

        def right(scores: Tensor, expected: Tensor) -> Tensor:
            best = scores.masked_fill(~seen.to(scores.device), -torch.inf).argmax(1)
            return expected.to(scores.device).gather(1, best[:, None]).sum()

        def negative_error(scores: Tensor, expected: Tensor) -> Tensor:
            return -(scores - expected.to(scores)).square().sum()

        if self.by_error:
            sums.merits.zero_()
        merit = negative_error if self.by_error else right
        left_out = self.held_out(labels)
        weight, self._weight_without = sums.fit(self._random_features, features, targets, merit, left_out)
        self.weight.copy_(weight)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, *, subtract: bool = False) -> None:
        sums, targets = self._begin(features, labels)
        sums.add(self._random_features, features, targets, subtract=subtract)
        self.weight.copy_(sums.solve(sums.best_ridge))

    def images_a_class(self, features: Tensor, num_classes: int) -> float:
        """About how many images of each of so many classes it was fitted on, if these (n, W) are of their kind."""
        assert self.sums is not None
        length = self._random_features(features).square().sum(1).mean()
        return (self.sums.gram.diagonal().sum() / length / num_classes).item()

    def held_out(self, labels: Tensor) -> Tensor:
        """By the paper's rule every fifth image of the task, otherwise every fifth image of each of its classes."""
        if self.by_error:
            return torch.arange(len(labels), device=labels.device) % 5 == 0
        return super().held_out(labels)

    def _begin(self, features: Tensor, labels: Tensor) -> tuple[RidgeSums, Tensor]:
        """The sums, which begin at zero with the first task, and one-hot targets (n, C)."""
        num_classes, width = self.weight.shape
        if self.sums is None:
            if self.weight.any():
                raise ValueError(NO_STATISTICS.format("RanPAC"))
            self.sums = RidgeSums.zeros(width, num_classes, features.device)
        self.sums = self.sums.to(features.device)
        return self.sums, F.one_hot(labels, num_classes).float()

    def forward(self, features: Tensor, num_classes: int) -> Tensor:
        return self._scores(features, self.weight[:num_classes])

    def held_out_scores(self, features: Tensor, num_classes: int) -> Tensor:
        assert self._weight_without is not None
        return self._scores(features, self._weight_without[:num_classes])

    def _scores(self, features: Tensor, weight: Tensor) -> Tensor:
        with in_full_precision(features):
            return self._random_features(features) @ weight.float().T

    def _random_features(self, features: Tensor) -> Tensor:
        with in_full_precision(features):
            return F.relu(features.float() @ self.projection.float())


def calibration_factor(scores: Tensor, labels: Tensor) -> float:
    """The factor with which the softmax of scores (n, C) fits labels (n,) best, by the negative log-likelihood.

    It is positive, so it changes no prediction (temperature scaling, arXiv 1706.04599, section 4.2).
    """
    factors = [2 ** (k / 8) for k in range(-32, 73)]  # from 1/16 to 512
    losses = [F.cross_entropy(factor * scores, labels) for factor in factors]
    return factors[int(torch.stack(losses).argmin())]


CLASSIFIERS: dict[str, type[Classifier]] = {"ncm": NearestClassMean, "ranpac": RanPAC}
