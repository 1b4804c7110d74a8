"""Batches of images as models take them."""

from collections.abc import Iterator

from torch.utils.data import DataLoader

from .images import TaskImages


class Batches:
    """A loader's batches, whose `pixels` have become `pixel_values` (B, 3, H, W) on the device to which they came.

    Loader processes pass bytes on, a quarter of what floats would be: on few cores that is most of their work.

    Args:
        loader: Of `images`, as Accelerate has prepared it or on the CPU.
        images: Tell how pixels are normalised.
    """

    def __init__(self, loader: DataLoader, images: TaskImages):
        self.loader, self.normalize = loader, images.transform.normalize

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        for batch in self.loader:
            pixels = batch.pop("pixels")
            yield {"pixel_values": self.normalize(pixels), **batch}
