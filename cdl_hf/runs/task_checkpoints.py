"""Task checkpoints: what a model has learned after each task, saved for later runs, which can replay it."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from transformers import BaseImageProcessor

from ..arguments.config import CDLConfig
from ..data import TaskStream
from ..data.views import ordered_digest, unordered_digest
from ..evaluation import TaskCounts
from ..models import PromptViTConfig, PromptViTForImageClassification
from ..models.backbones import backbone_digest
from ..models.modeling_prompt_vit import LOGIT_SCALE
from ..utils import CHECKSUM, DamagedFile, atomic_write, seal, verify
from .checkpointing import load_trained_state, trained_state
from .output_cache import TeacherOutputCache

_CLASSIFIER = re.compile(rf"(kd_)?classifier\.|analytic\.|{LOGIT_SCALE}$")
_POOL = "prompt_pool."
_RANPAC = ("ranpac_width", "ranpac_ridge", "ranpac_layers", "ranpac_patch_means")
# How the classifiers of runs were computed that did not record it.
_EARLIER_HEAD = {
    "ranpac_ridge": "error",
    "ranpac_layers": 1,
    "ranpac_patch_means": False,
    "is_analytic": False,
    "is_compensated": False,
}
# What an image processor does to pixels.
PROCESSOR = ("size", "crop_size", "resample", "rescale_factor", "do_normalize", "image_mean", "image_std")
# What two runs must have in common for a model of one to serve in the other.
_STREAM = ("num_tasks", "classes_per_task", "class_names", "images")
_SPLITS = ("train", "validation", "test")


class TaskCheckpoints:
    """`states/<role>/` of a run: what a model has learned and its correct predictions, after every task.

    Args:
        run: Output folder of the run.
        role: `"teacher"` or `"student"`.
    """

    def __init__(self, run: Path, role: str):
        self.run, self.role = run, role

    def save(
        self,
        task: int,
        model: PromptViTForImageClassification,
        correct_counts: list[TaskCounts],
        metadata: dict[str, Any],
    ) -> None:
        """Writes the checkpoint of a task.

        Args:
            correct_counts: Of each task so far.
            metadata: Output of [`describe`].
        """
        values = {name: json.dumps(value) for name, value in {**metadata, "counts": correct_counts}.items()}
        state = {name: value.contiguous() for name, value in trained_state(model).items()}
        with atomic_write(self.path(task)) as file:
            file.write(seal(to_bytes(state, values)))

    def load(self, task: int, model: PromptViTForImageClassification, *, classifier: bool = True) -> None:
        """Loads the checkpoint of a task into `model`.

        Args:
            classifier: Whether to load a computed classifier as well.

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

    def correct_counts(self, task: int) -> list[TaskCounts]:
        """Counts of each task so far; those of version 0.3.0 have no more than `correct` and `total`."""
        return [TaskCounts(*counts) for counts in self.metadata(task)["counts"]]

    def metadata(self, task: int) -> dict[str, Any]:
        """What the checkpoint was saved with.

        Raises:
            DamagedFile: It is not what was saved.
        """
        verify(self.path(task))
        with safe_open(self.path(task), "pt") as file:
            return {name: json.loads(value) for name, value in file.metadata().items() if name != CHECKSUM}

    def has_prompts(self) -> bool:
        """Whether the model takes prompts, or a pool updates its weights."""
        with safe_open(self.path(0), "pt") as file:
            names = file.keys()
        return any(name.startswith(_POOL) for name in names)

    def digest(self) -> str:
        """SHA-256 over the checkpoints of all tasks, which identifies them wherever they are."""
        digest = hashlib.sha256()
        for path in sorted(self.path(0).parent.glob("task_*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def cached_outputs(self, task: int) -> TeacherOutputCache:
        """Where the outputs for the task's training images are, or may be written."""
        return TeacherOutputCache(self.path(task).with_suffix(""))

    def path(self, task: int) -> Path:
        return self.run / "states" / self.role / f"task_{task:03d}.safetensors"

    def is_joint(self, stream: Mapping[str, Any]) -> bool:
        """Whether they are of joint training: a teacher that has learned all classes of these tasks in one task.

        Otherwise there must be a checkpoint after each task. The images of the two runs are compared by their digests,
        not by where they are; a warning says where a run has no digests.

        Args:
            stream: Output of [`describe_stream`].

        Raises:
            ValueError: They are of neither kind, or damaged.
        """
        for task in range(stream["num_tasks"]):
            if not self.path(task).is_file():
                raise ValueError(
                    f"{self.role}_run has no {self.role} of task {task + 1}: {self.path(task)} is missing"
                )
            try:
                theirs = self.metadata(task)["stream"]
            except (DamagedFile, SafetensorError) as error:
                reason = error.reason if isinstance(error, DamagedFile) else error
                raise ValueError(f"{self.path(task)} of {self.role}_run is damaged: {reason}") from error
            if "images" not in theirs and task == 0:
                warnings.warn(
                    f"{self.run} is of a version that kept no digests of its images: whether its {self.role} has "
                    "learned the images of this run, and none of its test images, could not be compared",
                    stacklevel=2,
                )
            if self.role == "teacher" and stream["num_tasks"] > 1 and not _differing(theirs, _as_one_task(stream)):
                return True
            if differing := _differing(theirs, stream):
                raise ValueError(
                    f"the {self.role} of {self.run} has learned another stream ({differing}): take its data, tasks "
                    "and stream_seed"
                )
        return False


class TaskCheckpointReplay:
    """Loads an earlier run's task checkpoints into a model that is built alike, in place of its training.

    Args:
        checkpoints: Of the earlier run.
        model: The model to load into.
        metadata: What this run saves with the model's own checkpoints: see [`describe`].

    Attributes:
        is_joint: Whether they are of joint training: the model is the same in every task and knows all classes.
        head_epochs: Epochs that trained its heads, in that run or in one that it has replayed itself.
        lost_heads: Whether its heads are not there as they were trained in each task: they were aligned afterwards.
        reuses_predictions: Whether the classifier is loaded too, so that its predictions are those of the earlier run;
            otherwise this run computes another one.

    Raises:
        ValueError: The run has no such model, or not of all tasks, or it has learned something else.
    """

    def __init__(
        self, checkpoints: TaskCheckpoints, model: PromptViTForImageClassification, metadata: Mapping[str, Any]
    ):
        self.checkpoints, self.model, self.metadata = checkpoints, model, metadata
        role, run = checkpoints.role, checkpoints.run
        self.is_joint = checkpoints.is_joint(metadata["stream"])
        theirs = checkpoints.metadata(0)
        _check_prompts(checkpoints, model)
        ours = metadata["networks"], metadata["query_block"]
        if (theirs["networks"], theirs.get("query_block")) != ours:
            raise ValueError(
                f"the {role} of {run} was trained with other backbone weights or another query network: pass the same "
                "--teacher, --student and --query_block"
            )
        _check_settings(checkpoints, theirs, metadata)
        if not self.is_joint and theirs.get("train_tasks") != metadata["train_tasks"]:
            raise ValueError(
                f"the {role} of {run} was trained in other tasks: pass its --train_tasks, "
                f"{theirs.get('train_tasks') or 'which is unset'}"
            )
        self.lost_heads = not self.is_joint and theirs["head"]["aligned"]
        self.head_epochs = theirs.get("head_epochs", theirs["images"][1])
        self.has_untrained_heads = self.head_epochs == 0 and not theirs["head"]["aligned"]
        predicts_with_heads = metadata["head"]["head"] == "linear" and not metadata["head"]["aligned"]
        if self.has_untrained_heads and predicts_with_heads:
            raise ValueError(
                f"the heads of the {role} of {run} were not trained (num_train_epochs=0), and classifier=linear would "
                "predict with them: take classifier=ncm or ranpac, which are computed"
            )
        # What an analytic student predicts with depends on its teacher: it is always computed again.
        is_analytic = role == "student" and metadata["head"]["is_analytic"]
        self.reuses_predictions = not is_analytic and _what_predicts(theirs["head"]) == _what_predicts(
            metadata["head"]
        )
        if not self.reuses_predictions and theirs["head"]["aligned"]:
            raise ValueError(
                f"the heads of the {role} of {run} are aligned, and no longer as they were trained: take a run "
                "without classifier_alignment"
            )
        if self.is_joint and not self.reuses_predictions:
            raise ValueError(
                f"the {role} of {run} is a joint model and cannot be given another classifier: use its --classifier "
                "and --ranpac_* arguments, or a joint teacher that was trained with those of this run"
            )
        try:
            checkpoints.load(0, model, classifier=self.reuses_predictions)
        except ValueError as error:
            raise ValueError(f"the {role} of {run} is not the one configured here: {error}") from error
        for task in range(metadata["stream"]["num_tasks"]):
            if self._has_outputs(task):
                checkpoints.cached_outputs(task).open(*self._expected(task))  # damage is found before anything trains

    @property
    def has_counts(self) -> bool:
        """Whether the earlier run has evaluated these predictions on the tasks of this one."""
        return self.reuses_predictions and not self.is_joint

    @property
    def has_logits(self) -> bool:
        """Whether its cached outputs hold its logits, as they were in training, for all images of this run."""
        tasks = range(self.metadata["stream"]["num_tasks"])
        files = (self.checkpoints.cached_outputs(task).files["teacher_logits"] for task in tasks)
        return all(map(self._has_outputs, tasks)) and all(map(Path.is_file, files))

    @torch.no_grad()
    def load(self, task: int) -> None:
        """Loads the checkpoint of a task; of heads that this run aligns, only the rows of the newest classes."""
        heads = [head for head in (self.model.head, self.model.kd_head) if head is not None]
        rows = [tensor for head in heads for tensor in (head.weight, head.bias)]
        before = [tensor.clone() for tensor in rows]
        self.checkpoints.load(0 if self.is_joint else task, self.model, classifier=self.reuses_predictions)
        if self.metadata["head"]["aligned"] and not self.reuses_predictions:
            earlier = self.model.config.current_classes.start
            for tensor, aligned in zip(rows, before, strict=True):
                tensor[:earlier] = aligned[:earlier]

    def cached_outputs(self, task: int) -> dict[str, list[np.ndarray | None]]:
        """Its cached outputs for the task's training images, if there are any and they are of this run's images."""
        outputs = self.checkpoints.cached_outputs(task)
        return outputs.read(*self._expected(task)) if self._has_outputs(task) else {}

    def _has_outputs(self, task: int) -> bool:
        if self.is_joint:
            return False  # they are in the order of its one task
        return self.checkpoints.metadata(task)["images"] == self.metadata["images"]

    def _expected(self, task: int) -> tuple[int, int]:
        """Epochs and images of a task."""
        return self.metadata["images"][1], self.metadata["stream"]["train"][task]


def _check_prompts(checkpoints: TaskCheckpoints, model: PromptViTForImageClassification) -> None:
    """
    Raises:
        ValueError: One of the earlier run's model and this one takes prompts, and the other does not.
    """
    role, run, theirs = checkpoints.role, checkpoints.run, checkpoints.has_prompts()
    if theirs == any(name.startswith(_POOL) for name in trained_state(model)):
        return
    if theirs:
        without = " and no --teacher_prompt_method" if role == "teacher" else ""
        raise ValueError(f"the {role} of {run} has a prompt method: pass its --prompt_method{without}")
    option = "--teacher_prompt_method" if role == "teacher" else "--prompt_method"
    raise ValueError(f"the {role} of {run} takes no prompts: pass {option} none")


def _check_settings(checkpoints: TaskCheckpoints, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: The model sees other pixels here than there, or uses its prompts or heads otherwise.
    """
    role, run = checkpoints.role, checkpoints.run
    pixels = [metadata["images"][4] for metadata in (theirs, ours)]
    changed = [name for name in PROCESSOR if pixels[0].get(name) != pixels[1].get(name)]
    if changed:
        raise ValueError(
            f"the {role} of {run} has learned from images that were prepared otherwise ({', '.join(changed)}): pass "
            "the image size and the normalization of that run"
        )
    before = theirs.get("settings", ours["settings"])  # earlier versions did not record them
    changed = [
        f"{name} was {before.get(name)}, is now {value}"
        for name, value in ours["settings"].items()
        if before.get(name) != value
    ]
    if changed:
        raise ValueError(f"the {role} of {run} was trained with other settings: {', '.join(changed)}")


def _settings(config: PromptViTConfig) -> dict[str, Any]:
    """What changes a model's predictions without changing the shape of any weight."""
    names: list[str] = []
    if config.prompt_method != "none":
        names += ["prompt_method", "prompt_blocks"]
    names += {"l2p": ["top_k"], "dualprompt": ["g_prompt_blocks"]}.get(config.prompt_method, [])
    if config.kd_branch not in ("none", "analytic"):
        names += ["kd_branch", "kd_alpha", "kd_prompt_blocks"]
    return {name: getattr(config, name) for name in names}


def describe(
    model: PromptViTForImageClassification,
    stream: TaskStream,
    args: CDLConfig,
    image_processor: BaseImageProcessor,
) -> dict[str, Any]:
    """The metadata of a model's task checkpoints, by which another run knows whether they fit; values of JSON.

    `stream`, `networks` (weights and image sizes of the model's and of its query network), `settings` and `head`
    decide whether the model fits, `images` (which they are, their order, preparation and augmentation) whether its
    cached outputs do.
    """
    networks = [(each.module, each.image_size) for each in (model.network, model.query_network)]
    metadata = {
        "stream": describe_stream(stream),
        "train_tasks": model.config.train_tasks,
        "networks": [[backbone_digest(network), side, side] for network, side in networks],
        "query_block": model.config.query_block,
        "head_epochs": args.num_train_epochs,
        "settings": _settings(model.config),
        "head": {
            "head": model.config.head,
            **{name: getattr(model.config, name) for name in _RANPAC},
            "aligned": args.classifier_alignment,
            "is_analytic": model.config.kd_branch == "analytic",
            "is_compensated": args.drift_compensation and drifts(model.config),
        },
        "images": [
            *(args.seed, args.num_train_epochs, args.crop_scale, args.horizontal_flip, image_processor.to_dict()),
            stream.digests(ordered_digest)["train"],
        ],
    }
    return _as_read(metadata)


def drifts(config: PromptViTConfig) -> bool:
    """Whether a model's features change after its first task."""
    return config.prompt_method != "none" and config.num_trained_tasks > 1


def describe_stream(stream: TaskStream) -> dict[str, Any]:
    """The stream's part of [`describe`].

    `images` has a number for each split and task, which identifies its images and their classes in any order; joint
    training on several tasks has the sum.
    """
    about = stream.describe()
    del about["source"]  # the data may lie elsewhere by then
    return _as_read({**about, "images": stream.digests(unordered_digest)})


def _what_predicts(head: Mapping[str, Any]) -> dict[str, Any]:
    """The `head` of [`describe`], now or in an earlier version, without what the head does not have."""
    complete = {**_EARLIER_HEAD, **head}
    is_used = {name: head["head"] == "ranpac" or not name.startswith("ranpac_") for name in complete}
    return {name: value for name, value in complete.items() if is_used[name]}


def _as_read(metadata: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    return json.loads(json.dumps(metadata))


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """How two streams differ, in words; empty where they do not."""
    names = _STREAM if "images" in theirs else [name for name in ours if name in theirs]
    differing = [name for name in names if theirs.get(name) != ours.get(name)]
    if differing == ["images"]:
        splits = [split for split in _SPLITS if theirs["images"][split] != ours["images"][split]]
        return f"other {' and '.join(splits)} images"
    return f"other {', '.join(differing)}" if differing else ""


def _as_one_task(stream: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the stream with all its tasks in one."""
    one = {name: [sum(stream[name])] for name in ("classes_per_task", *_SPLITS)}
    images = {split: [sum(stream["images"][split]) % 2**64] for split in _SPLITS}
    return {**stream, **one, "images": images, "num_tasks": 1}
