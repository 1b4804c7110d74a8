"""Image files without labels."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import PIL.Image
import torch

from .dataset_error import DatasetError
from .decoding import open_image
from .image_search import find_images
from .unreadable import FAILURES, explain


def find_image_files(paths: Iterable[str | Path]) -> list[str]:
    """The files themselves, and of folders the images in them and below, by their suffix, sorted; links are followed.

    Raises:
        DatasetError: There is no such file or folder, or no image in it.
    """
    files = []
    for path in (Path(os.path.expanduser(path)) for path in paths):
        if path.is_dir():
            found = sorted(find_images(path, bare=False))
            if not found:
                raise DatasetError(f"'{path}' holds no files whose names are those of images.")
            files += found
        elif os.path.exists(path):
            files.append(str(path))
        else:
            raise DatasetError(f"there is no file or folder '{path}'.")
    return files


class ImageFiles(torch.utils.data.Dataset):
    """Samples (file, tensor (3, H, W), None), or (file, None, reason) where the file cannot be read.

    Args:
        files: paths.
        transform: PIL image -> tensor.
    """

    def __init__(self, files: list[str], transform: Callable[[PIL.Image.Image], torch.Tensor]):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor | None, str | None]:
        file = self.files[index]
        try:
            image = open_image(file)
        except FAILURES as error:
            return file, None, explain(error)
        return file, self.transform(image), None
