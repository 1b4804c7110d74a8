"""The arguments of a run; `stream` has those of its data. The defaults are those of the bundled example, and
YAML presets hold others.

Nothing heavy is imported, so that `--help` takes no time.
"""

from dataclasses import dataclass
from typing import Literal

from ..catalogue import CLASSIFIERS, DISTILLATION_METHODS, PROMPT_METHODS
from .roles import argument
from .stream import StreamArguments

RANPAC = ("classifier", "ranpac")


@dataclass
class ModelArguments:
    """Teacher and student."""

    teacher: str = argument(
        "vit_micro_quickdraw",
        "Backbone of the teacher: a bundled one, a timm name with its tag, a folder, or hf_hub:name",
        content="backbones",
        in_label=True,
    )
    student: str = argument(
        "vit_nano_quickdraw",
        "Backbone of the student, named in the same ways",
        content="backbones",
        in_label=True,
    )
    teacher_weights: str | None = argument(
        None,
        "Local file with the weights of a timm teacher",
        unset="downloaded",
        content="backbones",
        is_path=True,
    )
    student_weights: str | None = argument(
        None,
        "Local file with the weights of a timm student",
        unset="downloaded",
        content="backbones",
        is_path=True,
    )
    image_size: int | None = argument(
        None, "Side of the square images in pixels", unset="the student backbone's", min=1
    )
    crop_pct: float | None = argument(
        None,
        "Share of the resized test image that the center crop keeps",
        unset="the student backbone's",
        min=0.1,
        max=1,
    )
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = argument(
        None, "How images are resized, in training and test", unset="the student backbone's"
    )
    normalization: Literal["backbone", "none"] = argument(
        "backbone",
        "Pixels normalized by the mean and standard deviation of the student's backbone, or in [0, 1] as in the "
        "papers' runs",
    )
    prompt_method: str = argument(
        "coda_prompt", "Prompt method of teacher and student", choices=PROMPT_METHODS, in_label=True
    )
    teacher_prompt_method: Literal["none"] | None = argument(
        None, "none: the teacher takes no prompts, such as a CNN with a prompted student", unset="prompt_method"
    )
    train_tasks: int | None = argument(
        None,
        "Number of first tasks in which the models are trained; later ones only change a computed classifier or "
        "aligned heads",
        unset="all",
        min=1,
    )
    classifier: str = argument(
        "linear",
        "What predicts: the trained heads, or a classifier computed from the features of all classes",
        choices=CLASSIFIERS,
        aliases=("head",),
        in_label=True,
    )
    ranpac_width: int = argument(
        2000,
        "RanPAC: number of random features; 5000 is better and takes six times the memory",
        min=1,
        only_with=RANPAC,
    )
    ranpac_ridge: Literal["accuracy", "error"] = argument(
        "accuracy",
        "RanPAC: what the ridge is chosen by: right predictions of the training images held out so far, or the "
        "squared error on those of the newest task (the paper's rule)",
        before="error",
        only_with=RANPAC,
    )
    ranpac_layers: int = argument(
        1, "RanPAC: number of last blocks whose class tokens it reads", min=1, only_with=RANPAC
    )
    ranpac_patch_means: bool = argument(
        False, "RanPAC: whether it also reads the means of these blocks' patch tokens", only_with=RANPAC
    )
    pool_size: int | None = argument(
        None, "Number of prompts or components in the pool", unset="the prompt method's", min=1
    )
    prompt_length: int | None = argument(
        None, "Tokens of a prompt, half of them keys, half values", unset="the prompt method's", min=2
    )
    prompt_blocks: list[int] | None = argument(None, "Prompted blocks, or updated ones", unset="the prompt method's")
    top_k: int = argument(5, "L2P: number of prompts selected for an image", min=1)
    g_prompt_length: int = argument(6, "DualPrompt: tokens of a G-prompt", min=2)
    g_prompt_blocks: list[int] = argument([0, 1], "DualPrompt: blocks with a G-prompt")
    ortho_weight: float = argument(0.0, "CODA-Prompt: weight of the orthogonality loss", min=0)
    ema_decay: float = argument(
        0.7, "APT: share of the merged prompts that is kept when a task is merged", min=0, max=1
    )
    lora_rank: int = argument(8, "LoRA: rank of the update of each task and weight", min=1)
    lora_alpha: float = argument(8.0, "LoRA: updates are multiplied by lora_alpha / lora_rank", min=0)
    lora_targets: list[str] = argument(
        ["qkv", "proj", "fc1", "fc2"], "LoRA: linear layers of a block whose weights are updated"
    )
    lora_merging: Literal["average", "fisher", "none"] = argument(
        "average",
        "LoRA: what is merged after the t-th task: 1/t of its update (average), the share that harms the tasks so far "
        "least by their Fisher information (as P&M), or all of it (none)",
    )
    query: Literal["student", "own"] = argument(
        "student", "Whose backbone makes the teacher's query: the student's (one pass for both) or its own"
    )
    query_block: int | None = argument(
        None,
        "Block of each model's own pass after which its class token is the query, for prompts in later blocks (one "
        "pass, in the manner of OS-Prompt)",
        unset="a query pass without prompts",
        min=0,
    )


