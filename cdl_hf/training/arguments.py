"""The arguments of a run. Their defaults are the bundled example's; YAML presets hold those of other data sets.

Only the standard library is imported, so that `--help` answers at once.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal


def _argument(default, help: str, **more):
    metadata = {"help": help, **more}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DatasetArguments:
    """The data set."""

    dataset: str = _argument(
        "quickdraw100",
        "Name of a known data set, a folder of images, a table (Parquet, CSV ...), a saved data set, or a Hub name",
    )
    image_column: str | None = _argument(None, "Column of the images; found by its type if not given")
    label_column: str | None = _argument(None, "Column of the labels; found by its type if not given")
    train_split: str | None = _argument(None, "Split, or its folder, to learn from; found by its name if not given")
    test_split: str | None = _argument(
        None, "The same to test on; train_split's own name holds a share of it out; found by its name if not given"
    )
    test_fraction: float = _argument(0.2, "Share of each class held out when there is no test split", min=0, max=1)
    split_file: str | None = _argument(
        None,
        "YAML list of the training images (data: paths; targets: numbers of their classes), the others being for the "
        "test: such as a run has left",
    )
    skip_unreadable_images: bool = _argument(False, "Leave out images that cannot be read, instead of stopping")
    drop_empty_classes: bool = _argument(False, "Leave out classes of a ClassLabel that have no images at all")


@dataclass
class StreamArguments(DatasetArguments):
    """The stream of tasks."""

    num_tasks: int | None = _argument(None, "Number of tasks; 10 if neither this nor classes_per_task is given", min=1)
    classes_per_task: int | None = _argument(None, "Number of classes of a task, instead of num_tasks", min=1)
    first_task_classes: int | None = _argument(None, "Number of classes of the first task, if it differs", min=1)
    class_order: str | list[str] = _argument(
        "natural",
        "natural, seeded (drawn with stream_seed), split_file (by the targets of that list), or all class names or "
        "labels: separated by commas, or as a list, in which a name may have commas itself; entries that are all "
        "names are read as names",
    )
    stream_seed: int = _argument(
        0, "Seed of the class order and of the images held out or kept: runs with other seeds share a stream", min=0
    )
    validation_fraction: float = _argument(
        0.0, "Share of each class's training images to hold out; the run then tests on them instead", min=0, max=0.9
    )
    max_samples_per_class: int | None = _argument(None, "Cap on the images of a class, for a quick look", min=1)


@dataclass
class ModelArguments:
    """Teacher and student."""

    teacher: str = _argument(
        "vit_micro_quickdraw", "Backbone: a bundled one, a timm name with its tag, a folder, or hf_hub:name"
    )
    student: str = _argument("vit_nano_quickdraw", "Backbone of the student, named in the same ways")
    teacher_weights: str | None = _argument(None, "Local file with the weights of a timm teacher")
    student_weights: str | None = _argument(None, "Local file with the weights of a timm student")
    image_size: int | None = _argument(
        None, "Side of the square images in pixels; the student's own if not given", min=1
    )
    crop_pct: float | None = _argument(
        None,
        "Share of the resized test image that the centre crop keeps; the student's own if not given",
        min=0.1,
        max=1,
    )
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = _argument(
        None, "How images are resized, in training and test; the student's own if not given"
    )
    normalization: Literal["backbone", "none"] = _argument(
        "backbone", "Pixels with the mean and deviation of the student's weights, or in [0, 1] as the papers ran"
    )
    prompt_method: Literal["l2p", "dualprompt", "coda_prompt", "apt", "none"] = _argument(
        "coda_prompt", "How prompts are made, in teacher and student; none: frozen transformers, a baseline"
    )
    classifier: Literal["linear", "ncm", "ranpac"] = _argument(
        "linear",
        "What predicts: the trained heads, or a classifier computed from all classes' features (nearest class mean, "
        "or ridge regression on random features)",
        aliases=("head",),
    )
    ranpac_width: int = _argument(2000, "RanPAC: random features", min=1)
    pool_size: int | None = _argument(None, "Prompts or components in the pool; the paper's if not given", min=1)
    prompt_length: int | None = _argument(None, "Tokens of a prompt, half keys, half values; the paper's", min=2)
    prompt_blocks: list[int] | None = _argument(None, "Prompted blocks; the paper's if not given")
    top_k: int = _argument(5, "L2P: prompts selected for an image", min=1)
    g_prompt_length: int = _argument(6, "DualPrompt: tokens of a G-prompt", min=2)
    g_prompt_blocks: list[int] = _argument([0, 1], "DualPrompt: blocks with a G-prompt")
    ortho_weight: float = _argument(0.0, "CODA-Prompt: weight of the orthogonality loss", min=0)
    ema_decay: float = _argument(0.7, "APT: share of the merged prompts kept when a task is merged", min=0, max=1)
    query: Literal["student", "own"] = _argument(
        "student", "Whose backbone makes the teacher's query: the student's (one pass for both) or its own"
    )


@dataclass
class DistillationArguments:
    """How the student learns from the teacher."""

    distillation: Literal["none", "kd", "dkd", "lskd", "dist", "fitnets", "reviewkd", "deit", "kdp", "cdl_prompt"] = (
        _argument("kdp", "Distillation method; none trains a student alone")
    )
    kd_alpha: float = _argument(
        0.5, "Weight of the teacher's part of the loss, and of the KD head's", min=0, max=1, aliases=("alpha",)
    )
    temperature: float | None = _argument(
        None, "Temperature of the soft loss; the method's own if not given", min=0.01
    )
    kd_prompt_length: int = _argument(6, "KDP: vectors of a block, half keys, half values", min=2)
    kd_prompt_blocks: int | None = _argument(None, "KDP: leading blocks with vectors; all if not given", min=1)


@dataclass
class CDLConfig:
    """The run."""

    num_train_epochs: int = _argument(
        4, "Epochs of each stage; 0 where only a computed head is wanted", min=0, aliases=("num_epochs",)
    )
    batch_size: int = _argument(16, "Images of one optimizer step, over all processes and accumulation steps", min=1)
    eval_batch_size: int = _argument(128, "Images of one evaluation step, over all processes", min=1)
    gradient_accumulation_steps: int = _argument(
        1, "Parts in which a batch is computed, to save memory (not with dist)", min=1
    )
    auto_find_batch_size: bool = _argument(
        False,
        "Before each stage, try in how many parts a batch fits into memory; batch_size stays as it is",
        aliases=("auto_batch_size",),
    )
    learning_rate: float = _argument(5e-3, "Adam's learning rate at the start of a stage", min=0)
    crop_scale: list[float] = _argument([0.7, 1.0], "Range of a random crop's share of the image")
    horizontal_flip: float = _argument(0.5, "Probability of a mirrored training image", min=0, max=1)
    schedule: Literal["stages", "same_step"] = _argument(
        "stages", "The teacher's stage before the student's, or a step of each on every batch"
    )
    teacher_merge: Literal["own_stage", "after_student"] = _argument(
        "own_stage",
        "APT: when the teacher's prompts are merged where both are trained; after_student is the authors' order",
    )
    stages: Literal["both", "teacher", "student"] = _argument("both", "Which of the two to train")
    teacher_run: str | None = _argument(
        None,
        "Output folder of an earlier run on the same stream, or on its classes at once, whose teacher serves here",
        aliases=("teacher_from",),
    )
    student_run: str | None = _argument(
        None,
        "The same of its student, for another head: nothing is trained, only classifiers are computed",
        aliases=("student_from",),
    )
    classifier_alignment: bool = _argument(
        False, "After each task, train the heads anew on features drawn from what is remembered of all classes (SLCA)"
    )
    cache_teacher_outputs: bool = _argument(
        False,
        "Keep the teacher's answers to all training images: each student of teacher_run is spared its teacher",
        aliases=("store_answers",),
    )
    seed: int = _argument(0, "Seed of all randomness but the stream's", min=0)
    dataloader_num_workers: int = _argument(
        0, "Processes that read images, for each training process", min=0, aliases=("num_workers",)
    )
    output_dir: str | None = _argument(
        None, "Folder for everything the run leaves; a new one under runs/ if not given"
    )
    dry_run: bool = _argument(
        False,
        "Tell the stream, the models, their steps and memory and what would be written, and stop there",
        of_call=True,
    )
    overwrite_output_dir: bool = _argument(
        False, "Replace what an earlier run has left in the output folder", of_call=True, aliases=("overwrite",)
    )
    resume_from_checkpoint: bool = _argument(
        False,
        "Continue the run of the output folder from its newest checkpoint, with its arguments where none are given",
        of_call=True,
        aliases=("resume",),
    )
    save_steps: int = _argument(
        1000, "Optimizer steps between checkpoints, besides those after a stage", min=1, aliases=("checkpoint_every",)
    )
    report_to: Literal["none", "tensorboard", "wandb"] = _argument(
        "none", "Where to log the metrics besides the files"
    )

    def __post_init__(self):
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two shares 0 < low <= high <= 1, got {self.crop_scale}")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps})"
            )
        if self.teacher_run is not None and self.stages == "both":
            raise ValueError("teacher_run brings a trained teacher: it needs stages=student")
        if self.student_run is not None and self.stages != "student":
            raise ValueError("student_run brings a trained student: it needs stages=student")
        if self.cache_teacher_outputs and self.teacher_run is not None:
            raise ValueError(
                "cache_teacher_outputs needs a teacher that is trained in this run, not one of teacher_run"
            )
        if self.cache_teacher_outputs and self.stages == "student":
            raise ValueError(
                "cache_teacher_outputs needs a teacher that is trained in this run: it does not go with stages=student"
            )
        if self.cache_teacher_outputs and self.schedule == "same_step":
            raise ValueError("cache_teacher_outputs needs a teacher that is done before its student's stage begins")
        if self.schedule == "same_step" and self.stages != "both":
            raise ValueError("schedule=same_step trains teacher and student together: it needs stages=both")
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise ValueError("overwrite_output_dir and resume_from_checkpoint contradict each other: choose one")
        if self.resume_from_checkpoint and self.output_dir is None:
            raise ValueError("resume_from_checkpoint needs output_dir, the folder of the run to continue")


@dataclass
class HubArguments:
    """Sharing on the Hub."""

    push_to_hub: bool = _argument(False, "Push teacher and student to the Hub when the run is finished")
    hub_model_id: str | None = _argument(
        None,
        "owner/name or name of the repositories <name>-teacher and <name>-student; the output folder's if not given",
    )
    hub_private: bool = _argument(False, "Make the repositories private")
    hub_task_revisions: bool = _argument(
        False, "Push the models as they were after each task, too, as branches task-01, task-02, ..."
    )

    def __post_init__(self):
        if not self.push_to_hub and (self.hub_model_id or self.hub_private or self.hub_task_revisions):
            raise ValueError("hub_model_id, hub_private and hub_task_revisions need push_to_hub")


RUN = (StreamArguments, ModelArguments, DistillationArguments, CDLConfig, HubArguments)
_PRESENT_NAMES = {
    alias: field.name
    for argument_class in RUN
    for field in fields(argument_class)
    for alias in field.metadata.get("aliases", ())
}


def with_present_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a run has recorded, under the names that they have now."""
    return {_PRESENT_NAMES.get(name, name): value for name, value in record.items()}


def record_of_resumed(given: Mapping[str, Any]) -> str | None:
    """Path of the `args.yaml` that the run to be resumed has left, by the arguments given; None if there is none."""
    if not given.get("resume_from_checkpoint") or given.get("output_dir") is None:
        return None
    path = os.path.join(given["output_dir"], "args.yaml")
    return path if os.path.isfile(path) else None
