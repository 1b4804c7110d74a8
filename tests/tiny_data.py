"""Small data sets, made on the spot."""

import datasets
import numpy as np
import PIL.Image


def noise(seed=0, size=(28, 28), mode="L"):
    """A PIL image of uniform noise; `size` is (width, height)."""
    channels = PIL.Image.new(mode, (1, 1)).getbands()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(channels)), dtype=np.uint8)
    return PIL.Image.fromarray(pixels.squeeze(-1) if len(channels) == 1 else pixels, mode)


def save_images(root, counts):
    """Write `counts[class]` grey noise images as root/<class>/<number>.png."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            noise(number).save(root / name / f"{number}.png")
    return root


def labelled(labels, names, images=None):
    """A data set of these labels; without `images` all show the same."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    rows = {"image": images or [noise()] * len(labels), "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def cifar_like():
    """CIFAR-100 in small as the Hub has it: two columns of classes; and one more of images."""
    features = datasets.Features(
        img=datasets.Image(),
        fine_label=datasets.ClassLabel(names=["x", "y"]),
        coarse=datasets.ClassLabel(names=["z"]),
        mask=datasets.Image(),
    )
    rows = {"img": [noise(1)] * 10, "fine_label": [0, 1] * 5, "coarse": [0] * 10, "mask": [noise(2)] * 10}
    return datasets.Dataset.from_dict(rows, features=features)


def counts(dataset):
    names = dataset.features["label"].names
    return dict(zip(names, np.bincount(dataset["label"][:], minlength=len(names)).tolist(), strict=True))
