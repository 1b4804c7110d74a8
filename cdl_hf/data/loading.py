"""Loading a data set from any source into one form: splits `train` and `test`, columns `image` and `label`."""

import os
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image

from .cifar100 import is_cifar100
from .columns import ColumnNames, encode_arrays, find_image_column, find_label_column, is_array
from .decoding import find_unreadable
from .domains import DOMAIN, with_domains
from .drawing_styles import STYLE, with_styles
from .errors import DatasetError, listed, reason
from .imagenet_r import RENDITION, add_rendition, is_imagenet_r, readable_names
from .labels import rank_in_class, read_labels, stratified_sizes, with_class_labels, with_labels, without_empty_classes
from .sources import DATASETS, DatasetSpec, read_source
from .splits import Splits, choose_test, choose_train, read_split_list
from .views import image_paths, in_files, select_rows

MAX_LISTED = 100  # unreadable images in a message


def load_image_dataset(
    name_or_path: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    domain_column: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    test_fraction: float | None = 0.2,
    split_file: str | None = None,
    skip_unreadable_images: bool = False,
    drop_empty_classes: bool = False,
    seed: int = 0,
) -> Splits:
    """Load a data set as splits `train` and `test` with columns `image` (RGB) and `label` (ClassLabel).

    Splits are recognized by their names (see `splits.py`). If there is no test split, or it has no labels, the
    validation split is used for testing; without either, a list of files selects the training images, or a fraction of
    every class is held out. Images are decoded when they are used (see `decode`); this function checks that all of
    them can be. CIFAR-100 and ImageNet-R are recognized by the content of their folders; the classes of ImageNet-R get
    readable names, and its images a column `rendition`.

    With `domain_column` there is a third column, `domain` (ClassLabel), by which [`TaskStream`] makes its tasks.

    Args:
        name_or_path: a key of `DATASETS`; a folder of images, `<class>/...`, or `train/<class>/...` beside
            `test/<class>/...`, or with a table of their classes (`metadata.csv` or another CSV or JSON file); the
            folder `cifar-100-python`; a Parquet, Arrow, CSV or JSON file, or a folder of them; a `save_to_disk`
            folder; or a data set on the Hub, `owner/name`.
        image_column: column of the images. Default: the only image column, or the one with a usual name.
        label_column: column of the classes: a ClassLabel, strings, integers, whole floats or booleans. Default: found
            in the same way.
        domain_column: column of the domains, of the same types. For a folder of images without such a table it names
            the folders above those of the classes: `<domain>/<class>/...` or `train/<domain>/<class>/...`. ImageNet-R
            has `rendition`, and the bundled drawings have `style`, which is made on the fly (see `drawing_styles.py`).
        train_split: name of the split to train on, or of its folder. Default: found by its name.
        test_split: name of the split to test on. If it is `train_split`, a fraction of that split is held out.
        test_fraction: fraction of each class to hold out if there is no test split. At least one image of a class is
            held out and at least one is kept; a class of one image is kept. None: all images are test images, and
            there is no split `train`.
        split_file: list of the training images in the format of `splits.py`; all others are test images.
        skip_unreadable_images: leave out images that cannot be read, with a warning, instead of raising an error.
        drop_empty_classes: leave out classes of a ClassLabel that have no image in either split.
        seed: seed of the held-out choice.

    Raises:
        DatasetError: there is no data set of that name, it has no images, or no column or several that can be meant;
            images cannot be read; or a list does not fit the data set.
    """
    name = str(name_or_path)
    arguments = {
        "dataset": name,
        "image_column": image_column,
        "label_column": label_column,
        "domain_column": domain_column,
        "train_split": train_split,
        "test_split": test_split,
        "test_fraction": test_fraction,
        "split_file": split_file,
        "skip_unreadable_images": skip_unreadable_images,
        "drop_empty_classes": drop_empty_classes,
    }
    spec = DATASETS.get(name) or DatasetSpec(name)
    _warn_of_a_folder_of_that_name(name, spec)
    try:
        splits = read_source(
            spec.location, ColumnNames(image_column, label_column, domain_column), train_split, test_split
        )
    except DatasetError as error:
        if not spec.local:
            raise
        raise DatasetError(f"{error}, such as --dataset path/to/{spec.local}") from error
    train = choose_train(splits, name, train_split)
    image = find_image_column(splits[train].features, image_column or spec.image_column, name)
    label = find_label_column(splits[train].features, label_column or spec.label_column, name)
    if image == label:
        raise DatasetError(f"{name!r} has one column {image!r} for images and labels; choose two different ones")
    if domain_column in (image, label):
        raise DatasetError(
            f"domain_column={domain_column} is the column of the images or labels of {name!r}; choose another one"
        )
    columns = list(splits[train].features)
    test = choose_test(splits, name, train, test_split, (image, label))
    chosen = {"train": splits[train]} | ({"test": splits[test]} if test is not None else {})
    splits = {
        split: _in_one_form(dataset, image, label, domain_column, split, name) for split, dataset in chosen.items()
    }
    splits = without_repeats(with_class_labels(splits, name), name)
    folders = splits["train"].features["label"].names
    if is_imagenet_r(folders, name):
        splits = {split: _with_imagenet_r_names(dataset, domain_column) for split, dataset in splits.items()}
    if spec.is_drawings and domain_column == STYLE:
        splits = {split: with_styles(dataset) for split, dataset in splits.items()}
    if domain_column is not None:
        splits = with_domains(splits, name, domain_column, columns)
    is_divided = "test" in splits
    if split_file:
        if is_divided:
            raise DatasetError(f"{name!r} has a test split of its own; do not pass split_file")
        splits = _by_list(splits["train"], split_file, folders, name)
    unreadable: dict[str, str] = {}
    if not spec.is_verified and not is_cifar100(Path(os.path.expanduser(name))):
        splits, unreadable = _readable(splits, f"{spec.location} {image}", name, skip_unreadable_images)
    if drop_empty_classes:
        splits, kept = without_empty_classes(splits)
        folders = [folders[label] for label in kept]
    if "test" not in splits:
        whole = splits["train"]
        splits = {"test": whole} if test_fraction is None else _hold_out(whole, test_fraction, seed)
    for dataset in splits.values():
        dataset.info.dataset_name = name
    folders = None if is_divided or "train" not in splits else folders
    return Splits(splits, unreadable=unreadable, folders=folders, arguments=arguments)


