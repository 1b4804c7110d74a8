"""A data set as a stream of tasks: which classes come when, and each task's images as views on the data set."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict

from .sources import rank_in_class, read_labels, stratified_mask


@dataclass(frozen=True)
class Task:
    """The classes that arrive together, and their images as index-only views.

    Attributes:
        index: position in the stream, from 0.
        columns: the classes' positions in the class order, which are their columns in a classifier's logits.
        class_names: their names, in the order of `columns`.
        train, validation, test: views with columns `image` and `label`; `validation` is None if none was asked for.
    """

    index: int
    columns: range
    class_names: list[str]
    train: Dataset
    validation: Dataset | None
    test: Dataset


class TaskStream(Sequence[Task]):
    """The tasks of a class-incremental stream; the same on every process, whatever randomness was used before.

    Args:
        dataset: splits `train` and `test` with a ClassLabel column `label`, as `load_source` returns.
        num_tasks: number of tasks; 10 if neither this nor `classes_per_task` is given. Where it does not divide the
            classes, the first tasks get one class more, and a warning says so.
        classes_per_task: classes a task, instead of `num_tasks`; the last task takes what is left.
        first_task_classes: size of the first task, if it is to differ from the others.
        class_order: "natural" (as the data set numbers them), "seeded" (`seed` permutes them with numpy's legacy
            generator, as published orders are made: seed 1993 gives the usual 68, 56, 78, ...), or all labels or all
            names in the order wanted.
        seed: of the class order, of the validation images and of the images that `max_samples_per_class` keeps.
        validation_fraction: share of each class's training images that becomes `Task.validation`.
        max_samples_per_class: keep at most so many training and so many test images a class, for quick looks.

    Raises:
        ValueError: more tasks than classes, sizes that do not add up, an order that is not a permutation, or classes
            without images for training or test.
    """

    def __init__(
        self,
        dataset: DatasetDict,
        num_tasks: int | None = None,
        *,
        classes_per_task: int | None = None,
        first_task_classes: int | None = None,
        class_order: str | list[int] | list[str] = "natural",
        seed: int = 0,
        validation_fraction: float = 0.0,
        max_samples_per_class: int | None = None,
    ):
        names = dataset["train"].features["label"].names
        order = _class_order(names, class_order, seed)
        sizes = _task_sizes(len(names), num_tasks, classes_per_task, first_task_classes)
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"validation_fraction is {validation_fraction}; expected 0 or a share below 1.")
        if max_samples_per_class is not None and max_samples_per_class < 1:
            raise ValueError(f"max_samples_per_class is {max_samples_per_class}; expected 1 or more, or None.")

        self.label_to_column = np.empty(len(names), dtype=np.int64)
        self.label_to_column[order] = np.arange(len(names))
        self._column_names = [names[label] for label in order]
        self._settings = {
            "source": dataset["train"].info.dataset_name,
            "class_order": class_order if isinstance(class_order, str) else "given",
            "seed": seed,
            "validation_fraction": validation_fraction,
            "max_samples_per_class": max_samples_per_class,
        }

        stops = np.cumsum(sizes)
        columns = [range(stop - size, stop) for stop, size in zip(stops.tolist(), sizes, strict=True)]
        task_of_label = np.searchsorted(stops, self.label_to_column, side="right").astype(np.int32)
        train, validation = _split_rows(dataset["train"], "train", task_of_label, self, validation_fraction)
        test, _ = _split_rows(dataset["test"], "test", task_of_label, self, 0.0)
        self._tasks = [
            Task(
                index=index,
                columns=columns[index],
                class_names=[self._column_names[column] for column in columns[index]],
                train=dataset["train"].select(train[index]),
                validation=dataset["train"].select(validation[index]) if validation_fraction else None,
                test=dataset["test"].select(test[index]),
            )
            for index in range(len(sizes))
        ]

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index):
        """One task, or for a slice a stream of these tasks with their indices and columns unchanged."""
        if not isinstance(index, slice):
            return self._tasks[index]
        part = object.__new__(TaskStream)
        part.__dict__.update(self.__dict__, _tasks=self._tasks[index])
        return part

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in column order, up to the stream's last column."""
        return self._column_names[: max((task.columns.stop for task in self), default=0)]

    @property
    def classes_per_task(self) -> list[int]:
        return [len(task.columns) for task in self]

    def describe(self) -> dict:
        """What the stream is, in plain types that JSON holds."""
        return {
            **self._settings,
            "num_tasks": len(self),
            "classes_per_task": self.classes_per_task,
            "class_names": self.class_names,
            "train": [len(task.train) for task in self],
            "validation": [len(task.validation or ()) for task in self],
            "test": [len(task.test) for task in self],
        }

    def __str__(self) -> str:
        about = self.describe()
        sizes = about["classes_per_task"]
        each = f"{sizes[0]} classes each" if len(set(sizes)) == 1 else f"{', '.join(map(str, sizes))} classes"
        counts = ", ".join(
            f"{sum(about[split]):,} {split}" for split in ("train", "validation", "test") if about[split]
        )
        lines = [
            f"{about['source'] or 'data set'}: {sum(sizes)} classes in {len(self)} tasks ({each}), "
            f"{about['class_order']} class order",
            f"images: {counts}",
        ]
        return "\n".join(lines)


