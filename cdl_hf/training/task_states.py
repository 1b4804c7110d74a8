"""What a run leaves of a model after each task, from which other runs can take a teacher."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from transformers import BaseImageProcessor

from ..data import TaskStream
from ..data.image_digests import ordered_digest, unordered_digest
from ..models import PromptViTForImageClassification
from ..models.backbones import backbone_digest
from ..utils import CHECKSUM, atomic_write, seal, verify
from .answers import TeacherAnswers
from .arguments import TrainingArguments
from .checkpointing import load_trained_state, trained_state

Counts = list[tuple[int, int]]
_CLASSIFIER = re.compile(r"(kd_)?classifier\.")


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
            about: Output of [`describe`].
        """
        metadata = {name: json.dumps(value) for name, value in {**about, "counts": counts}.items()}
        state = {name: value.contiguous() for name, value in trained_state(model).items()}
        with atomic_write(self.path(task)) as file:
            file.write(seal(to_bytes(state, metadata)))

    def load(self, task: int, model: PromptViTForImageClassification, *, classifier: bool = True) -> None:
        """Puts the state after a task into `model`.

        Args:
            classifier: Whether that of a classifier which predicts in place of the heads is taken too.

        Raises:
            ValueError: It is of another model.
            DamagedFile: It is not what was saved.
        """
        verify(self.path(task))
        state = load_file(self.path(task))
        if not classifier:
            own = trained_state(model, statistics=True)
            own = {name: value for name, value in own.items() if _CLASSIFIER.match(name)}
            state = {name: value for name, value in state.items() if not _CLASSIFIER.match(name)} | own
        load_trained_state(model, state)

    def counts(self, task: int) -> Counts:
        """(right, all) test images of each task so far."""
        return [tuple(count) for count in self.about(task)["counts"]]

    def about(self, task: int) -> dict[str, Any]:
        """What the state was saved with.

        Raises:
            DamagedFile: It is not what was saved.
        """
        verify(self.path(task))
        with safe_open(self.path(task), "pt") as file:
            return {name: json.loads(value) for name, value in file.metadata().items() if name != CHECKSUM}

    def digest(self) -> str:
        """SHA-256 over the states of all tasks, by which a run knows what it has taken, wherever it lies."""
        digest = hashlib.sha256()
        for path in sorted(self.path(0).parent.glob("task_*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def answers(self, task: int) -> TeacherAnswers:
        """Where the answers to the task's training images are, or may be written."""
        return TeacherAnswers(self.path(task).with_suffix(""))

    def path(self, task: int) -> Path:
        return self.run / "states" / self.role / f"task_{task:03d}.safetensors"


def describe(
    model: PromptViTForImageClassification,
    stream: TaskStream,
    args: TrainingArguments,
    image_processor: BaseImageProcessor,
) -> dict[str, Any]:
    """What a run leaves with a model's states, so that another run can tell whether they fit; values of JSON.

    `stream`, `networks` (weights and image sizes of the model's and of its query network) and `head` decide whether
    the model fits, `images` (which they are, in which order, and what is done with them) whether its answers do.
    """
    networks = (model.backbone, model.query_backbone or model.backbone)
    about = {
        "stream": describe_stream(stream),
        "networks": [[backbone_digest(network), *network.patch_embed.img_size] for network in networks],
        "head": {
            "head": model.config.head,
            "ranpac_width": model.config.ranpac_width,
            "aligned": args.classifier_alignment,
        },
        "images": [
            *(args.seed, args.num_epochs, args.crop_scale, args.horizontal_flip, image_processor.to_dict()),
            stream.digests(ordered_digest)["train"],
        ],
    }
    return _as_read(about)


def describe_stream(stream: TaskStream) -> dict[str, Any]:
    """The stream's part of [`describe`].

    `images` has a number for each split and task, which says which images of which classes they are, in any order:
    those of several tasks at once have the sum.
    """
    about = stream.describe()
    del about["source"]  # the data may lie elsewhere by then
    return _as_read({**about, "images": stream.digests(unordered_digest)})


def _as_read(about: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(about))
