"""Streams of tasks: the classes of each task, and its images as views on the data set."""

import copy
import numbers
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from .errors import listed
from .labels import normalized_name, rank_in_class, read_labels, stratified_sizes
from .splits import Splits
from .views import image_digests, select_rows

SPLITS = ("train", "validation", "test")
IN_MEMORY = "in-memory"  # in place of the name of a data set that `load_image_dataset` has not loaded


@dataclass(frozen=True)
class Task:
    """The classes of one task, and their images.

    Attributes:
        index: position in the stream, from 0.
        class_ids: positions of the classes in the class order and in the logits of a classifier.
        class_names: their names, in the order of `class_ids`.
        train, validation, test: index-only views with columns `image` and `label` (label of the data set, not class
            id); `validation` is None if the stream has no validation images.
    """

    index: int
    class_ids: range
    class_names: list[str]
    train: Dataset
    validation: Dataset | None
    test: Dataset

    @cached_property
    def image_digests(self) -> dict[str, np.ndarray]:
        """Split -> digests of its images (n,), see [`image_digests`]; reads parts of all files."""
        return {
            split: np.empty(0, np.uint64) if (view := getattr(self, split)) is None else image_digests(view)
            for split in SPLITS
        }


class TaskStream(Sequence[Task]):
    """The tasks of a class-incremental stream; equal on every process, independent of global random states.

    Args:
        dataset: splits `train` and `test` with a ClassLabel column `label`, as `load_image_dataset` returns.
        num_tasks: number of tasks; 10 if neither this nor `classes_per_task` is given. If it does not divide the
            number of classes, the first tasks have one class more than the others, with a warning.
        classes_per_task: number of classes per task, instead of `num_tasks`; the last task has the remaining ones.
        first_task_classes: number of classes of the first task, if it differs from the others.
        class_order: "natural" (order of the labels), "seeded" (permuted by `seed` with numpy's legacy generator, as in
            published orders: 1993 gives the usual 68, 56, 78, ...), or a list of all labels or all class names.
            Strings are names if all of them are class names, and labels if all are numbers.
        seed: seed of the class order, the validation images, and the images kept by `max_samples_per_class`.
        validation_fraction: fraction of each class's training images that becomes `Task.validation`.
        max_samples_per_class: maximum number of training and of test images per class, for quick experiments.

    Attributes:
        label_to_class_id: class id of each of the data set's labels, (C,) integers.
        arguments: what the data set and the stream were made with, by the names of the command-line arguments.

    Raises:
        ValueError: there are more tasks than classes, task sizes that do not add up, an order that is not a
            permutation, images without labels, or classes without images for training, validation or testing.
    """

    def __init__(
        self,
        dataset: DatasetDict,
        num_tasks: int | None = None,
        *,
        classes_per_task: int | None = None,
        first_task_classes: int | None = None,
        class_order: str | Sequence[int] | Sequence[str] = "natural",
        seed: int = 0,
        validation_fraction: float = 0.0,
        max_samples_per_class: int | None = None,
    ):
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")
        if max_samples_per_class is not None and max_samples_per_class < 1:
            raise ValueError(f"max_samples_per_class must be at least 1 or None, got {max_samples_per_class}")
        names = dataset["train"].features["label"].names
        order = _class_order(names, class_order, seed)
        sizes = _task_sizes(len(names), num_tasks, classes_per_task, first_task_classes)
        if len(set(sizes[first_task_classes is not None :])) > 1:
            warnings.warn(
                f"{len(names)} classes do not divide evenly: the tasks have {', '.join(map(str, sizes))} classes.",
                stacklevel=2,
            )

        if 1 in sizes and len(names) > 1:
            warnings.warn(
                f"{sizes.count(1)} of {len(sizes)} tasks have only one class, so nothing is discriminated in them.",
                stacklevel=2,
            )

        loaded_with = dataset.arguments if isinstance(dataset, Splits) else {}
        self.arguments = {
            "dataset": IN_MEMORY,
            **loaded_with,
            "num_tasks": num_tasks,
            "classes_per_task": classes_per_task,
            "first_task_classes": first_task_classes,
            "class_order": class_order if isinstance(class_order, str) else [str(entry) for entry in class_order],
            "stream_seed": seed,
            "validation_fraction": validation_fraction,
            "max_samples_per_class": max_samples_per_class,
        }
        self.label_to_class_id = np.argsort(order)
        self._ordered_names = [names[label] for label in order]
        self._settings = {
            "source": dataset["train"].info.dataset_name,
            "class_order": class_order if isinstance(class_order, str) else "given",
            "seed": seed,
            "validation_fraction": validation_fraction,
            "max_samples_per_class": max_samples_per_class,
            "unreadable_images_left_out": len(dataset.unreadable) if isinstance(dataset, Splits) else 0,
        }
        self._dataset = dataset

        stops = np.cumsum(sizes)
        task_of_label = np.searchsorted(stops, self.label_to_class_id, side="right")
        train, validation = _rows_by_task(
            dataset["train"], "train", task_of_label, seed, max_samples_per_class, validation_fraction
        )
        test, _ = _rows_by_task(dataset["test"], "test", task_of_label, seed, max_samples_per_class, 0.0)
        self._tasks = [
            Task(
                index=index,
                class_ids=range(stop - size, stop),
                class_names=self._ordered_names[stop - size : stop],
                train=select_rows(dataset["train"], train[index]),
                validation=select_rows(dataset["train"], validation[index]) if validation_fraction else None,
                test=select_rows(dataset["test"], test[index]),
            )
            for index, (stop, size) in enumerate(zip(stops.tolist(), sizes, strict=True))
        ]

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index):
        """One task; for a slice, a stream of these tasks, which keep their indices and class ids."""
        if not isinstance(index, slice):
            return self._tasks[index]
        part = copy.copy(self)
        part._tasks = self._tasks[index]
        return part

    def split_list(self) -> str | None:
        """Content of a `split_file` with the split of this data set; None if it has a test split of its own.

        Its targets are the class ids, so it also defines the class order.
        """
        return self._dataset.split_list(self.label_to_class_id) if isinstance(self._dataset, Splits) else None

    @property
    def class_names(self) -> list[str]:
        """Names by class id, up to the last class of these tasks."""
        return self._ordered_names[: max((task.class_ids.stop for task in self), default=0)]

    @property
    def classes_per_task(self) -> list[int]:
        return [len(task.class_ids) for task in self]

    def digests(self, digest: Callable[[np.ndarray, np.ndarray], Any]) -> dict[str, list]:
        """Split -> digest of the images and class ids of each task; `digest` is, for example, [`ordered_digest`]."""
        digests: dict[str, list] = {split: [] for split in SPLITS}
        for task in self:
            for split, images in task.image_digests.items():
                view = getattr(task, split)
                class_ids = self.label_to_class_id[read_labels(view)] if view is not None else np.empty(0, np.int64)
                digests[split].append(digest(images, class_ids))
        return digests

    def describe(self) -> dict:
        """Settings and sizes of the stream in types of JSON; numbers of images are per task."""
        return {
            **self._settings,
            "num_tasks": len(self),
            "classes_per_task": self.classes_per_task,
            "class_names": self.class_names,
            "train": [len(task.train) for task in self],
            "validation": [len(task.validation) if task.validation else 0 for task in self],
            "test": [len(task.test) for task in self],
        }

    def __str__(self) -> str:
        about = self.describe()
        sizes = about["classes_per_task"]
        each = f"of {sizes[0]}" if len(set(sizes)) == 1 else f"of {', '.join(map(str, sizes))}"
        order = {
            "natural": "in natural order",
            "given": "in a given order",
            "seeded": f"in order of seed {about['seed']}",
        }
        images = ", ".join(f"{sum(about[split]):,} {split}" for split in ("train", "validation", "test"))
        limit = about["max_samples_per_class"]
        return (
            f"TaskStream over {about['source'] or 'a data set'}\n"
            f"  {sum(sizes)} classes {order[about['class_order']]}, {len(sizes)} tasks {each}\n"
            f"  images: {images}" + (f" (at most {limit} of a class)" if limit else "")
        )


