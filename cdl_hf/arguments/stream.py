"""The arguments of a data set and of the stream of its tasks; `config` has the others."""

from dataclasses import dataclass

from .roles import argument


@dataclass
class DatasetArguments:
    """The data set."""

    dataset: str = argument(
        "quickdraw100",
        "Name of a known data set, a folder of images, a table (Parquet, CSV ...), a saved data set, or a Hub name",
        in_label=True,
    )
    image_column: str | None = argument(None, "Column of the images", unset="found by its type")
    label_column: str | None = argument(None, "Column of the labels", unset="found by its type")
    domain_column: str | None = argument(
        None,
        "Column of the domains, each of which becomes a task; for a folder of images, a name for the folders above "
        "those of the classes",
        unset="tasks of classes",
    )
    train_split: str | None = argument(None, "Split, or its folder, to train on", unset="found by its name")
    test_split: str | None = argument(
        None,
        "Split, or its folder, to test on; with the name of train_split, a share of it is held out",
        unset="found by its name",
    )
    test_fraction: float = argument(
        0.2, "Share of each class that is held out when there is no test split", min=0, max=1
    )
    split_file: str | None = argument(
        None,
        "YAML list of the training images (data: paths; targets: class numbers), such as a run writes; the other "
        "images are for the test",
        is_path=True,
    )
    skip_unreadable_images: bool = argument(False, "Leave out images that cannot be read, instead of stopping")
    drop_empty_classes: bool = argument(False, "Leave out classes of a ClassLabel that have no images at all")


@dataclass
class StreamArguments(DatasetArguments):
    """The stream of tasks."""

    num_tasks: int | None = argument(
        None, "Number of tasks", unset="from classes_per_task, else 10", min=1, in_label=True
    )
    classes_per_task: int | None = argument(
        None, "Number of classes of a task, instead of num_tasks", min=1, in_label=True
    )
    first_task_classes: int | None = argument(
        None, "Number of classes of the first task", unset="as of the others", min=1, in_label=True
    )
    class_order: str | list[str] = argument(
        "natural",
        "Order of the classes: natural, seeded (drawn with stream_seed), split_file (by the targets of that list), or "
        "all class names or labels, separated by commas, or as a list where names have commas; entries that are all "
        "names are read as names",
        in_label=True,
    )
    domain_order: str | list[str] = argument(
        "natural", "Order of the domains: natural, or all their names, separated by commas or as a list"
    )
    disjoint_class_ratio: float | None = argument(
        None,
        "Blurry stream (Si-Blurry): share of the classes that come in one task only, with blurry_sample_ratio",
        unset="no blurry stream",
        min=0,
        max=1,
    )
    blurry_sample_ratio: float | None = argument(
        None,
        "Blurry stream: share of the other classes' training images that are in random tasks",
        unset="no blurry stream",
        min=0,
        max=1,
    )
    stream_seed: int = argument(
        0,
        "Seed of the class order and of which images are held out or kept: runs with other seeds share a stream",
        min=0,
        in_label=True,
    )
    validation_fraction: float = argument(
        0.0, "Share of each class's training images to hold out; the run then tests on them instead", min=0, max=0.9
    )
    max_samples_per_class: int | None = argument(
        None, "Maximum number of images of a class, for a quick look", unset="all", min=1
    )