@dataclass
class DistillationArguments:
    """How the student learns from the teacher."""

    distillation: str = argument("kdp", "Distillation method", choices=DISTILLATION_METHODS, in_label=True)
    kd_alpha: float = argument(
        0.5,
        "Weight of the teacher's term in the loss, and of the KD head in a prediction",
        min=0,
        max=1,
        aliases=("alpha",),
    )
    temperature: float | None = argument(
        None, "Temperature of the soft loss", unset="the distillation method's", min=0.01
    )
    kd_prompt_length: int = argument(6, "KDP: vectors of a block, half of them keys, half values", min=2)
    kd_prompt_blocks: int | None = argument(None, "KDP: number of leading blocks with vectors", unset="all", min=1)
    analytic_width: int = argument(
        2000, "Analytic: number of random features that predict the teacher's features", min=1
    )
    analytic_groups: int | None = argument(
        None,
        "Analytic: equal parts of the student's features; each random feature reads one of them",
        unset="one for each token of a transformer",
        min=1,
        before=1,
        only_with=("distillation", "analytic"),
    )
    analytic_scores: Literal["teacher", "own", "both"] | None = argument(
        None,
        "Analytic: whether the teacher's classifier, the student's own, or both predict",
        unset="chosen by held-out training images",
    )


@dataclass
class CDLConfig:
    """The run."""

    num_train_epochs: int = argument(
        4,
        "Epochs of each stage; 0 where only a computed classifier is wanted",
        min=0,
        aliases=("num_epochs",),
    )
    batch_size: int = argument(16, "Images of one optimizer step, over all processes and accumulation steps", min=1)
    eval_batch_size: int = argument(
        128, "Images of one evaluation step, over all processes", min=1, affects="rounding"
    )
    eval_steps: int | None = argument(
        None,
        "Also test while training, every so many optimizer steps of a task, on the classes seen so far: online "
        "accuracy and its area A_AUC, for num_train_epochs=1",
        unset="only after each task",
        min=1,
    )
    gradient_accumulation_steps: int = argument(
        1, "Micro-batches that a batch is computed in, to save memory (not with dist)", min=1, affects="rounding"
    )
    auto_find_batch_size: bool = argument(
        False,
        "Before each stage, find the gradient_accumulation_steps with which a batch fits into memory; batch_size "
        "stays as it is",
        aliases=("auto_batch_size",),
        affects="rounding",
    )
    learning_rate: float = argument(5e-3, "Adam's learning rate at the start of a stage", min=0)
    crop_scale: list[float] = argument([0.7, 1.0], "Smallest and largest share of the image that a random crop keeps")
    horizontal_flip: float = argument(0.5, "Probability that a training image is mirrored", min=0, max=1)
    schedule: Literal["stages", "same_step"] = argument(
        "stages", "The teacher's stage before the student's, or a step of each on every batch"
    )
    teacher_merge: Literal["own_stage", "after_student"] = argument(
        "own_stage",
        "APT, LoRA: when the teacher's training is merged where both are trained; after_student is the authors' order",
    )
    stages: Literal["both", "teacher", "student"] = argument("both", "Which of the two to train", planned=True)
    teacher_run: str | None = argument(
        None,
        "Output folder of a finished run on the same stream, or a joint one on the same classes, whose teacher is "
        "taken instead of training one",
        aliases=("teacher_from",),
        content="states of the teacher",
        is_path=True,
        planned=True,
    )
    student_run: str | None = argument(
        None,
        "Output folder of a finished run on the same stream whose student gets another classifier; nothing is trained",
        aliases=("student_from",),
        content="states of the student",
        is_path=True,
        planned=True,
    )
    classifier_alignment: bool = argument(
        False,
        "After each task, train the heads again on features sampled for all classes so far (SLCA)",
        in_label=True,
    )
    drift_compensation: bool = argument(
        False,
        "After each task, change what aligned heads and class means keep of earlier tasks as the task has changed the "
        "features of its own images, by a linear map (SLDC)",
        in_label=True,
    )
    cache_teacher_outputs: bool = argument(
        False,
        "Store the teacher's logits of all training images, so that students of teacher_run need no teacher",
        aliases=("store_answers",),
        affects="files",
        planned=True,
    )
    unlabeled_dataset: str | None = argument(
        None,
        "Analytic: folder of further images, without labels, on which the student learns to predict the teacher's "
        "features before the first task",
        content="images without labels",
        is_path=True,
    )
    seed: int = argument(
        0, "Seed of everything random in training, not of the stream (stream_seed)", min=0, planned=True
    )
    dataloader_num_workers: int = argument(
        0,
        "Worker processes that read images, for each training process",
        min=0,
        aliases=("num_workers",),
        affects="nothing",
    )
    output_dir: str | None = argument(
        None,
        "Folder for everything that the run writes",
        unset="a new one under runs/",
        affects="nothing",
        is_path=True,
        planned=True,
    )
    dry_run: bool = argument(
        False, "Print the tasks, models, number of steps, memory and output files, and stop", of_call=True
    )
    overwrite_output_dir: bool = argument(
        False,
        "Replace what an earlier run has written to the output folder",
        of_call=True,
        aliases=("overwrite",),
        planned=True,
    )
    resume_from_checkpoint: bool = argument(
        False,
        "Continue the run of the output folder from its newest checkpoint, with its arguments where none are given",
        of_call=True,
        aliases=("resume",),
        planned=True,
    )
    save_steps: int = argument(
        1000,
        "Optimizer steps between two checkpoints; there is one after each stage, too",
        min=1,
        aliases=("checkpoint_every",),
        affects="nothing",
    )
    save_statistics: bool = argument(
        False,
        "Keep what the models need to learn further classes after the run (`cdl-hf learn`) beside their weights",
        affects="files",
    )
    allow_tf32: bool = argument(
        True,
        "On a CUDA device, compute float32 matrix products and convolutions in TF32, which rounds factors to 10 bits; "
        "heads and computed classifiers stay in float32",
        before=False,
        affects="rounding",
    )
    report_to: Literal[
        "none",
        "trackio",
        "tensorboard",
        "wandb",
        "aim",
        "clearml",
        "comet_ml",
        "dvclive",
        "mlflow",
        "swanlab",
    ] = argument(
        "none", "Tracker of Accelerate that logs the metrics, besides the files of the run", affects="nothing"
    )

    def __post_init__(self):
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two shares 0 < low <= high <= 1, got {self.crop_scale}")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps})"
            )
        if self.eval_steps is not None and self.num_train_epochs != 1:
            raise ValueError(
                f"eval_steps measures online learning, which shows each image once: it needs num_train_epochs=1, not "
                f"{self.num_train_epochs}"
            )
        if self.eval_steps is not None and self.student_run is not None:
            raise ValueError("eval_steps tests models while they are trained, and with student_run none is")
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
class RepositoryArguments:
    """The repositories on the Hub."""

    hub_model_id: str | None = argument(
        None,
        "Repositories <name>-teacher and <name>-student, with or without an owner: owner/name",
        unset="the output folder's name",
    )
    hub_private: bool = argument(False, "Make the repositories private")
    hub_task_revisions: bool = argument(
        False, "Push the models as they were after each task, too, as branches task-01, task-02, ..."
    )


@dataclass
class HubArguments(RepositoryArguments):
    """Sharing on the Hub."""

    push_to_hub: bool = argument(False, "Push teacher and student to the Hub when the run is finished")

    def __post_init__(self):
        if not self.push_to_hub and (self.hub_model_id or self.hub_private or self.hub_task_revisions):
            raise ValueError("hub_model_id, hub_private and hub_task_revisions need push_to_hub")


RUN = (StreamArguments, ModelArguments, DistillationArguments, CDLConfig, HubArguments)
