"""Which features of a network a computed classifier reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Readout:
    """Features of the last layers of a network, each as its heads would read it.

    They are one vector of W values for each image. Of each block of a transformer, the first of them first, they have
    the mean of the patch tokens (if read) and the class token, or what the network pools in place of one, both after
    the final norm. Of a network without such blocks they have the means of the maps of its stages; its last layer is
    what its own head pools. See [`Network`].

    Args:
        layers: Number of last layers; 1 reads what the heads read (LayUP, arXiv 2312.08888, reads more).
        patch_means: Whether to read the means of the patch tokens too.
    """

    layers: int = 1
    patch_means: bool = False


LAST = Readout()  # what the heads read
