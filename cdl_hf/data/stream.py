"""Streams of tasks: the classes of each task, and its images as views on the data set."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from .assignments import LEFT_OUT, Assignment, blurry, by_class, by_domain
from .class_order import class_order_of, task_sizes
from .domains import DOMAIN
from .errors import listed
from .labels import complete_labels, rank_in_class, read_labels, stratified_sizes
from .splits import Splits
from .views import image_digests, select_rows

SPLITS = ("train", "validation", "test")
IN_MEMORY = "in-memory"  # in place of the name of a data set that `load_image_dataset` has not loaded


@dataclass(frozen=True)
class Task:
    """The classes of one task, and its images.

    Attributes:
        index: position in the stream, from 0.
        class_ids: positions of the classes in the class order and in the logits of a classifier. Where classes come
            again, those of its classes that no earlier task has.
        class_names: their names, in the order of `class_ids`.
        train, validation, test: index-only views with columns `image` and `label` (label of the data set, not class
            id); `validation` is None if the stream has no validation images.
        domain: name of its domain, in a stream of domains.
    """

    index: int
    class_ids: range
    class_names: list[str]
    train: Dataset
    validation: Dataset | None
    test: Dataset
    domain: str | None = None

    @cached_property
    def image_digests(self) -> dict[str, np.ndarray]:
        """Split -> digests of its images (n,), see [`image_digests`]; reads parts of all files."""
        return {
            split: np.empty(0, np.uint64) if (view := getattr(self, split)) is None else image_digests(view)
            for split in SPLITS
        }


class TaskStream(Sequence[Task]):
    """The tasks of a class-incremental or domain-incremental stream; equal on every process.

    They do not depend on global random states. A data set with a column `domain` makes a stream of domains: each
    domain is a task, and its classes may come again in others.

    Args:
        dataset: splits `train` and `test` with a ClassLabel column `label`, as `load_image_dataset` returns.
        num_tasks: number of tasks; 10 if neither this nor `classes_per_task` is given. If it does not divide the
            number of classes, the first tasks have one class more than the others, with a warning.
        classes_per_task: number of classes per task, instead of `num_tasks`; the last task has the remaining ones.
            In a stream of domains, each domain is divided into tasks of so many classes.
        first_task_classes: number of classes of the first task, if it differs from the others.
        class_order: "natural" (order of the labels), "seeded" (permuted by `seed` with numpy's legacy generator, as in
            published orders: 1993 gives the usual 68, 56, 78, ...), or a list of all labels or all class names.
            Strings are names if all of them are class names, and labels if all are numbers. In a stream of domains it
            orders the classes that first come in the same task.
        domain_order: "natural" (order of the ClassLabel; alphabetical for names in other columns), or a list of all
            domains.
        disjoint_class_ratio, blurry_sample_ratio: shares between 0 and 1, both or none: tasks with blurry boundaries,
            see [`blurry`]. `num_tasks` is then the only other argument that makes tasks.
        seed: seed of the class order, the validation images, and the images kept by `max_samples_per_class`.
        validation_fraction: fraction of each class's training images that becomes `Task.validation`.
        max_samples_per_class: maximum number of training and of test images per class, for quick experiments. In a
            stream of domains these two count the images of each class and task.

    Attributes:
        label_to_class_id: class id of each of the data set's labels, (C,) integers.
        arguments: what the data set and the stream were made with, by the names of the command-line arguments.

    Raises:
        ValueError: there are more tasks than classes, task sizes that do not add up, an order that is not a
            permutation, images without labels, classes without images for training, validation or testing, or
            domains without test images.
    """

    def __init__(
        self,
        dataset: DatasetDict,
        num_tasks: int | None = None,
        *,
        classes_per_task: int | None = None,
        first_task_classes: int | None = None,
        class_order: str | Sequence[int] | Sequence[str] = "natural",
        domain_order: str | Sequence[str] = "natural",
        disjoint_class_ratio: float | None = None,
        blurry_sample_ratio: float | None = None,
        seed: int = 0,
        validation_fraction: float = 0.0,
        max_samples_per_class: int | None = None,
    ):
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")
        if max_samples_per_class is not None and max_samples_per_class < 1:
            raise ValueError(f"max_samples_per_class must be at least 1 or None, got {max_samples_per_class}")
        names = dataset["train"].features["label"].names
        labels = {split: complete_labels(dataset[split], split) for split in ("train", "test")}
        order = class_order_of(names, class_order, seed)
        if (disjoint_class_ratio is None) != (blurry_sample_ratio is None):
            raise ValueError("disjoint_class_ratio and blurry_sample_ratio make a blurry stream together: give both")
        if disjoint_class_ratio is not None and blurry_sample_ratio is not None:
            if DOMAIN in dataset["train"].column_names or classes_per_task or first_task_classes:
                raise ValueError(
                    "a blurry stream draws the tasks of its classes: it goes with num_tasks, and not with "
                    "domain_column, classes_per_task or first_task_classes"
                )
            assigned = blurry(labels, order, num_tasks or 10, disjoint_class_ratio, blurry_sample_ratio, seed)
        elif DOMAIN in dataset["train"].column_names:
            if num_tasks not in (None, 1) or first_task_classes is not None:
                raise ValueError(
                    "each domain is a task, so num_tasks and first_task_classes do not go with domain_column, except "
                    "num_tasks=1 for joint training; classes_per_task makes several tasks of each domain"
                )
            assigned = by_domain(dataset, order, domain_order, classes_per_task)
            assigned = assigned.at_once() if num_tasks == 1 else assigned
        elif domain_order != "natural":
            raise ValueError("domain_order needs domain_column: this data set has no domains")
        else:
            sizes = task_sizes(len(names), num_tasks, classes_per_task, first_task_classes)
            _warn_of_sizes(sizes, first_task_classes is not None)
            assigned = by_class(labels, order, sizes)

        loaded_with = dataset.arguments if isinstance(dataset, Splits) else {}
        self.arguments = {
            "dataset": IN_MEMORY,
            **loaded_with,
            "num_tasks": num_tasks,
            "classes_per_task": classes_per_task,
            "first_task_classes": first_task_classes,
            "class_order": class_order if isinstance(class_order, str) else [str(entry) for entry in class_order],
            "domain_order": domain_order if isinstance(domain_order, str) else [str(entry) for entry in domain_order],
            "disjoint_class_ratio": disjoint_class_ratio,
            "blurry_sample_ratio": blurry_sample_ratio,
            "stream_seed": seed,
            "validation_fraction": validation_fraction,
            "max_samples_per_class": max_samples_per_class,
        }
        self.label_to_class_id = np.argsort(assigned.order)
        self._ordered_names = [names[label] for label in assigned.order]
        self._settings: dict[str, Any] = {
            "source": dataset["train"].info.dataset_name,
            "class_order": class_order if isinstance(class_order, str) else "given",
            "seed": seed,
            "validation_fraction": validation_fraction,
            "max_samples_per_class": max_samples_per_class,
            "unreadable_images_left_out": len(dataset.unreadable) if isinstance(dataset, Splits) else 0,
        }
        if disjoint_class_ratio is not None:
            self._settings["blurry"] = {
                "disjoint_class_ratio": disjoint_class_ratio,
                "blurry_sample_ratio": blurry_sample_ratio,
                "task_of_class": assigned.tasks_of_classes(labels["test"], "test").tolist(),
            }
        self._dataset = dataset
        self._repeats_classes = assigned.repeats_classes

        train, validation = _rows_by_task(
            labels["train"], "train", names, assigned, seed, max_samples_per_class, validation_fraction
        )
        test, _ = _rows_by_task(labels["test"], "test", names, assigned, seed, max_samples_per_class, 0.0)
        stops = np.cumsum(assigned.sizes).tolist()
        self._tasks = [
            Task(
                index=index,
                class_ids=range(stop - size, stop),
                class_names=self._ordered_names[stop - size : stop],
                train=select_rows(dataset["train"], train[index]),
                validation=select_rows(dataset["train"], validation[index]) if validation_fraction else None,
                test=select_rows(dataset["test"], test[index]),
                domain=assigned.domains[index] if assigned.domains else None,
            )
            for index, (stop, size) in enumerate(zip(stops, assigned.sizes, strict=True))
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
        """Number of classes of each task that no earlier task has."""
        return [len(task.class_ids) for task in self]

    @property
    def domains(self) -> list[str] | None:
        """Domain of each task; None in a stream without domains."""
        domains = [task.domain for task in self if task.domain is not None]
        return domains or None

    @property
    def repeats_classes(self) -> bool:
        """Whether classes may come again in later tasks."""
        return self._repeats_classes

    @property
    def task_of_class(self) -> list[int] | None:
        """Task of the images of each class that are tested on, (C,) by class id; the validation images where there are
        some. `None` where a class may have such images in several tasks."""
        if not self.repeats_classes:
            return [task.index for task in self for _ in task.class_ids]
        if "blurry" in self._settings and self[0].validation is None:
            return self._settings["blurry"]["task_of_class"]
        return None

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
            **({} if self.domains is None else {"domains": self.domains}),
            "train": [len(task.train) for task in self],
            "validation": [len(task.validation) if task.validation else 0 for task in self],
            "test": [len(task.test) for task in self],
        }

    def __str__(self) -> str:
        about = self.describe()
        sizes = about["classes_per_task"]
        each = f"of {sizes[0]}" if len(set(sizes)) == 1 else f"of {', '.join(map(str, sizes))}"
        if self.domains is not None:
            each = f"of the domains {listed(self.domains, 10)}"
        elif self.repeats_classes:
            each = f"with blurry boundaries and {', '.join(map(str, sizes))} new classes"
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


def _warn_of_sizes(sizes: list[int], first_is_given: bool) -> None:
    if len(set(sizes[first_is_given:])) > 1:
        warnings.warn(
            f"{sum(sizes)} classes do not divide evenly: the tasks have {', '.join(map(str, sizes))} classes.",
            stacklevel=3,
        )
    if 1 in sizes and sum(sizes) > 1:
        warnings.warn(
            f"{sizes.count(1)} of {len(sizes)} tasks have only one class, so nothing is discriminated in them.",
            stacklevel=3,
        )


def _rows_by_task(
    labels: np.ndarray,
    split: str,
    names: list[str],
    assigned: Assignment,
    seed: int,
    max_samples_per_class: int | None,
    validation_fraction: float,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows of the split for each task in ascending order: those to use, and those for validation."""
    # one small code per row (its task; plus num_tasks for validation; 2 num_tasks if left out), sorted once
    num_tasks = len(assigned.sizes)
    code = assigned.tasks[split].copy()
    if max_samples_per_class or validation_fraction:
        # the images of a class, or of a class in a task, among which some are chosen
        cells = labels if assigned.domains is None else labels * num_tasks + np.maximum(code, 0)
        rank = rank_in_class(cells, np.random.default_rng(seed))
        sizes = np.bincount(cells)
        kept = np.minimum(sizes, max_samples_per_class or sizes)
        if validation_fraction:
            single = [name for name, size in zip(names, kept, strict=False) if size < 2] if cells is labels else []
            if single:
                raise ValueError(
                    f"no validation images of {len(single)} classes with a single image: {listed(single)}; "
                    "add some, or do not pass validation_fraction"
                )
            code[(rank < stratified_sizes(validation_fraction, kept)[cells]) & (code != LEFT_OUT)] += num_tasks
        code[rank >= kept[cells]] = LEFT_OUT
        del rank, cells
    code[code == LEFT_OUT] = 2 * num_tasks
    rows = np.argsort(code, kind="stable")
    groups = np.split(rows, np.cumsum(np.bincount(code, minlength=2 * num_tasks + 1))[:-1])
    if validation_fraction and (empty := [str(i + 1) for i, rows in enumerate(groups[num_tasks:-1]) if not len(rows)]):
        raise ValueError(
            f"no validation images in task {listed(empty)}, whose classes have one training image each: add some, or "
            "do not pass validation_fraction"
        )
    return groups[:num_tasks], groups[num_tasks:-1]
