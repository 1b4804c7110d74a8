"""What `load_image_dataset` returns."""

import numpy as np
from datasets import Dataset, DatasetDict

from .split_list import split_list


class Splits(DatasetDict):
    """The splits `train` and `test` with columns `image` and `label`, and how they came about.

    Args:
        splits: the two.
        unreadable: the images that were left out because they cannot be read, each with the reason.
        folders: folder of each class, if the images came in one split, which was divided here.
    """

    def __init__(self, splits: dict[str, Dataset], *, unreadable: dict[str, str], folders: list[str] | None):
        super().__init__(splits)
        self.unreadable = unreadable
        self.folders = folders

    def split_list(self, label_to_target: np.ndarray | None = None) -> str | None:
        """The file that lets the next run divide the images in the same way: its `split_file`.

        None if the images came divided, or have no file names.

        Args:
            label_to_target: place of each class in the order in which they come, (C,); that of the labels by default.
        """
        if self.folders is None:
            return None
        targets = np.arange(len(self.folders)) if label_to_target is None else label_to_target
        return split_list(self["train"], self["test"], self.folders, targets)
