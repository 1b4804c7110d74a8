"""Distillation in closed form: a student's prediction of its teacher's features, and the classifier of these."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .classifiers import CLASSIFIERS, Classifier, calibration_factor
from .computed import NO_STATISTICS, Computed
from .configuration_prompt_vit import SCORES, PromptViTConfig
from .precision import in_full_precision
from .ridge import NAMES, RidgeSums


class FeaturePredictor(Computed):
    """Ridge regression from random features of the student's tokens to what the teacher's classifier reads.

    The student's features are standardized by the mean and deviation of the first images, projected to
    `analytic_width` = M fixed random directions, and rectified. Of all images so far, only sums are kept: for a
    given standardization and ridge, a stream gives the same weights as all images at once, in any order. No labels are
    needed.

    The projection is grouped as that of a grouped convolution: each direction reads one of `analytic_groups` = G equal
    parts of the features, such as one token, which takes a G-th of the weights and multiplications.

    Args:
        width: W, size of the student's features.
        num_random_features: M.
        teacher_width: W_t, size of the teacher's features.
        groups: G, a divisor of W.

    Raises:
        ValueError: G does not divide W.

    Attributes:
        sums: What is kept for further images; `None` before the first.
    """

    for_further_classes = NAMES
    mean: Tensor
    deviation: Tensor
    projection: Tensor
    weight: Tensor

    def __init__(self, width: int, num_random_features: int, teacher_width: int, groups: int = 1):
        super().__init__()
        if width % groups:
            raise ValueError(f"analytic_groups is {groups}, but must divide the {width} features of the student")
        self.groups = groups
        self.register_buffer("mean", torch.empty(width))
        self.register_buffer("deviation", torch.empty(width))
        shape = width // groups, -(-num_random_features // groups)  # a few are too many where G does not divide M
        self.register_buffer("projection", torch.empty(shape if groups == 1 else (groups, *shape)))
        self.register_buffer("weight", torch.empty(teacher_width, num_random_features))
        self.sums: RidgeSums | None = None
        self._weight_without: Tensor | None = None

    def init_weights(self) -> None:
        init.zeros_(self.mean)
        init.ones_(self.deviation)
        init.normal_(self.projection, std=self.projection.shape[-2] ** -0.5)
        init.zeros_(self.weight)
        self.sums = None

    @property
    def num_statistics(self) -> int:
        teacher_width, num_random_features = self.weight.shape
        return num_random_features * (num_random_features + teacher_width)

    def statistics(self) -> dict[str, Tensor]:
        return {} if self.sums is None else self.sums.tensors()

    def load_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        self.sums = RidgeSums.load(statistics, self.weight.shape[1], self.weight.shape[0])

    @torch.no_grad()
    def fit(self, features: Tensor, targets: Tensor, held_out: Tensor) -> None:
        """Adds images and solves the regression.

        Args:
            features: (n, W)
            targets: (n, W_t), the teacher's features of the same images.
            held_out: (n,), which of them choose the ridge, by squared error; they are added afterwards.

        Raises:
            ValueError: Images have been added before, but their sums are missing.
        """

        def negative_error(predicted: Tensor, expected: Tensor) -> Tensor:
            return -(predicted - expected.to(predicted)).square().sum()

        sums = self._begin(features)
        weight, self._weight_without = sums.fit(self._random_features, features, targets, negative_error, held_out)
        self.weight.copy_(weight)

    @torch.no_grad()
    def add(self, features: Tensor, targets: Tensor) -> None:
        """Adds images to the sums without solving the regression, which the next [`fit`] does."""
        self._begin(features).add(self._random_features, features, targets)

    def _begin(self, features: Tensor) -> RidgeSums:
        """The sums, which begin at zero with the first images."""
        if self.sums is None:
            if self.weight.any():
                raise ValueError(NO_STATISTICS.format("a student of closed-form distillation"))
            self._standardize(features.float())
            teacher_width, num_random_features = self.weight.shape
            self.sums = RidgeSums.zeros(num_random_features, teacher_width, features.device)
        self.sums = self.sums.to(features.device)
        return self.sums

    def _standardize(self, features: Tensor) -> None:
        """Takes mean and deviation of these features (n, W)."""
        self.mean.copy_(features.mean(0))
        deviation = features.std(0, correction=0)
        # What hardly varies in the first images may do so in later ones: it must not be blown up.
        deviation = deviation.clamp_min(deviation.median() / 10)
        self.deviation.copy_(torch.where(deviation > 0, deviation, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """(B, W) -> (B, W_t)"""
        return self._predict(features, self.weight)

    def held_out_predictions(self, features: Tensor) -> Tensor:
        """As `forward`, but as it was in the last [`fit`] before the held-out images were added."""
        assert self._weight_without is not None
        return self._predict(features, self._weight_without)

    def _predict(self, features: Tensor, weight: Tensor) -> Tensor:
        with in_full_precision(features):
            return self._random_features(features) @ weight.float().T

    def _random_features(self, features: Tensor) -> Tensor:
        with in_full_precision(features):
            standardized = (features.float() - self.mean.float()) / self.deviation.float()
            parts = standardized.unflatten(1, (self.groups, -1)).transpose(0, 1)  # (G, n, W / G)
            projected = (parts @ self.projection.float()).transpose(0, 1).flatten(1)
            return F.relu(projected[:, : self.weight.shape[1]])


class AnalyticHead(nn.Module):
    """The teacher's classifier on predictions of the teacher's features, and how its scores join the student's own.

    Attributes:
        predictor: Predicts the features that the teacher's classifier reads.
        classifier: The teacher's classifier. It is fitted on the teacher's own features.
        score_weights: (2,), of the student's own scores and of the teacher's classifier's.
        quality: Sums over the images held out so far: right predictions with the scores of `SCORES`, each among the
            classes seen at the time; negative log-likelihoods with these scores; cosine of predicted and true
            features, about the mean of the true; the images.
    """

    score_weights: Tensor
    quality: Tensor
    _weights = dict(zip(SCORES, ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0)), strict=True))

    def __init__(self, config: PromptViTConfig, width: int):
        super().__init__()
        assert config.teacher_width is not None
        groups = config.analytic_groups or 1
        self.predictor = FeaturePredictor(width, config.analytic_width, config.teacher_width, groups)
        self.classifier: Classifier = CLASSIFIERS[config.head](config, config.teacher_width)
        self.scores = config.analytic_scores
        self.register_buffer("score_weights", torch.empty(2))
        self.register_buffer("quality", torch.empty(2 * len(SCORES) + 2))

    def init_weights(self) -> None:
        init.copy_(self.score_weights, torch.tensor(self._weights[self.scores or SCORES[-1]]))
        init.zeros_(self.quality)

    @torch.no_grad()
    def fit(
        self,
        features: Tensor,
        teacher_features: Tensor,
        labels: Tensor,
        mirrored: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Adds a task's images.

        Args:
            features: (n, W), the student's.
            teacher_features: (n, W_t)
            labels: (n,), class ids.
            mirrored: Features and teacher's features of the mirrored images.
        """
        left_out = self.classifier.held_out(labels)
        if mirrored is None:
            self.predictor.fit(features, teacher_features, left_out)
        else:  # an image is held out with its mirror image
            pairs = zip((features, teacher_features, left_out), (*mirrored, left_out), strict=True)
            self.predictor.fit(*(torch.cat(pair) for pair in pairs))
        self.classifier.fit(teacher_features, labels)

    @torch.no_grad()
    def choose_scores(self, features: Tensor, teacher_features: Tensor, labels: Tensor, own_scores: Tensor) -> None:
        """Takes the scores under which the images held out so far are the most likely, each with its own factor.

        Likelihoods tell more of few images than the number of right predictions.

        Args:
            features, teacher_features, labels: As in [`fit`], of the held-out images.
            own_scores: (n, C_seen), of the student's own classifier.
        """
        if not len(labels):
            return
        predicted = self.predictor.held_out_predictions(features)
        theirs = self.classifier.held_out_scores(predicted, own_scores.shape[1])
        scores = [self._sum(weights, own_scores, theirs) for weights in self._weights.values()]
        rights = [(each.argmax(1) == labels).sum() for each in scores]
        scaled = [calibration_factor(each, labels) * each for each in scores]
        losses = [F.cross_entropy(each, labels, reduction="sum") for each in scaled]
        center = teacher_features.mean(0)
        cosine = F.cosine_similarity(predicted - center, teacher_features - center).sum()
        self.quality += torch.stack([*rights, *losses, cosine, cosine.new_tensor(len(labels))])
        if self.scores is None:
            best = int(self.quality[len(SCORES) : 2 * len(SCORES)].argmin())
            self.score_weights.copy_(torch.tensor(self._weights[SCORES[best]]))

    def forward(self, features: Tensor, own_scores: Tensor, *, held_out: bool = False) -> Tensor:
        """Scores to predict with, (B, C_seen).

        Args:
            features: (B, W)
            own_scores: (B, C_seen), of the student's own classifier.
            held_out: Whether they are held-out images of the newest task.
        """
        if self.scores == "own":  # chosen by the user, so the teacher's are not needed
            return own_scores
        num_classes = own_scores.shape[1]
        if held_out:
            theirs = self.classifier.held_out_scores(self.predictor.held_out_predictions(features), num_classes)
        else:
            theirs = self.classifier(self.predictor(features), num_classes)
        return self._sum(self.score_weights, own_scores, theirs)

    @staticmethod
    def _sum(weights: Tensor | tuple[float, float], own_scores: Tensor, teacher_scores: Tensor) -> Tensor:
        return weights[0] * own_scores + weights[1] * teacher_scores

    def report(self) -> dict[str, float | str]:
        """How well the teacher's features are predicted, and what the held-out images have chosen."""
        *sums, cosine, total = self.quality.tolist()
        chosen = next(name for name, weights in self._weights.items() if list(weights) == self.score_weights.tolist())
        accuracies = {f"held_out_accuracy_{name}": 100 * n / total for name, n in zip(SCORES, sums, strict=False)}
        return {"scores": chosen, "cosine": cosine / total, **accuracies} if total else {"scores": chosen}
