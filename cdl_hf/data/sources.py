"""Named data sets, local folders and files, and Hub data sets, all read into one form: `image` and `label`."""

import difflib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image

from . import columns
from .choose_splits import choose_test, choose_train
from .cifar100 import is_cifar100
from .class_labels import with_class_labels, with_labels, without_empty_classes
from .dataset_error import DatasetError, listed, reason
from .hub import read_hub
from .image_folder import check_name
from .imagenet_r import add_rendition, is_imagenet_r, readable_names
from .labels import rank_in_class, read_labels, share
from .local import read_local
from .pixel_arrays import encode_arrays, is_array
from .repeats import without_repeats
from .split_list import read_split_list
from .splits import Splits
from .tables import Wanted
from .unreadable import find_unreadable
from .views import image_paths, select_rows


@dataclass(frozen=True)
class Source:
    """Where a named data set lives (a path or a Hub name), and which of its columns are meant.

    Attributes:
        local: the folder that people have of it, if it is from the Hub.
        is_verified: whether all its images are known to be readable.
        license: of the images: what their publishers say of it, and the attribution that they ask for.
    """

    location: str
    image_column: str | None = None
    label_column: str | None = None
    local: str = ""
    is_verified: bool = False
    license: str | None = None

    @property
    def hub_name(self) -> str | None:
        """Its repository on the Hub, if it is nothing of this machine."""
        return None if os.path.exists(os.path.expanduser(self.location)) else self.location


# Of CIFAR-100 the publishers' page has only the wish to be cited, no license, and the data set's own repository on the
# Hub (uoft-cs/cifar100) is tagged `license: unknown`. Of ImageNet-R the authors' page, the README of their repository,
# says nothing of rights to the pictures, nor who made them; the copy on the Hub (axiong/imagenet-r) is tagged `mit`.
SOURCES = {
    "quickdraw100": Source(
        str(Path(__file__).parents[1] / "assets" / "quickdraw100"),
        is_verified=True,
        license="drawings from [Quick, Draw!](https://github.com/googlecreativelab/quickdraw-dataset) by Google, "
        "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)",
    ),
    "cifar100": Source(
        *("uoft-cs/cifar100", "img", "fine_label", "cifar-100-python"),
        is_verified=True,
        license="the publishers of [CIFAR-100](https://www.cs.toronto.edu/~kriz/cifar.html) name no license; they ask "
        "to cite their report (Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009)",
    ),
    "imagenet_r": Source(
        *("axiong/imagenet-r", "image", "wnid", "imagenet-r"),
        license="the authors of [ImageNet-R](https://github.com/hendrycks/imagenet-r) name none for the pictures, "
        "which are other people's works; the [copy on the Hub](https://huggingface.co/datasets/axiong/imagenet-r) is "
        "marked MIT. They ask to cite their paper (Hendrycks et al., *The Many Faces of Robustness*, 2021)",
    ),
}

MANY = 100  # unreadable images that a message names


def source_of(name_or_path: str) -> Source:
    """What is known of a data set: of a named one also by its name on the Hub or the folder that people have of it."""
    folder = Path(name_or_path).name
    known = (s for s in SOURCES.values() if name_or_path == s.location or (s.local and s.local == folder))
    return SOURCES.get(name_or_path) or next(known, Source(name_or_path))


