"""Which task each image of a stream belongs to: by its class, by its domain, or with blurry boundaries."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import DatasetDict

from .domains import DOMAIN, read_domains
from .errors import listed
from .labels import normalized_name, rank_in_class, read_labels

LEFT_OUT = -1  # task of an image that no task has


@dataclass(frozen=True)
class Assignment:
    """The tasks of a stream.

    Attributes:
        order: labels (C,) in class order, in which the classes of a task precede those that come first in later tasks.
        sizes: number of classes of each task that no earlier task has.
        tasks: split -> task of each image, (n,) integers, or `LEFT_OUT`.
        domains: domain of each task, if the tasks are made of domains.
        repeats_classes: whether classes may come again in later tasks.
    """

    order: np.ndarray
    sizes: list[int]
    tasks: dict[str, np.ndarray]
    domains: list[str] | None = None
    repeats_classes: bool = False

    def tasks_of_classes(self, labels: np.ndarray, split: str) -> np.ndarray:
        """Task of the images of each class, (C,) by class id, where all images of a class are in one task.

        Args:
            labels: labels of the images of the split, (n,).
        """
        task_of_label = np.empty(len(self.order), np.int64)
        task_of_label[labels] = self.tasks[split]
        return task_of_label[self.order]

    def at_once(self) -> "Assignment":
        """The same images and class order in a single task, for joint training."""
        tasks = {split: np.where(each == LEFT_OUT, each, 0) for split, each in self.tasks.items()}
        return Assignment(self.order, [len(self.order)], tasks)


def by_class(labels: dict[str, np.ndarray], order: np.ndarray, sizes: list[int]) -> Assignment:
    """Each class in one task.

    Args:
        labels: split -> labels of its images, (n,).
        order: labels (C,) in class order.
        sizes: number of classes of each task; they add up to C.
    """
    task_of_label = np.searchsorted(np.cumsum(sizes), np.argsort(order), side="right")
    # one small number per image, because there may be ten million
    task_of_label = task_of_label.astype(np.int16 if len(sizes) < 2**14 else np.int32)
    return Assignment(order, sizes, {split: task_of_label[each] for split, each in labels.items()})


def by_domain(
    dataset: DatasetDict, order: np.ndarray, domain_order: str | Sequence[str], classes_per_task: int | None
) -> Assignment:
    """Each domain a task, or, with `classes_per_task`, several tasks of classes one after the other.

    A class may come in many tasks. The class order is the given one among the classes that first come in the same
    task. Test images of classes that are not trained before or in their task are left out, with a warning.

    Args:
        dataset: splits with columns `label` and `domain`, both ClassLabel.
        order: labels (C,) in class order.
        domain_order: "natural" (order of the ClassLabel), or the names of all domains.
        classes_per_task: maximum number of classes of a task.

    Raises:
        ValueError: the order does not list each domain once, or a task has no test images.
    """
    names = dataset["train"].features[DOMAIN].names
    domains = _domain_order(names, domain_order)
    groups = -(-len(order) // classes_per_task) if classes_per_task else 1
    group_of_label = np.argsort(order) // (classes_per_task or len(order))
    labels = {split: read_labels(each) for split, each in dataset.items()}
    tasks = {
        split: np.argsort(domains)[read_domains(each)] * groups + group_of_label[labels[split]]
        for split, each in dataset.items()
    }
    trained = np.unique(tasks["train"])  # a domain need not have all classes
    numbers = np.full(len(names) * groups, LEFT_OUT)
    numbers[trained] = np.arange(len(trained))
    tasks = {split: numbers[each].astype(np.int32) for split, each in tasks.items()}
    order, sizes = _by_first_task(order, labels["train"], tasks["train"], len(trained))
    first = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(order)]
    unknown = (tasks["test"] != LEFT_OUT) & (tasks["test"] < first[labels["test"]])
    tasks["test"][unknown] = LEFT_OUT
    if left_out := int((tasks["test"] == LEFT_OUT).sum()):
        warnings.warn(
            f"Left out {left_out:,} test images of classes that have no training images in their domain or before it.",
            stacklevel=3,
        )
    of_tasks = [names[domains[task // groups]] for task in trained]
    if empty := [
        of_tasks[task]
        for task in np.flatnonzero(np.bincount(tasks["test"][tasks["test"] >= 0], minlength=len(trained)) == 0)
    ]:
        raise ValueError(
            f"no test images of the domains {listed(empty)}: add some, or leave out their training images"
        )
    return Assignment(order, sizes, tasks, of_tasks, repeats_classes=True)


def blurry(
    labels: dict[str, np.ndarray],
    order: np.ndarray,
    num_tasks: int,
    disjoint_class_ratio: float,
    blurry_sample_ratio: float,
    seed: int,
) -> Assignment:
    """Tasks without clear boundaries, in the manner of Si-Blurry (arXiv 2308.09303).

    Each class has a task, drawn at random, so that tasks have different numbers of classes, but each at least one. All
    training images of a disjoint class are in its task. Of the images of all other classes, the blurry ones, a share
    is drawn and each of these is in a random task; at least one image of each class stays in the task of its class.
    Test images are in the task of their class, whose accuracy is that of these classes.

    Args:
        labels: split -> labels of its images, (n,).
        order: labels (C,) in class order; it decides among classes that first come in the same task.
        disjoint_class_ratio: share of the classes that are disjoint.
        blurry_sample_ratio: share of the training images of the blurry classes that are in random tasks.
        seed: seed of all that is drawn.

    Raises:
        ValueError: a ratio is not between 0 and 1, or there are more tasks than classes.
    """
    for name, ratio in (
        ("disjoint_class_ratio", disjoint_class_ratio),
        ("blurry_sample_ratio", blurry_sample_ratio),
    ):
        if not 0 <= ratio <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {ratio}")
    if not 1 <= num_tasks <= len(order):
        raise ValueError(f"{len(order)} classes cannot be divided into {num_tasks} tasks; every task needs a class")
    rng = np.random.default_rng([seed, 1])
    task_of_label = np.empty(len(order), np.int32)
    drawn = rng.permutation(len(order))
    task_of_label[drawn] = np.r_[np.arange(num_tasks), rng.integers(num_tasks, size=len(order) - num_tasks)]
    is_blurry = np.ones(len(order), bool)
    is_blurry[rng.permutation(len(order))[: round(disjoint_class_ratio * len(order))]] = False
    tasks = {split: task_of_label[each] for split, each in labels.items()}
    may_move = np.flatnonzero(is_blurry[labels["train"]] & (rank_in_class(labels["train"], rng) > 0))
    moved = rng.permutation(may_move)[: round(blurry_sample_ratio * int(is_blurry[labels["train"]].sum()))]
    tasks["train"][moved] = rng.integers(num_tasks, size=len(moved))
    order, sizes = _by_first_task(order, labels["train"], tasks["train"], num_tasks)
    return Assignment(order, sizes, tasks, repeats_classes=True)


def _domain_order(names: list[str], domain_order: str | Sequence[str]) -> np.ndarray:
    """Domains (D,) in the order of their tasks.

    Raises:
        ValueError: an entry is missing, unknown or repeated.
    """
    if domain_order == "natural":
        return np.arange(len(names))
    given = [
        normalized_name(str(name)).strip()
        for name in ([domain_order] if isinstance(domain_order, str) else domain_order)
    ]
    if sorted(given) != sorted(names):
        raise ValueError(f"domain_order must list each domain once ({listed(names)}), got {listed(given)}")
    return np.array([names.index(name) for name in given])


def _by_first_task(
    order: np.ndarray, labels: np.ndarray, tasks: np.ndarray, num_tasks: int
) -> tuple[np.ndarray, list[int]]:
    """The order (C,) with classes of earlier first tasks before others, and how many first come in each task."""
    first = np.full(len(order), num_tasks - 1)
    np.minimum.at(first, labels, tasks)
    return order[np.argsort(first[order], kind="stable")], np.bincount(first, minlength=num_tasks).tolist()