def _class_order(names: list[str], class_order: str | Sequence[int] | Sequence[str], seed: int) -> np.ndarray:
    """Labels (C,) in class order."""
    if isinstance(class_order, str):
        if class_order == "natural":
            return np.arange(len(names))
        if class_order == "seeded":
            return np.random.RandomState(seed).permutation(len(names))
        raise ValueError(f"class_order must be natural, seeded, or a list of labels or names, got {class_order!r}")
    order = _labels_of(list(class_order), names)
    if sorted(order) != list(range(len(names))):
        raise ValueError(
            f"class_order must list each of the {len(names)} classes once; it has {len(order)} entries with "
            f"{len(set(order) & set(range(len(names))))} different classes"
        )
    return np.array(order)


def _labels_of(entries: list, names: list[str]) -> list[int]:
    """The label of each entry, which is a label or a class name; strings are read as names first."""
    label_of = {normalized_name(name): label for label, name in enumerate(names)}
    texts = [entry for entry in entries if isinstance(entry, str)]
    found = [
        normalized_name(text) if normalized_name(text) in label_of else normalized_name(text.strip()) for text in texts
    ]
    unknown = [text.strip() for text, name in zip(texts, found, strict=True) if name not in label_of]
    as_labels = [int(text) for text in texts if text.strip().isdecimal() and text.isascii()]
    if unknown and len(as_labels) == len(entries):
        return as_labels
    if unknown:
        raise ValueError(
            f"class_order has names that are not in the data: {listed(unknown)}; "
            "a name with a comma can be given as an entry of a list"
        )
    strange = [e for e in entries if not isinstance(e, str | numbers.Integral) or isinstance(e, bool)]
    if strange:
        raise ValueError(f"class_order has the entry {strange[0]!r}; expected labels or class names")
    names_left = iter(found)
    return [label_of[next(names_left)] if isinstance(entry, str) else int(entry) for entry in entries]