def _class_order(names: list[str], class_order: str | list[int] | list[str], seed: int) -> np.ndarray:
    """Labels (C,) in the order in which the classes arrive."""
    if class_order == "natural":
        return np.arange(len(names))
    if class_order == "seeded":
        return np.random.RandomState(seed).permutation(len(names))
    if isinstance(class_order, str):
        raise ValueError(f"class_order is '{class_order}'; expected natural, seeded, or a list of labels or names.")
    number = {name: label for label, name in enumerate(names)}
    unknown = [entry for entry in class_order if isinstance(entry, str) and entry not in number]
    if unknown:
        raise ValueError(f"class_order names classes that the data set does not have: {_listed(unknown)}.")
    order = [number[entry] if isinstance(entry, str) else int(entry) for entry in class_order]
    if sorted(order) != list(range(len(names))):
        raise ValueError(
            f"class_order must hold each of the {len(names)} classes once; it has {len(order)} entries, "
            f"{len(set(order))} different ones."
        )
    return np.array(order)


def _task_sizes(classes: int, num_tasks: int | None, classes_per_task: int | None, first: int | None) -> list[int]:
    """Number of classes in each task."""
    if classes_per_task is not None and classes_per_task < 1:
        raise ValueError(f"classes_per_task is {classes_per_task}; expected 1 or more.")
    if first is not None and not 1 <= first <= classes:
        raise ValueError(f"first_task_classes is {first}; expected 1 to {classes}, the number of classes.")
    rest = classes - (first or 0)
    if classes_per_task is not None:
        sizes = [classes_per_task] * (rest // classes_per_task) + [rest % classes_per_task]
        sizes = ([first] if first else []) + [size for size in sizes if size]
        if num_tasks is not None and num_tasks != len(sizes):
            raise ValueError(
                f"{classes} classes with classes_per_task={classes_per_task} make {len(sizes)} tasks, but num_tasks "
                f"is {num_tasks}; leave num_tasks out (a shorter run is a slice: stream[:{num_tasks}])."
            )
    else:
        tasks = (10 if num_tasks is None else num_tasks) - (first is not None)
        if tasks < (first is None) or tasks > rest or (tasks == 0 and rest):
            raise ValueError(
                f"{classes} classes cannot make {tasks + (first is not None)} tasks"
                + (f" of which the first has {first} classes" if first else "")
                + "; every task needs at least one class."
            )
        sizes = ([first] if first else []) + [
            len(part) for part in np.array_split(np.arange(rest), tasks or 1) if len(part)
        ]
    if len(set(sizes[first is not None :])) > 1:
        warnings.warn(
            f"The classes do not divide evenly: tasks of {', '.join(map(str, sizes))} classes.", stacklevel=3
        )
    return sizes


def _split_rows(
    dataset: Dataset, split: str, task_of_label: np.ndarray, stream: TaskStream, validation_fraction: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Row numbers of each task, ascending: those to use, and those to validate on."""
    labels = read_labels(dataset)
    names = dataset.features["label"].names
    counts = np.bincount(labels, minlength=len(names)) if len(labels) else np.zeros(len(names), int)
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        raise ValueError(
            f"{len(empty)} classes have no {split} images: {_listed(empty)}; remove these classes, or add images."
        )
    # one generator a split: the choice in one does not depend on the size of the other
    seed = stream._settings["seed"]
    limit = stream._settings["max_samples_per_class"]
    rows = None
    if limit is not None:
        rows = np.flatnonzero(rank_in_class(labels, np.random.default_rng([seed, 0]))[0] < limit)
        labels = labels[rows]
    held_out = None
    if validation_fraction:
        held_out = stratified_mask(labels, validation_fraction, np.random.default_rng([seed, 1]))
    return _by_task(labels, rows, task_of_label, ~held_out if held_out is not None else None), (
        _by_task(labels, rows, task_of_label, held_out) if held_out is not None else []
    )


def _by_task(
    labels: np.ndarray, rows: np.ndarray | None, task_of_label: np.ndarray, mask: np.ndarray | None
) -> list[np.ndarray]:
    if mask is not None:
        rows = np.flatnonzero(mask) if rows is None else rows[mask]
        labels = labels[mask]
    tasks = task_of_label[labels]
    order = np.argsort(tasks, kind="stable")
    ends = np.cumsum(np.bincount(tasks, minlength=int(task_of_label.max()) + 1))
    order = order if rows is None else rows[order]
    return np.split(order, ends[:-1])


def _listed(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(map(str, names[:limit]))
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
