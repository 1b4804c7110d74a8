"""A data set's images in the columns of a model that has learnt its classes, or some of them."""

import numpy as np
from datasets import Dataset, concatenate_datasets

from .images import TaskImages
from .labels import one_name, read_labels
from .transforms import EvalTransform
from .views import select_rows


def known_classes(
    views: list[Dataset], class_names: list[str], transform: EvalTransform
) -> tuple[TaskImages, str | None]:
    """The images whose classes the model knows, and a sentence on the others, if there are any.

    Args:
        views: columns `image` and `label`, all with the same ClassLabel.
        class_names: names of the model's classes, by column; classes are matched by them.
        transform: of the model's image processor.

    Raises:
        ValueError: the model knows none of the classes.
    """
    names = views[0].features["label"].names
    column_of = {one_name(name): column for column, name in enumerate(class_names)}
    columns = np.array([column_of.get(one_name(name), -1) for name in names])
    view = concatenate_datasets(views)
    known = columns[read_labels(view)] >= 0
    dropped = int((~known).sum())
    if not known.any():
        raise ValueError(
            f"the model knows none of the data set's classes, which are {_listed(names)}; "
            f"it knows {_listed(class_names)}"
        )
    unknown = [name for name in names if one_name(name) not in column_of]
    left_out = f"{dropped:,} images of classes that the model has not seen are left out: {_listed(unknown)}"
    images = TaskImages(select_rows(view, np.flatnonzero(known)), columns, transform)
    return images, left_out if dropped else None


def _listed(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
