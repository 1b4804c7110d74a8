"""Named data sets, local folders and files, and Hub data sets, all read into one form: `image` and `label`."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    Value,
    get_dataset_config_names,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetNotFoundError


class SourceError(ValueError):
    """A data set that cannot be learnt from; the message says what, where, and what to do."""


@dataclass(frozen=True)
class Source:
    """Where a named data set lives (a path or a Hub name) and which of its columns are meant."""

    location: str
    image_column: str | None = None
    label_column: str | None = None


SOURCES = {
    "quickdraw100": Source(str(Path(__file__).parent / "quickdraw100")),
    "cifar100": Source("uoft-cs/cifar100", image_column="img", label_column="fine_label"),
}

IMAGE_COLUMNS = ("image", "img", "images", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
TEST_SPLITS = ("test", "validation", "valid", "val")
IMAGE_SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"])


def load_source(
    name_or_path: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> DatasetDict:
    """Load a data set as splits `train` and `test` with columns `image` (RGB) and `label` (ClassLabel).

    Args:
        name_or_path: a key of `SOURCES`; a folder of images (a folder a class, either at the top or in `train` and
            `test`); a Parquet file or a folder of them; a `save_to_disk` folder; or a Hub data set, `owner/name`.
        image_column: column of the images. Default: the only image column, or the one with a usual name.
        label_column: column of the classes: a ClassLabel, strings or integers. Default: found in the same way.
        test_fraction: share of each class that is held out where the data have no test split. In a class of two or
            more images at least one is held out and at least one stays.
        seed: of the held-out choice.

    Raises:
        SourceError: nothing of that name, no images, no such column, or more than one candidate for it.
    """
    source = SOURCES.get(str(name_or_path)) or Source(str(name_or_path))
    splits = _read(source.location)
    splits = _one_form(
        splits, image_column or source.image_column, label_column or source.label_column, str(name_or_path)
    )
    if "test" not in splits:
        splits = _hold_out(splits["train"], test_fraction, seed)
    for split in splits.values():
        split.info.dataset_name = str(name_or_path)
    return splits


def read_labels(dataset: Dataset) -> np.ndarray:
    """The labels of a data set in one numpy array (n,), without touching its images."""
    labels = dataset.with_format("arrow")["label"][:]
    return labels.to_numpy() if isinstance(labels, pa.ChunkedArray) else labels.to_numpy(zero_copy_only=False)


def _read(location: str) -> DatasetDict:
    path = Path(location).expanduser()
    if path.is_file():
        if path.suffix != ".parquet":
            raise SourceError(
                f"'{location}' is a file of another kind than .parquet; give a Parquet file or a folder."
            )
        return load_dataset("parquet", data_files={"train": [str(path)]})
    if path.is_dir():
        if (path / "dataset_dict.json").exists():
            return load_from_disk(str(path))
        if (path / "state.json").exists():
            return DatasetDict(train=load_from_disk(str(path)))
        if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
            return load_dataset("parquet", data_dir=str(path))
        return _read_image_folder(path)
    if location.count("/") != 1 or location.startswith(("/", ".", "~")):
        near = difflib.get_close_matches(location, SOURCES, n=3, cutoff=0.5)
        raise SourceError(
            f"'{location}' is neither a file or folder here nor a known data set; "
            + (f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(SOURCES)},")
            + " A data set on the Hub is given as owner/name."
        )
    return _read_hub(location)


def _read_hub(name: str) -> DatasetDict:
    try:
        configurations = get_dataset_config_names(name)
        if len(configurations) > 1 and "default" not in configurations:
            raise SourceError(
                f"The Hub data set '{name}' has several configurations ({', '.join(configurations)}); "
                "save the one you mean with save_to_disk and give its folder."
            )
        return load_dataset(name)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise SourceError(
            f"'{name}' is not a folder here and could not be loaded from the Hub ({error}); "
            "check the name and the connection, or give the path of a local copy."
        ) from error


def _read_image_folder(path: Path) -> DatasetDict:
    folders = {child.name: child for child in sorted(path.iterdir()) if child.is_dir()}
    test = next((name for name in TEST_SPLITS if name in folders), None)
    # `train` alone may be a class of that name (of locomotives, say): only the pair is a split
    splits = {"train": folders["train"], "test": folders[test]} if test and "train" in folders else {"train": path}
    files = {split: _image_files(folder) for split, folder in splits.items()}
    names = sorted({name for split in files.values() for name, _ in split})
    if not names:
        raise SourceError(f"No images in folders of classes were found in '{path}'; expected {path}/<class>/<image>.")
    number = {name: label for label, name in enumerate(names)}
    features = Features(image=Image(), label=ClassLabel(names=names))
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [file for _, file in rows], "label": [number[name] for name, _ in rows]}, features=features
            )
            for split, rows in files.items()
        }
    )


def _image_files(folder: Path) -> list[tuple[str, str]]:
    """(class, file) of every image below `folder`, in a fixed order; the class is the first folder's name."""
    return [
        (child.name, str(file))
        for child in sorted(folder.iterdir())
        if child.is_dir()
        for file in sorted(child.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]


def _one_form(splits: DatasetDict, image_column: str | None, label_column: str | None, name: str) -> DatasetDict:
    train = splits.get("train")
    if train is None:
        if len(splits) > 1:
            raise SourceError(f"'{name}' has no split 'train', only {', '.join(splits)}; rename the one to train on.")
        train = next(iter(splits.values()))
    chosen = {"train": train}
    test = next((splits[key] for key in TEST_SPLITS if key in splits and splits[key] is not train), None)
    if test is not None:
        chosen["test"] = test
    image_column = _find_column(train.features, image_column, _holds_images, IMAGE_COLUMNS, "image", name)
    label_column = _find_column(train.features, label_column, _holds_classes, LABEL_COLUMNS, "label", name)
    chosen = {
        split: dataset.select_columns([image_column, label_column]).rename_columns(
            {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
        )
        for split, dataset in chosen.items()
    }
    chosen = _class_labels(chosen)
    # what transformers' pipelines do when they open an image: turn it upright, convert("RGB")
    return DatasetDict({split: data.cast_column("image", Image(mode="RGB")) for split, data in chosen.items()})


def _holds_images(feature) -> bool:
    return isinstance(feature, Image)


def _holds_classes(feature) -> bool:
    return isinstance(feature, ClassLabel)


def _find_column(features, given, fits, usual, what, name) -> str:
    if given is not None:
        if given not in features:
            raise SourceError(f"'{name}' has no column '{given}'; its columns are {', '.join(features)}.")
        return given
    candidates = [column for column, feature in features.items() if fits(feature)]
    candidates = candidates or [column for column in usual if column in features]
    candidates = [column for column in usual if column in candidates][:1] or candidates
    if len(candidates) != 1:
        found = f"several {what} columns ({', '.join(candidates)})" if candidates else f"no {what} column"
        raise SourceError(f"'{name}' has {found} among {', '.join(features)}; choose one with {what}_column=<name>.")
    return candidates[0]


def _class_labels(splits: dict[str, Dataset]) -> dict[str, Dataset]:
    """Give every split the same ClassLabel where the labels are strings or integers."""
    feature = splits["train"].features["label"]
    if isinstance(feature, ClassLabel):
        return splits
    if not (isinstance(feature, Value) and (feature.dtype == "string" or "int" in feature.dtype)):
        raise SourceError(f"The label column holds {feature}; expected a ClassLabel, strings or integers.")
    columns = {split: data.with_format("arrow")["label"][:] for split, data in splits.items()}
    values = pa.array(sorted({value for column in columns.values() for value in pc.unique(column).to_pylist()}))
    label = ClassLabel(names=[str(value) for value in values.to_pylist()])
    return {
        split: data.remove_columns("label").add_column(
            "label", pc.index_in(columns[split], values).to_numpy().astype(np.int64), feature=label
        )
        for split, data in splits.items()
    }


def _hold_out(dataset: Dataset, fraction: float, seed: int) -> DatasetDict:
    if not 0 < fraction < 1:
        raise SourceError(f"test_fraction is {fraction}; expected a share between 0 and 1.")
    labels = read_labels(dataset)
    held_out = stratified_mask(labels, fraction, np.random.default_rng(seed))
    return DatasetDict(
        train=dataset.select(np.flatnonzero(~held_out)),
        test=dataset.select(np.flatnonzero(held_out)),
    )


def rank_in_class(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random rank of every sample among those of its class (n,), and the size of its class (n,)."""
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank, counts[labels]


def stratified_mask(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """True for a random `fraction` of each class (n,): at least one of a class and never all of it."""
    rank, size = rank_in_class(labels, rng)
    return rank < np.clip(np.rint(fraction * size), 1, size - 1)
