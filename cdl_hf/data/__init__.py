"""Data sets, streams of tasks, and the images of a task."""

from .decoding import open_image
from .errors import DatasetError
from .loading import load_image_dataset
from .sources import DATASETS, DatasetSpec, dataset_spec
from .stream import Task, TaskStream
from .task_images import Batches, TaskImages, unlabeled_images
from .transforms import eval_transform, image_processor_for, train_transform

__all__ = [
    "DATASETS",
    "Batches",
    "DatasetError",
    "DatasetSpec",
    "Task",
    "TaskImages",
    "TaskStream",
    "dataset_spec",
    "eval_transform",
    "image_processor_for",
    "load_image_dataset",
    "open_image",
    "train_transform",
    "unlabeled_images",
]