def _task_sizes(classes: int, num_tasks: int | None, classes_per_task: int | None, first: int | None) -> list[int]:
    """Number of classes in each task."""
    if first is not None and not 1 <= first <= classes:
        raise ValueError(f"first_task_classes must be from 1 to {classes}, the number of classes, got {first}")
    head = [] if first is None else [first]
    rest = classes - sum(head)
    if classes_per_task is None:
        num_tasks = 10 if num_tasks is None else num_tasks
        tail = num_tasks - len(head)
        if num_tasks < 1 or tail > rest or (rest and not tail):
            raise ValueError(
                f"{classes} classes{f', {first} of them in the first task,' if head else ''} cannot be divided into "
                f"{num_tasks} tasks; every task needs a class, and every class a task"
            )
        return head + [rest // tail + (index < rest % tail) for index in range(tail)]
    if classes_per_task < 1:
        raise ValueError(f"classes_per_task must be at least 1, got {classes_per_task}")
    sizes = head + [min(classes_per_task, rest - start) for start in range(0, rest, classes_per_task)]
    if num_tasks not in (None, len(sizes)):
        raise ValueError(
            f"{classes} classes make {len(sizes)} tasks with classes_per_task={classes_per_task}, not {num_tasks}; "
            "give only one of num_tasks and classes_per_task"
        )
    return sizes


def _rows_by_task(
    dataset: Dataset,
    split: str,
    task_of_label: np.ndarray,
    seed: int,
    max_samples_per_class: int | None,
    validation_fraction: float,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows of the split for each task in ascending order: those to use, and those for validation."""
    labels = read_labels(dataset)
    names = dataset.features["label"].names
    sizes = np.bincount(labels, minlength=len(names))
    empty = [name for name, size in zip(names, sizes, strict=True) if not size]
    if empty:
        raise ValueError(
            f"no {split} images of {len(empty)} classes: {listed(empty)}; add some, or remove the classes "
            "(drop_empty_classes leaves out those without any images)"
        )
    # one small code per row (its task; plus num_tasks for validation; 2 num_tasks if left out), sorted once
    num_tasks = int(task_of_label.max()) + 1
    code = task_of_label.astype(np.int16 if num_tasks < 2**14 else np.int32)[labels]
    if max_samples_per_class or validation_fraction:
        rank = rank_in_class(labels, np.random.default_rng(seed))
        kept = np.minimum(sizes, max_samples_per_class or sizes)
        if validation_fraction:
            single = [name for name, size in zip(names, kept, strict=True) if size < 2]
            if single:
                raise ValueError(
                    f"no validation images of {len(single)} classes with a single image: {listed(single)}; "
                    "add some, or do not pass validation_fraction"
                )
            code[rank < stratified_sizes(validation_fraction, kept)[labels]] += num_tasks
        code[rank >= kept[labels]] = 2 * num_tasks
        del rank
    del labels
    rows = np.argsort(code, kind="stable")
    groups = np.split(rows, np.cumsum(np.bincount(code, minlength=2 * num_tasks + 1))[:-1])
    return groups[:num_tasks], groups[num_tasks:-1]
