"""What is learnt from: sources, streams of tasks, images."""

from .batches import Batches
from .decoding import open_image
from .images import TaskImages
from .source_error import SourceError
from .sources import load_source, source_of
from .stream import Task, TaskStream
from .transforms import image_processor_for, test_transform, train_transform

__all__ = [
    "Batches",
    "SourceError",
    "Task",
    "TaskImages",
    "TaskStream",
    "image_processor_for",
    "load_source",
    "open_image",
    "source_of",
    "test_transform",
    "train_transform",
]