def _warn_of_a_folder_of_that_name(name: str, spec: DatasetSpec) -> None:
    """Warns if a named data set and a local folder have the same name, as only one of them is loaded."""
    if name not in DATASETS:
        return
    if Path(name).exists():
        warnings.warn(
            f"{name!r} is taken for the named data set, not for the folder of that name; to load the folder, write "
            f"./{name}",
            stacklevel=3,
        )
    elif spec.hub_name is None and not Path(spec.location).is_absolute():
        warnings.warn(
            f"{name!r} is read from the local folder {spec.location!r}, not from the data set of that name on the Hub",
            stacklevel=3,
        )


def _in_one_form(dataset: Dataset, image: str, label: str, domain: str | None, split: str, name: str) -> Dataset:
    if not len(dataset):
        raise DatasetError(f"{name!r} has no images in its {split} split")
    wanted = {image: "image", label: "label"}
    if domain in dataset.column_names:
        wanted[str(domain)] = DOMAIN
    dataset = dataset.select_columns(list(wanted))
    # through names that the other columns cannot have
    dataset = dataset.rename_columns({old: f" {new}" for old, new in wanted.items()})
    dataset = dataset.rename_columns({f" {new}": new for new in wanted.values()})
    try:
        if is_array(dataset.features["image"]):
            dataset = encode_arrays(dataset, "image")
        return dataset.cast_column("image", Image(mode="RGB"))
    except (TypeError, ValueError, NotImplementedError) as error:  # the last: a cast that pyarrow does not have
        raise DatasetError(
            f"{name!r} has no images in its column {image!r} ({reason(error)}); choose another with image_column"
        ) from error


def _hold_out(dataset: Dataset, fraction: float, seed: int) -> dict[str, Dataset]:
    if not 0 < fraction < 1:
        raise DatasetError(f"test_fraction must be between 0 and 1, got {fraction}")
    labels = read_labels(dataset)
    held_out = (
        rank_in_class(labels, np.random.default_rng(seed)) < stratified_sizes(fraction, np.bincount(labels))[labels]
    )
    return {
        "train": select_rows(dataset, np.flatnonzero(~held_out)),
        "test": select_rows(dataset, np.flatnonzero(held_out)),
    }


def _by_list(dataset: Dataset, file: str, folders: list[str], name: str) -> dict[str, Dataset]:
    in_list = read_split_list(file, dataset, folders, name)
    if 2 * in_list.sum() < len(in_list):
        warnings.warn(
            f"{file!r} lists only {in_list.sum():,} of {len(in_list):,} images for training, and the others are for "
            "testing; is it the list of the test images?",
            stacklevel=3,
        )
    return {
        "train": select_rows(dataset, np.flatnonzero(in_list)),
        "test": select_rows(dataset, np.flatnonzero(~in_list)),
    }


