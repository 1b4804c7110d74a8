"""Online accuracy of a model: its accuracy at any time of the stream, and the area under that curve."""

from collections.abc import Sequence
from typing import Any


class OnlineAccuracy:
    """Accuracy over the number of training images that a model has been shown, kept as integer counts.

    After n images of the stream, f(n) is the accuracy on the test images of all classes among those n images, with
    only these classes competing. It is measured after n_1 < n_2 < ... < n_k images, at the same distance within each
    task and at its end. The area under the curve is

        A_AUC = (1/n_k) sum over i of f(n_i) (n_i - n_{i-1}), with n_0 = 0,

    as in i-Blurry (arXiv 2110.10031, section 4) and Si-Blurry (arXiv 2308.09303), divided by the length of the
    stream, so that it is an average accuracy in %.

    Args:
        counts: Where it continues: (images shown, correct predictions, test images) of each measurement.
    """

    def __init__(self, counts: Sequence[Sequence[int]] = ()):
        self._counts: list[tuple[int, int, int]] = []
        for images, correct, total in counts:
            self.add(images, correct, total)

    def add(self, images: int, correct: int, total: int) -> None:
        """Adds a measurement: `correct` of `total` test images after `images` training images.

        Raises:
            ValueError: It is not later than the one before, or no share.
        """
        before = self._counts[-1][0] if self._counts else 0
        if images <= before:
            raise ValueError(f"online accuracy is measured after ever more images, got {images} after {before}")
        if not 0 <= correct <= total or not total:
            raise ValueError(f"correct must be between 0 and total ({total} > 0), got {correct}")
        self._counts.append((images, correct, total))

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(training images shown, accuracy in %) of each measurement."""
        return [(images, 100 * correct / total) for images, correct, total in self._counts]

    @property
    def area(self) -> float:
        """A_AUC in %.

        Raises:
            ValueError: Nothing was measured.
        """
        if not self._counts:
            raise ValueError("online accuracy has not been measured")
        total, before = 0.0, 0
        for images, accuracy in self.curve:
            total += accuracy * (images - before)
            before = images
        return total / before

    def summary(self) -> dict[str, Any]:
        """As results.json has it."""
        return {"a_auc": self.area, "online_accuracy": [list(point) for point in self.curve]}

    def counts(self) -> list[list[int]]:
        """For a checkpoint."""
        return [list(each) for each in self._counts]
