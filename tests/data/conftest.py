"""Small data sets made on the spot; what `datasets` caches stays out of the user's cache."""

import datasets
import numpy as np
import PIL.Image
import pytest

from cdl_hf.data import load_image_dataset


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
        yield


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


@pytest.fixture(scope="session")
def drawings():
    """Some of the bundled drawings as PIL images."""
    return load_image_dataset("quickdraw100")["test"].select(range(20))["image"][:]


@pytest.fixture
def stream_data():
    """Makes splits of `num_classes` classes c0, c1, ... with interleaved rows, train and test images a class."""

    def make(num_classes=10, train=4, test=2):
        names = [f"c{label}" for label in range(num_classes)]
        return datasets.DatasetDict(
            train=labelled(list(range(num_classes)) * train, names),
            test=labelled(list(range(num_classes)) * test, names),
        )

    return make
