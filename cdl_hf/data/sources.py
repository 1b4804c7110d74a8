"""Named data sets, local folders and files, and Hub data sets, all read into one form: `image` and `label`."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from .labels import rank_in_class, read_labels, share
from .views import select_rows


class SourceError(ValueError):
    """A data set that cannot be learnt from; the message says what is wrong, where, and what to do."""


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

USUAL_IMAGE_COLUMNS = ("image", "img")
USUAL_LABEL_COLUMNS = ("label", "labels", "fine_label")
TEST_SPLITS = ("test", "validation", "valid", "val")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def load_source(
    name_or_path: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> DatasetDict:
    """Load a data set as splits `train` and `test` with columns `image` (RGB) and `label` (ClassLabel).

    Without a split `test`, a split `validation` is taken for it; without either, a share of every class is held out.
    Images are opened when they are used, as transformers' pipelines open them: upright, then `convert("RGB")`.

    Args:
        name_or_path: a key of `SOURCES`; a folder of images, `<class>/...`, or `train/<class>/...` beside
            `test/<class>/...`; a Parquet file or a folder of them; a `save_to_disk` folder; or a Hub data set,
            `owner/name`.
        image_column: column of the images. Default: the only image column, or the one with a usual name.
        label_column: column of the classes: a ClassLabel, strings or integers. Default: found in the same way.
        test_fraction: share of each class to hold out, if there is no test split; at least one image of a class is
            held out and at least one stays (a class of one image stays whole).
        seed: of the held-out choice.

    Raises:
        SourceError: nothing of that name, no images, no such column, or more than one candidate for it.
    """
    name = str(name_or_path)
    source = SOURCES.get(name) or Source(name)
    splits = _train_and_test(_read(source.location), name)
    features = splits["train"].features
    image = _column(features, image_column or source.image_column, Image, USUAL_IMAGE_COLUMNS, "image", name)
    label = _column(features, label_column or source.label_column, ClassLabel, USUAL_LABEL_COLUMNS, "label", name)
    splits = {split: _in_one_form(dataset, image, label, split, name) for split, dataset in splits.items()}
    splits = _with_class_labels(splits, name)
    if "test" not in splits:
        splits = _hold_out(splits["train"], test_fraction, seed)
    for dataset in splits.values():
        dataset.info.dataset_name = name
    return DatasetDict(splits)


def _read(location: str) -> DatasetDict:
    path = Path(location).expanduser().absolute()
    if path.is_file():
        if path.suffix != ".parquet":
            raise SourceError(f"'{location}' is a file, but not a .parquet file; give one, or a folder.")
        return load_dataset("parquet", data_files={"train": [str(path)]})
    if path.is_dir():
        if (path / "dataset_dict.json").exists():
            return load_from_disk(str(path))
        if (path / "dataset_info.json").exists() and (path / "state.json").exists():
            return DatasetDict(train=load_from_disk(str(path)))
        if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
            return load_dataset("parquet", data_dir=str(path))
        return _read_image_folder(path)
    owner, _, name = location.partition("/")
    if owner in ("", ".", "..", "~") or not name or "/" in name:
        near = difflib.get_close_matches(location, SOURCES, cutoff=0.5)
        names = f"did you mean {' or '.join(near)}?" if near else f"the named ones are {', '.join(SOURCES)}."
        raise SourceError(
            f"'{location}' is no file or folder here and no named data set; {names} "
            "A data set on the Hub is given as owner/name."
        )
    try:
        return load_dataset(location)
    except (DatasetNotFoundError, ConnectionError, ValueError) as error:
        raise SourceError(
            f"'{location}' is no folder here, and the Hub did not give it ({error}); "
            "check the name and the connection, or give the path of a local copy."
        ) from error


def _read_image_folder(path: Path) -> DatasetDict:
    folders = {child.name: child for child in path.iterdir() if child.is_dir()}
    test = next((split for split in TEST_SPLITS if split in folders), None)
    # a folder called train among others may well hold trains: only with a partner, or alone, is it a split
    if "train" in folders and (test or len(folders) == 1):
        roots = {"train": folders["train"]} | ({"test": folders[test]} if test else {})
    else:
        roots = {"train": path}
    files = {split: list(_image_files(root)) for split, root in roots.items()}
    names = sorted({name for rows in files.values() for name, _ in rows})
    if not names:
        raise SourceError(f"'{path}' holds no images in folders of classes; expected <class>/<image file> below it.")
    label_of = {name: label for label, name in enumerate(names)}
    features = Features(image=Image(), label=ClassLabel(names=names))
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [file for _, file in rows], "label": [label_of[name] for name, _ in rows]}, features=features
            )
            for split, rows in files.items()
        }
    )


def _image_files(root: Path):
    """(class, file) of every image, sorted; the class is the first folder below `root`. Hidden ones are left out."""
    for name in sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")):
        for folder, subfolders, files in os.walk(root / name):
            subfolders[:] = sorted(subfolder for subfolder in subfolders if not subfolder.startswith("."))
            for file in sorted(files):
                if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith("."):
                    yield name, os.path.join(folder, file)


def _train_and_test(splits: DatasetDict, name: str) -> dict[str, Dataset]:
    if "train" not in splits and len(splits) > 1:
        raise SourceError(f"'{name}' has the splits {', '.join(splits)} but no train; rename the one to learn from.")
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    test = next((splits[split] for split in TEST_SPLITS if split in splits and splits[split] is not train), None)
    return {"train": train} | ({"test": test} if test is not None else {})


def _column(features: Features, given: str | None, kind: type, usual: tuple[str, ...], what: str, name: str) -> str:
    """Name of the column: the one given, else the one of this kind, else the one with a usual name."""
    if given:
        if given not in features:
            raise SourceError(f"'{name}' has no column '{given}'; its columns are {', '.join(features)}.")
        return given
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    found = found or [column for column in usual if column in features]
    found = [column for column in usual if column in found][:1] or found
    if len(found) != 1:
        raise SourceError(
            f"'{name}' has {'more than one' if found else 'no'} column that can be the {what} "
            f"({', '.join(found or features)}); choose it with {what}_column."
        )
    return found[0]


def _in_one_form(dataset: Dataset, image: str, label: str, split: str, name: str) -> Dataset:
    missing = [column for column in (image, label) if column not in dataset.column_names]
    if missing:
        raise SourceError(f"'{name}' has no column {' and '.join(missing)} in its {split} split.")
    dataset = dataset.select_columns([image, label])
    renamed = {old: new for old, new in ((image, "image"), (label, "label")) if old != new}
    dataset = dataset.rename_columns(renamed) if renamed else dataset
    return dataset.cast_column("image", Image(mode="RGB"))


def _with_class_labels(splits: dict[str, Dataset], name: str) -> dict[str, Dataset]:
    """The same ClassLabel in every split, made from sorted strings or integers where there is none."""
    kinds = [dataset.features["label"] for dataset in splits.values()]
    if all(isinstance(kind, ClassLabel) for kind in kinds):
        if any(kind.names != kinds[0].names for kind in kinds):
            raise SourceError(
                f"'{name}' numbers its classes differently in train and test; save them with one ClassLabel."
            )
        return splits
    if any(not isinstance(kind, Value) or not ("int" in kind.dtype or "string" in kind.dtype) for kind in kinds):
        raise SourceError(f"'{name}' has labels of type {kinds[0]}; expected a ClassLabel, strings or integers.")
    columns = {split: dataset.with_format("arrow")["label"][:] for split, dataset in splits.items()}
    values = sorted({value for column in columns.values() for value in pc.unique(column.drop_null()).to_pylist()})
    feature = ClassLabel(names=[str(value) for value in values])
    return {
        split: dataset.remove_columns("label").add_column(
            "label", pc.index_in(columns[split], pa.array(values, columns[split].type)), feature=feature
        )
        for split, dataset in splits.items()
    }


def _hold_out(dataset: Dataset, fraction: float, seed: int) -> dict[str, Dataset]:
    if not 0 < fraction < 1:
        raise SourceError(f"test_fraction is {fraction}; expected a share between 0 and 1.")
    labels = read_labels(dataset)
    held_out = rank_in_class(labels, np.random.default_rng(seed)) < share(fraction, np.bincount(labels))[labels]
    return {
        "train": select_rows(dataset, np.flatnonzero(~held_out)),
        "test": select_rows(dataset, np.flatnonzero(held_out)),
    }