def load_image_dataset(
    name_or_path: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    test_fraction: float | None = 0.2,
    split_file: str | None = None,
    skip_unreadable_images: bool = False,
    drop_empty_classes: bool = False,
    seed: int = 0,
) -> Splits:
    """Load a data set as splits `train` and `test` with columns `image` (RGB) and `label` (ClassLabel).

    Splits are known by their names (`split_names`). Without a test split, or where that has no labels, the validation
    split is taken for it; without either, a list of files says what to train on, or a share of every class is held
    out. Images are opened when they are used, upright, as `decode` tells; that they can be, is made sure of here.
    CIFAR-100 and ImageNet-R are known by what their folders hold; the classes of ImageNet-R get readable names, its
    images a column `rendition`.

    Args:
        name_or_path: a key of `SOURCES`; a folder of images, `<class>/...`, or `train/<class>/...` beside
            `test/<class>/...`, or with a table of their classes (`metadata.csv` or another CSV or JSON file); the
            folder `cifar-100-python`; a Parquet, Arrow, CSV or JSON file, or a folder of them; a `save_to_disk`
            folder; or a Hub data set, `owner/name`.
        image_column: column of the images. Default: the only image column, or the one with a usual name.
        label_column: column of the classes: a ClassLabel, strings, integers, whole floats or truth values. Default:
            found in the same way.
        train_split: name of the split, or of its folder, to learn from. Default: found by its name.
        test_split: the same of the one to test on; where it is `train_split`, a share of that is held out.
        test_fraction: share of each class to hold out, if there is no test split; at least one image of a class is
            held out and at least one stays (a class of one image stays whole). None: all are for the test, and there
            is no split `train`.
        split_file: list of the training images, in the form of `split_list`; all others are for the test.
        skip_unreadable_images: leave out what cannot be read, with a warning, instead of stopping.
        drop_empty_classes: leave out the classes of a ClassLabel of which there is no image in either split.
        seed: of the held-out choice.

    Raises:
        DatasetError: nothing of that name, no images, no such column, or more than one candidate for it; images that
            cannot be read; a list that does not fit.
    """
    name = str(name_or_path)
    source = SOURCES.get(name) or Source(name)
    _warn_of_a_folder_of_that_name(name, source)
    try:
        splits = _read(source.location, Wanted(image_column, label_column), train_split, test_split)
    except DatasetError as error:
        if not source.local:
            raise
        raise DatasetError(f"{error} Such as --dataset path/to/{source.local}.") from error
    train = choose_train(splits, name, train_split)
    image = columns.image_column(splits[train].features, image_column or source.image_column, name)
    label = columns.label_column(splits[train].features, label_column or source.label_column, name)
    if image == label:
        raise DatasetError(f"'{name}' has one column '{image}' for images and labels; name two that differ.")
    test = choose_test(splits, name, train, test_split, (image, label))
    chosen = {"train": splits[train]} | ({"test": splits[test]} if test is not None else {})
    splits = {split: _in_one_form(dataset, image, label, split, name) for split, dataset in chosen.items()}
    splits = without_repeats(with_class_labels(splits, name), name)
    folders = splits["train"].features["label"].names
    if is_imagenet_r(folders, name):
        splits = {split: _as_imagenet_r(dataset) for split, dataset in splits.items()}
    is_divided = "test" in splits
    if split_file:
        if is_divided:
            raise DatasetError(f"'{name}' has a test split of its own; leave split_file out.")
        splits = _by_list(splits["train"], split_file, folders, name)
    unreadable = {}
    if not source.is_verified and not is_cifar100(Path(os.path.expanduser(name))):
        splits, unreadable = _readable(splits, f"{source.location} {image}", name, skip_unreadable_images)
    if drop_empty_classes:
        splits, kept = without_empty_classes(splits)
        folders = [folders[label] for label in kept]
    if "test" not in splits:
        whole = splits["train"]
        splits = {"test": whole} if test_fraction is None else _hold_out(whole, test_fraction, seed)
    for dataset in splits.values():
        dataset.info.dataset_name = name
    return Splits(splits, unreadable=unreadable, folders=None if is_divided or "train" not in splits else folders)


def _warn_of_a_folder_of_that_name(name: str, source: Source) -> None:
    """Of a name and a folder that is called the same, only one is meant."""
    if name not in SOURCES:
        return
    if Path(name).exists():
        warnings.warn(
            f"'{name}' is taken for the known data set of that name, not for what is called so in this folder; for "
            f"that, write ./{name}",
            stacklevel=3,
        )
    elif source.hub_name is None and not Path(source.location).is_absolute():
        warnings.warn(
            f"'{name}' is read from the folder {source.location} here, not from the Hub's data set of that name.",
            stacklevel=3,
        )


def _read(location: str, wanted: Wanted, train_split: str | None, test_split: str | None) -> DatasetDict:
    path = Path(os.path.expanduser(location)).absolute()
    check_name(str(path))
    if not location.strip():
        raise DatasetError("The data set has no name; give a folder, a file, or a name on the Hub.")
    if os.path.exists(path):
        return read_local(path, wanted, train_split, test_split)
    owner, _, name = location.partition("/")
    if owner in ("", ".", "..", "~") or not name or "/" in name:
        near = difflib.get_close_matches(location, SOURCES, cutoff=0.5)
        names = f"did you mean {' or '.join(near)}?" if near else f"the named ones are {', '.join(SOURCES)}."
        raise DatasetError(
            f"'{location}' is no file or folder here and no named data set; {names} "
            "A data set on the Hub is given as owner/name."
        )
    return read_hub(location)


