"""The order of a stream's classes, and how many of them each task has."""

import numbers
from collections.abc import Sequence

import numpy as np

from .errors import listed
from .labels import normalized_name


def class_order_of(names: list[str], class_order: str | Sequence[int] | Sequence[str], seed: int) -> np.ndarray:
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


def task_sizes(classes: int, num_tasks: int | None, classes_per_task: int | None, first: int | None) -> list[int]:
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
