"""What is learnt from: sources, streams of tasks, images."""

from .batches import Batches
from .dataset_error import DatasetError
from .decoding import open_image
from .images import TaskImages
from .sources import load_image_dataset, source_of
from .stream import Task, TaskStream
from .transforms import eval_transform, image_processor_for, train_transform

__all__ = [
    "Batches",
    "DatasetError",
    "Task",
    "TaskImages",
    "TaskStream",
    "image_processor_for",
    "load_image_dataset",
    "open_image",
    "source_of",
    "eval_transform",
    "train_transform",
]
