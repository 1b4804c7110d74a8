"""Ridge regression from sums over images, with a ridge chosen by images that are held out of them."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .computed import check_statistic
from .precision import in_full_precision, to_float64

RIDGES = [10.0**k for k in range(-8, 9)]
ROWS = 1024  # inputs that are held as regressors at a time: at a width of 10,000 they take 40 MB
NAMES = ("gram", "sums", "merits")  # of the tensors of `RidgeSums`


def held_out(labels: Tensor) -> Tensor:
    """(n,) which of a task's images with class ids (n,) are held out when the ridge is chosen: every fifth of a class.

    Of a class with two to four images it is the last; an only image is not held out. The order in the class decides,
    whatever the order of the classes.
    """
    in_classes, order = labels.sort(stable=True)
    first = torch.searchsorted(in_classes, in_classes)
    counts = torch.searchsorted(in_classes, in_classes, right=True) - first
    ranks = torch.arange(len(labels), device=labels.device) - first
    chosen = (ranks % 5 == 4) | ((counts > 1) & (counts < 5) & (ranks == counts - 1))
    return torch.zeros_like(labels, dtype=torch.bool).index_copy(0, order, chosen)


class RidgeSums:
    """Sums over all images so far, from which the weights (K, M) of a ridge regression follow.

    Args:
        gram: (M, M), sum of the outer products of the regressors.
        sums: (M, K), sum of the outer products of regressors and targets.
        merits: (len(RIDGES),) in float64 on the CPU, how well each ridge predicted the images held out so far; the
            largest is best.
    """

    def __init__(self, gram: Tensor, sums: Tensor, merits: Tensor):
        self.gram, self.sums, self.merits = gram, sums, merits

    @classmethod
    def zeros(cls, width: int, targets: int, device: torch.device) -> "RidgeSums":
        gram, sums = torch.zeros(width, width, device=device), torch.zeros(width, targets, device=device)
        return cls(gram, sums, torch.zeros(len(RIDGES), dtype=torch.float64))

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], width: int, targets: int) -> "RidgeSums | None":
        """From the tensors named by `NAMES`, or `None` without them; checkpoints of version 0.1.0 have no merits.

        Raises:
            ValueError: One is missing, not finite, or not of the shape of M = `width` regressors and K = `targets`.
        """
        if not tensors:
            return None
        tensors = {"merits": torch.zeros(len(RIDGES), dtype=torch.float64), **tensors}
        shapes = {"gram": (width, width), "sums": (width, targets), "merits": (len(RIDGES),)}
        for name, shape in shapes.items():
            check_statistic(name, tensors.get(name), shape, torch.float64 if name == "merits" else torch.float32)
        return cls(*(tensors[name].clone() for name in NAMES))

    def to(self, device: torch.device) -> "RidgeSums":
        return RidgeSums(self.gram.to(device), self.sums.to(device), self.merits)

    def of_targets(self, kept: list[int], count: int) -> "RidgeSums":
        """The same images with other targets: those `kept` come first, and up to `count` new ones were always 0."""
        sums = self.sums.new_zeros(len(self.sums), count)
        sums[:, : len(kept)] = self.sums[:, kept]
        return RidgeSums(self.gram, sums, self.merits)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors on the CPU, as [`load`] takes them."""
        return {name: getattr(self, name).cpu() for name in NAMES}

    def fit(
        self,
        regressors: Callable[[Tensor], Tensor],
        inputs: Tensor,
        targets: Tensor,
        merit: Callable[[Tensor, Tensor], Tensor],
        held_out: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Adds images, and solves the regression with the ridge that has the most merit.

        Each ridge earns its merit on the held-out images before these are added. The matrix is decomposed into its
        eigenvectors once, which solves it for every ridge.

        Args:
            regressors: From inputs (b, W) to their regressors (b, M).
            inputs: (n, W).
            targets: (n, K).
            merit: From predictions (b, K) in float64 and targets (b, K) to a sum over the images.
            held_out: (n,), which images the ridge is chosen by.

        Returns:
            The weights (K, M) with all images, and the weights without those held out.
        """
        self.add(regressors, inputs[~held_out], targets[~held_out])
        eigenvalues, vectors = torch.linalg.eigh(to_float64(self.gram))
        eigenvalues, rotated_sums = eigenvalues.clamp_min(0), vectors.T @ to_float64(self.sums)

        def rotated_weights(ridge: float) -> Tensor:
            return rotated_sums / (eigenvalues + max(ridge, self.rounding))[:, None]

        for x, y in zip(inputs[held_out].split(ROWS), targets[held_out].split(ROWS), strict=True):
            rotated = to_float64(regressors(x)) @ vectors
            earned = [merit(rotated @ rotated_weights(ridge), y) for ridge in RIDGES]
            self.merits += torch.stack(earned).cpu().double()
        ridge = self.best_ridge
        without = (vectors @ rotated_weights(ridge)).T.to(self.gram)
        del vectors  # as large as the sums in float64, which solving needs again
        self.add(regressors, inputs[held_out], targets[held_out])
        return self.solve(ridge), without

    @property
    def best_ridge(self) -> float:
        """The ridge with the most merit, of equals the largest; where all are equal, as without held-out images, the
        one nearest to a hundredth of the mean eigenvalue."""
        if self.merits.min() == self.merits.max():
            usual = max(self.gram.diagonal().mean().item() / 100, RIDGES[0])
            return min(RIDGES, key=lambda ridge: abs(math.log(ridge / usual)))
        return max(zip(self.merits.tolist(), RIDGES, strict=True))[1]

    @property
    def rounding(self) -> float:
        """About how far rounding moves the eigenvalues of the Gram matrix. A smaller ridge counts as this large: with
        it, the weights would mostly be those of the rounding, and so of the machine."""
        return torch.finfo(self.gram.dtype).eps * self.gram.trace().item()

    def add(
        self, regressors: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor, *, subtract: bool = False
    ) -> None:
        """Adds images, or subtracts those that were added; the other arguments are those of [`fit`]."""
        sign = -1 if subtract else 1
        with in_full_precision(self.gram):
            for x, y in zip(inputs.split(ROWS), targets.split(ROWS), strict=True):
                hidden = regressors(x)
                self.gram.addmm_(hidden.T, hidden, alpha=sign)
                self.sums.addmm_(hidden.T, y.to(hidden), alpha=sign)

    def solve(self, ridge: float) -> Tensor:
        """Weights (K, M) with this ridge, from all images so far."""
        gram, sums = to_float64(self.gram), to_float64(self.sums)
        ridge = max(ridge, self.rounding)
        gram.diagonal().add_(ridge)
        factor, failures = torch.linalg.cholesky_ex(gram)
        if failures.any():  # rounding has moved an eigenvalue further: negative ones count as zero
            eigenvalues, vectors = torch.linalg.eigh(gram)
            solution = vectors @ ((vectors.T @ sums) / eigenvalues.clamp_min(ridge)[:, None])
        else:
            solution = torch.cholesky_solve(sums, factor)
        return solution.T.to(self.gram)
