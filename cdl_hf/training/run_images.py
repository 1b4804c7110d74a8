"""Which images a run was trained on and tested on, kept in its folder by digests of the files."""

import io
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset

from ..arguments.sets import with_present_names
from ..arguments.stream import DatasetArguments, StreamArguments
from ..data import TaskStream, load_image_dataset
from ..data.labels import read_labels
from ..data.stream import IN_MEMORY, SPLITS
from ..data.views import image_digests, select_rows
from ..runs.folder import ARGUMENTS
from .build import build_stream

NAME = "images.npz"


class RunImages:
    """The images of a stream's splits, wherever their files lie by then.

    Args:
        digests: split -> [`image_digests`] of its images, (n,).
        columns: split -> the column of their classes, (n,).
    """

    def __init__(self, digests: dict[str, np.ndarray], columns: dict[str, np.ndarray]):
        self.digests, self.columns = digests, columns

    @classmethod
    def of(cls, stream: TaskStream) -> "RunImages":
        """Those of all tasks."""
        pairs = stream.digests(lambda digests, columns: (digests, columns))
        digests, columns = (
            {split: np.concatenate([pair[which] for pair in pairs[split]]) for split in SPLITS} for which in (0, 1)
        )
        return cls(digests, columns)

    @classmethod
    def load(cls, run: Path) -> "RunImages | None":
        """Those of a run; None if it is of a version that did not keep them.

        Raises:
            ValueError: The file is damaged.
        """
        if not (run / NAME).is_file():
            return None
        try:
            with np.load(run / NAME) as file:
                return cls(*({split: file[f"{split}_{what}"] for split in SPLITS} for what in ("digests", "columns")))
        except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{run / NAME} is damaged: {error}") from error

    def content(self) -> bytes:
        """What belongs into [`NAME`]."""
        file = io.BytesIO()
        arrays: dict[str, Any] = {f"{split}_digests": self.digests[split] for split in SPLITS}
        arrays |= {f"{split}_columns": self.columns[split].astype(np.int32) for split in SPLITS}
        np.savez(file, **arrays)
        return file.getvalue()

    def repeats(self) -> str | None:
        """A sentence on the images for the test that are among those to be trained on as well; None if there are none.

        Files that differ in a byte, such as those that were compressed again, are other images here.
        """
        repeated = int(self.trained_on(self.digests["test"]).sum())
        if not repeated:
            return None
        return (
            f"{repeated:,} of the {len(self.digests['test']):,} test images are trained on too (equal files): the "
            "accuracy on them says nothing of new images"
        )

    def trained_on(self, digests: np.ndarray) -> np.ndarray:
        """Whether the run was trained on each image, (n,) truth values.

        Args:
            digests: Output of [`image_digests`].
        """
        return np.isin(digests, self.digests["train"])

    def are_of(self, split: str, digests: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Whether each image, of the class of this column, is of a split of the run, (n,).

        Of equal files there are no more than the run had in the split.
        """
        left = Counter(zip(self.digests[split].tolist(), self.columns[split].tolist(), strict=True))
        found = np.zeros(len(digests), bool)
        for row, image in enumerate(zip(digests.tolist(), columns.tolist(), strict=True)):
            found[row] = left[image] > 0
            left[image] -= 1
        return found

    def knows(self, digests: np.ndarray) -> np.ndarray:
        """Whether each image is one of the run's, (n,)."""
        return np.isin(digests, np.concatenate(list(self.digests.values())))


def run_of(checkpoint: str | Path) -> Path | None:
    """The run that a checkpoint is, or is a model of; None if it lies elsewhere."""
    return next(
        (
            folder
            for folder in (Path(checkpoint), Path(checkpoint).absolute().parent)
            if (folder / ARGUMENTS).is_file()
        ),
        None,
    )


def own_test_images(
    run: Path, class_names: list[str], *, skip_unreadable_images: bool
) -> tuple[list[Dataset], list[str]]:
    """A run's own test images, found again in its data set, and sentences on what is otherwise than it was.

    Args:
        class_names: Names of the run's classes, by column.

    Raises:
        ValueError: The data set cannot be loaded, or none of the images is there.
    """
    kept, args = RunImages.load(run), _stream_arguments(run)
    args.skip_unreadable_images |= skip_unreadable_images
    if args.dataset == IN_MEMORY:
        raise ValueError(f"{run} was trained on a data set in memory: name its test images with --dataset")
    if kept is None:
        note = f"{run} is of a version that kept no digests: whether its images are still the same was not compared"
        return [task.test for task in build_stream(args)], [note]
    view = _all_images(args)["test"]
    columns, digests = _columns(view, class_names), image_digests(view)
    found = kept.are_of("test", digests, columns)
    missing, new = len(kept.digests["test"]) - int(found.sum()), int((~kept.knows(digests)).sum())
    if not found.any():
        raise ValueError(f"{args.dataset} has none of the test images of {run}: name other images with --dataset")
    notes = []
    if missing:
        notes.append(
            f"{missing:,} of the {missing + found.sum():,} test images of {run} are not in {args.dataset} now"
        )
    if new:
        notes.append(
            f"{new:,} images of {args.dataset} are not among those of {run} and left out: --dataset has them tested on"
        )
    return [select_rows(view, np.flatnonzero(found))], notes


def own_training_images(
    run: Path, class_names: list[str], classes: Sequence[str], source: DatasetArguments | None = None
) -> Dataset | None:
    """The images of some classes that a run was trained on, found again; `None` if it did not keep which they are.

    Args:
        class_names: Names of the run's classes, by column.
        classes: Names of the classes that are looked for.
        source: Where the images are now; by default, where they were.

    Raises:
        ValueError: The data set cannot be loaded, or some of the images are not there.
    """
    kept, args = RunImages.load(run), source or _stream_arguments(run)
    if kept is None:
        return None
    if args.dataset == IN_MEMORY:
        raise ValueError(f"{run} was trained on a data set in memory: name its images with --dataset")
    splits = _all_images(args)
    view = splits.get("train", splits["test"])
    columns = _columns(view, class_names)
    wanted = [column for column, name in enumerate(class_names) if name in classes]
    rows = np.flatnonzero(np.isin(columns, wanted))
    view, columns = select_rows(view, rows), columns[rows]
    found = kept.are_of("train", image_digests(view), columns)
    total = int(np.isin(kept.columns["train"], wanted).sum())
    if found.sum() < total:
        raise ValueError(
            f"{total - found.sum():,} of the {total:,} images of {', '.join(classes)} that {run} was trained on are "
            f"not in {args.dataset}: name the data set that has them all with --dataset, and its columns and splits"
        )
    return select_rows(view, np.flatnonzero(found))


def _all_images(args: DatasetArguments) -> Mapping[str, Dataset]:
    """The splits of a data set without any choice of images: what has no split for the test is all in it."""
    names = ("image_column", "label_column", "domain_column", "train_split", "test_split", "skip_unreadable_images")
    return load_image_dataset(args.dataset, test_fraction=None, **{name: getattr(args, name) for name in names})


def _columns(view: Dataset, class_names: list[str]) -> np.ndarray:
    """The column of the class of each image, (n,); -1 of a class that is not among these."""
    column_of = {name: column for column, name in enumerate(class_names)}
    return np.array([column_of.get(name, -1) for name in view.features["label"].names])[read_labels(view)]


def unseen_images(view: Dataset, dataset: str, run: Path | None) -> tuple[Dataset, list[str]]:
    """The images of a data set that a run was not trained on, and sentences on what is left out, or not known.

    Args:
        run: That of the model; None where it is not known.

    Raises:
        ValueError: It was trained on all of them.
    """
    images, reason = None, "it does not lie in the folder of its run"
    if run is not None:
        try:  # of a run that did not keep them, those that its data set has now
            images = RunImages.load(run) or RunImages.of(build_stream(_stream_arguments(run)))
        except ValueError as error:
            reason = str(error)
    if images is None:
        return view, [f"which images the model was trained on is not known ({reason}): any of these may be among them"]
    trained = images.trained_on(image_digests(view))
    if trained.all():
        raise ValueError(f"the model was trained on all {len(view):,} images of {dataset}: name others")
    if not trained.any():
        return view, []
    left_out = (
        f"{int(trained.sum()):,} of the {len(view):,} images of {dataset} are left out: the model was trained on them"
    )
    return select_rows(view, np.flatnonzero(~trained)), [left_out]


def _stream_arguments(run: Path) -> StreamArguments:
    """Those of a run, its own list of training images among them.

    Only these are read: a run from Python may have a method that the command line does not know.

    Raises:
        ValueError: The record is damaged.
    """
    try:
        record = with_present_names(yaml.safe_load((run / ARGUMENTS).read_text(encoding="utf-8")))
        args = StreamArguments(**{f.name: record[f.name] for f in fields(StreamArguments) if f.name in record})
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{run / ARGUMENTS} is damaged ({reason}): put back a copy of it") from error
    return replace(args, split_file=str(run / "split.yaml")) if (run / "split.yaml").is_file() else args