def _in_one_form(dataset: Dataset, image: str, label: str, split: str, name: str) -> Dataset:
    if not len(dataset):
        raise DatasetError(f"'{name}' has no images in its {split} split.")
    dataset = dataset.select_columns([image, label])
    # by way of names that the other column cannot have
    for old, new in ((image, " image"), (label, " label"), (" image", "image"), (" label", "label")):
        dataset = dataset.rename_column(old, new)
    try:
        if is_array(dataset.features["image"]):
            dataset = encode_arrays(dataset, "image")
        return dataset.cast_column("image", Image(mode="RGB"))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's, of casts that it does not have
        raise DatasetError(
            f"'{name}' has in its column '{image}' what is no images ({reason(error)}); choose it with image_column."
        ) from error


def _hold_out(dataset: Dataset, fraction: float, seed: int) -> dict[str, Dataset]:
    if not 0 < fraction < 1:
        raise DatasetError(f"test_fraction is {fraction}; expected a share between 0 and 1.")
    labels = read_labels(dataset)
    held_out = rank_in_class(labels, np.random.default_rng(seed)) < share(fraction, np.bincount(labels))[labels]
    return {
        "train": select_rows(dataset, np.flatnonzero(~held_out)),
        "test": select_rows(dataset, np.flatnonzero(held_out)),
    }


def _by_list(dataset: Dataset, file: str, folders: list[str], name: str) -> dict[str, Dataset]:
    in_list = read_split_list(file, dataset, folders, name)
    if 2 * in_list.sum() < len(in_list):
        warnings.warn(
            f"'{file}' lists {in_list.sum():,} of {len(in_list):,} images to train on; all others are for the test. "
            "Is it the list of the test images?",
            stacklevel=3,
        )
    return {
        "train": select_rows(dataset, np.flatnonzero(in_list)),
        "test": select_rows(dataset, np.flatnonzero(~in_list)),
    }


def _readable(
    splits: dict[str, Dataset], what: str, name: str, skip: bool
) -> tuple[dict[str, Dataset], dict[str, str]]:
    """The splits without the images that cannot be read, and these with the reasons."""
    unreadable, readable = {}, {}
    for split, dataset in splits.items():
        found = find_unreadable(dataset, what)
        paths = image_paths(dataset)
        unreadable |= {paths[row].as_py() or f"{split}, row {row}": reason for row, reason in found.items()}
        rows = np.setdiff1d(np.arange(len(dataset)), list(found)) if found else None
        readable[split] = dataset if rows is None else select_rows(dataset, rows)
    if unreadable:
        some = [f"  {file}: {reason}" for file, reason in list(unreadable.items())[:MANY]]
        some += [f"  and {len(unreadable) - MANY:,} more"] if len(unreadable) > MANY else []
        total = sum(map(len, splits.values()))
        message = f"{len(unreadable):,} of the {total:,} images of '{name}' cannot be read:\n" + ";\n".join(some) + "."
        if lost := sorted(_classes_in(splits) - _classes_in(readable)):
            message += f"\nOf these classes there is no other image: {listed(lost)}."
        if not skip:
            raise DatasetError(f"{message}\nRepair or remove them, or leave them out with skip_unreadable_images.")
        warnings.warn(f"{message}\nThey are left out.", stacklevel=3)
    return readable, unreadable


def _classes_in(splits: dict[str, Dataset]) -> set[str]:
    """Names of the classes that have images."""
    return {
        dataset.features["label"].names[label]
        for dataset in splits.values()
        for label in np.unique(dataset.select_columns(["label"]).with_format("arrow")["label"][:].drop_null())
        if label >= 0
    }


def _as_imagenet_r(dataset: Dataset) -> Dataset:
    names = readable_names(dataset.features["label"].names)
    labels = dataset.with_format("arrow")["label"][:]
    return add_rendition(with_labels(dataset, labels, ClassLabel(names=names)))