def _readable(
    splits: dict[str, Dataset], what: str, name: str, skip: bool
) -> tuple[dict[str, Dataset], dict[str, str]]:
    """The splits without unreadable images, and the unreadable ones with the reasons."""
    unreadable: dict[str, str] = {}
    readable = {}
    for split, dataset in splits.items():
        found = find_unreadable(dataset, what)
        paths = image_paths(dataset)
        unreadable |= {paths[row].as_py() or f"{split}, row {row}": reason for row, reason in found.items()}
        rows = np.setdiff1d(np.arange(len(dataset)), list(found)) if found else None
        readable[split] = dataset if rows is None else select_rows(dataset, rows)
    if unreadable:
        some = [f"  {file}: {reason}" for file, reason in list(unreadable.items())[:MAX_LISTED]]
        some += [f"  and {len(unreadable) - MAX_LISTED:,} more"] if len(unreadable) > MAX_LISTED else []
        total = sum(map(len, splits.values()))
        message = f"{len(unreadable):,} of the {total:,} images of {name!r} cannot be read:\n" + ";\n".join(some) + "."
        if lost := sorted(_classes_in(splits) - _classes_in(readable)):
            message += f"\nThese classes have no other image: {listed(lost)}."
        if not skip:
            raise DatasetError(f"{message}\nRepair or remove them, or leave them out with skip_unreadable_images")
        warnings.warn(f"{message}\nThey are left out.", stacklevel=3)
    return readable, unreadable


def _classes_in(splits: dict[str, Dataset]) -> set[str]:
    """Names of the classes with images."""
    return {
        dataset.features["label"].names[label]
        for dataset in splits.values()
        for label in np.unique(dataset.select_columns(["label"]).with_format("arrow")["label"][:].drop_null())
        if label >= 0
    }


def _with_imagenet_r_names(dataset: Dataset, domain_column: str | None) -> Dataset:
    names = readable_names(dataset.features["label"].names)
    labels = dataset.with_format("arrow")["label"][:]
    dataset = with_labels(dataset, labels, ClassLabel(names=names))
    if domain_column == RENDITION and DOMAIN not in dataset.column_names:
        return add_rendition(dataset).rename_column(RENDITION, DOMAIN)
    return add_rendition(dataset)


def without_repeats(splits: dict[str, Dataset], name: str) -> dict[str, Dataset]:
    """The splits without repeated files, and without test files that are also training files; warns of them.

    Raises:
        DatasetError: a file has two classes, or no test file is left.
    """
    paths = {split: pc.if_else(pa.array(in_files(d)), image_paths(d), None) for split, d in splits.items()}
    everything = pa.chunked_array([chunk for each in paths.values() for chunk in each.chunks], pa.string())
    if pc.count_distinct(everything).as_py() == len(everything) - everything.null_count:
        return splits
    class_of: dict[str, int | None] = {}
    kept = {}
    for split in sorted(splits, reverse=True):  # train, test
        before, here = set(class_of), set()
        names = splits[split].features["label"].names
        labels = splits[split].select_columns(["label"]).with_format("arrow")["label"][:].to_pylist()
        rows = []
        for row, (path, label) in enumerate(zip(paths[split].to_pylist(), labels, strict=True)):
            if path is not None and class_of.setdefault(path, label) != label:
                two = " and ".join(repr(None if each is None else names[each]) for each in (class_of[path], label))
                raise DatasetError(f"{name!r} gives the file {path!r} more than one class ({two}); give it one")
            if path is None or path not in before and path not in here:
                rows.append(row)
            here.add(path)
        kept[split] = rows
        _warn_of_repeats(name, split, len(labels) - len(rows), len(before & here))
        if not rows:
            raise DatasetError(
                f"{name!r} has no image in its {split} split that is not a training image; choose another split"
            )
    return {split: select_rows(dataset, np.array(kept[split])) for split, dataset in splits.items()}


def _warn_of_repeats(name: str, split: str, dropped: int, trained: int) -> None:
    if trained:
        warnings.warn(f"Left out {trained:,} test images of {name!r} that are also training images.", stacklevel=4)
    if dropped > trained:
        warnings.warn(
            f"{name!r} lists {dropped - trained:,} images of its {split} split more than once; each is used once.",
            stacklevel=4,
        )
