"""What is learnt from: sources, streams of tasks, images."""

from .images import TaskImages
from .sources import SOURCES, SourceError, load_source
from .stream import Task, TaskStream
from .transforms import image_processor_for, test_transform, train_transform

__all__ = [
    "SOURCES",
    "SourceError",
    "Task",
    "TaskImages",
    "TaskStream",
    "image_processor_for",
    "load_source",
    "test_transform",
    "train_transform",
]
