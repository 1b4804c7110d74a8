"""What a run leaves of a model after each task, from which other runs can take a teacher."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..models import PromptViTForImageClassification
from .answers import TeacherAnswers
from .checkpointing import load_trained_state, trained_state

Counts = list[tuple[int, int]]


class TaskStates:
    """`states/<role>/` of a run: learnt state, and right answers on each task so far, after every task.

    Args:
        run: Output folder of the run.
        role: `"teacher"` or `"student"`.
    """

    def __init__(self, run: Path, role: str):
        self.run, self.role = run, role

    def save(self, task: int, model: PromptViTForImageClassification, counts: Counts, about: dict[str, Any]) -> None:
        """Writes the state after a task.

        Args:
            counts: (right, all) test images of each task so far.
            about: What another run must have in common with this one, by name.
        """
        path = self.path(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        metadata = {"counts": json.dumps(counts), **{name: digest(value) for name, value in about.items()}}
        save_file({k: v.contiguous() for k, v in trained_state(model).items()}, unfinished, metadata)
        unfinished.replace(path)

    def load(self, task: int, model: PromptViTForImageClassification) -> None:
        """Puts the state after a task into `model`.

        Raises:
            ValueError: It is of another model.
        """
        load_trained_state(model, load_file(self.path(task)))

    def counts(self, task: int) -> Counts:
        """(right, all) test images of each task so far."""
        return [tuple(count) for count in json.loads(self._metadata(task)["counts"])]

    def agrees(self, task: int, name: str, value: Any) -> bool:
        """Whether the run that saved the state had this value of what it was saved with under `name`."""
        return self._metadata(task)[name] == digest(value)

    def answers(self, task: int) -> TeacherAnswers:
        """Where the answers to the task's training images are, or may be written."""
        return TeacherAnswers(self.path(task).with_suffix(""))

    def path(self, task: int) -> Path:
        return self.run / "states" / self.role / f"task_{task:03d}.safetensors"

    def _metadata(self, task: int) -> dict[str, str]:
        with safe_open(self.path(task), "pt") as file:
            return file.metadata()


def digest(value: Any) -> str:
    """SHA-256 of a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
