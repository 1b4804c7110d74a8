"""Configuration of a prompted Vision Transformer."""

import re
from dataclasses import field, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .architecture_args import MAX_DEPTH, MAX_EMBED_DIM, check_architecture, is_number, is_whole, shortened, shown
from .inherited_fields import FOREIGN, INHERITED, MAX_CLASSES, check_inherited

# Prompt length, pool size and prompted blocks of the papers (None: not used by the method, or derived).
PROMPT_DEFAULTS: dict[str, dict[str, Any]] = {
    "l2p": {"pool_size": 30, "prompt_length": 20, "prompt_blocks": [0]},
    "dualprompt": {"pool_size": None, "prompt_length": 20, "prompt_blocks": [2, 3, 4]},
    "coda_prompt": {"pool_size": 100, "prompt_length": 8, "prompt_blocks": [0, 1, 2, 3, 4]},
    "apt": {"pool_size": None, "prompt_length": None, "prompt_blocks": None},
    "lora": {"pool_size": None, "prompt_length": None, "prompt_blocks": None},
    "none": {"pool_size": None, "prompt_length": None, "prompt_blocks": None},
}
LORA_TARGETS = ("qkv", "proj", "fc1", "fc2")  # the linear layers of a block
LORA_MERGING = ("average", "fisher", "none")
KD_BRANCHES = ("none", "deit", "kdp", "cdl_prompt", "analytic")
SCORES = ("teacher", "own", "both")  # that a student of closed-form distillation can predict with
HEADS = ("linear", "ncm", "ranpac")
RIDGE_RULES = ("accuracy", "error")
# Bounds far above any use, but low enough to refuse a wrong configuration before it allocates memory: a million prompt
# vectors of ViT-B take 3 GB.
BOUNDS = {
    "query_block": (0, MAX_DEPTH - 1),
    "pool_size": (1, 100_000),
    "prompt_length": (1, 10_000),
    "top_k": (1, 100_000),
    "g_prompt_length": (1, 10_000),
    "lora_rank": (1, 10_000),
    "ranpac_width": (1, 100_000),
    "ranpac_layers": (1, MAX_DEPTH),
    "kd_prompt_length": (1, 10_000),
    "kd_prompt_blocks": (1, MAX_DEPTH),
    "teacher_width": (1, MAX_EMBED_DIM * MAX_DEPTH * 2),
    "analytic_width": (1, 100_000),
    "analytic_groups": (1, 2 * MAX_DEPTH),
}
MAX_TASKS, MAX_VECTORS, MAX_WEIGHTS = 10_000, 1_000_000, 1_000_000_000
MAX_RANK = 100_000
MAX_NAME = 255  # bytes of a folder's name
TRANSFORMERS = ("backbone", "query_backbone")  # fields of transformers whose weights a checkpoint may leave out


@strict
class PromptViTConfig(PreTrainedConfig):
    r"""
    Configuration of [`PromptViTForImageClassification`]: a frozen timm Vision Transformer, its prompts, its head over
    a stream of tasks, and the number of tasks seen.

    Args:
        backbone (`str`, defaults to `"vit_tiny_patch16_224"`):
            timm name of the frozen network (a tag such as `.augreg_in21k` names its weights).
        backbone_args (`dict`, *optional*):
            Keyword arguments of `timm.create_model` for it, such as `{"img_size": 32, "depth": 6}`; only architecture
            arguments are allowed (see `architecture_args.py`). `img_size` is the size of the images of any network.
        query_backbone (`str`, *optional*):
            timm name of the frozen transformer whose CLS output is the query that selects prompts. `None`: the
            model's own backbone without prompts. A teacher in CDL uses the backbone of its student.
        query_backbone_args (`dict`, *optional*): Keyword arguments of `timm.create_model` for the query backbone.
        query_block (`int`, *optional*):
            Block of the model's own pass after which its CLS token, after the final norm, is the query of all prompts
            in later blocks; without gradients. OS-Prompt (arXiv 2402.16189) takes the CLS token before each prompted
            block instead. `None`: the query takes a pass of its own.
        backbone_weights (`dict`, *optional*):
            Origin of the backbone's weights: `{"source": a timm name with tag, a Hub repository
            ("hf_hub:owner/name") or a plain folder name, "sha256": their digest}`.
        query_backbone_weights (`dict`, *optional*): The same of the query backbone.
        left_out (`list[str]`, *optional*):
            Transformers whose weights are not in the checkpoint (`"backbone"`, `"query_backbone"`): `from_pretrained`
            loads them from their sources.
        classes_per_task (`list[int]`):
            Number of new classes of each task of the stream, in order; none where a task only has known ones, or all
            of its classes were removed.
        repeats_classes (`bool`, defaults to `False`):
            Whether classes come again in later tasks, as in a stream of domains. A task then trains among all classes
            seen, and may have no new class.
        tasks_seen (`int`, defaults to 0): Number of tasks started; logits cover their `seen_classes` classes.
        train_tasks (`int`, *optional*):
            Number of first tasks in which prompts, weight updates and heads are trained; all by default. Later tasks
            only change the classifier that is computed (RanPAC's first-session adaptation).
        prompt_method (`str`, defaults to `"coda_prompt"`): `"l2p"`, `"dualprompt"`, `"coda_prompt"`, `"apt"`,
            `"lora"` (low-rank weight updates in place of prompts) or `"none"` (the frozen transformer).
        pool_size (`int`, *optional*): Prompts (L2P) or components (CODA-Prompt) in the pool; the paper's by default.
        prompt_length (`int`, *optional*): Tokens of a prompt; the first half are keys, the second values.
        prompt_blocks (`list[int]`, *optional*):
            Prompted blocks (DualPrompt: those of the E-prompts; LoRA: those updated). APT and LoRA: all by default;
            otherwise the paper's, counted from the first after `query_block`.
        top_k (`int`, defaults to 5): Prompts that L2P selects for an image.
        g_prompt_length (`int`, defaults to 6): Tokens of a G-prompt of DualPrompt.
        g_prompt_blocks (`list[int]`, defaults to `[0, 1]`): Blocks with a G-prompt of DualPrompt.
        ortho_weight (`float`, defaults to 0.0): Weight of CODA-Prompt's orthogonality loss.
        ema_decay (`float`, defaults to 0.7): Decay of APT's moving average over the prompts of the tasks.
        lora_rank (`int`, defaults to 8): Rank of the update of each task and weight.
        lora_alpha (`float`, defaults to 8): Updates are multiplied by `lora_alpha / lora_rank`.
        lora_targets (`list[str]`, defaults to `["qkv", "proj", "fc1", "fc2"]`): Linear layers of a block to update.
        lora_merging (`str`, defaults to `"average"`):
            What is merged after task t, counted from 1: 1/t of its update (`"average"`), the share that harms the
            tasks so far least by their Fisher information (`"fisher"`), or all of it (`"none"`).
        head (`str`, defaults to `"linear"`):
            Classifier that predicts: the trained `"linear"` heads, or `"ncm"` or `"ranpac"`, which are computed from
            the features of all classes seen.
        ranpac_width (`int`, defaults to 2000): Number of random features of RanPAC.
        ranpac_ridge (`str`, defaults to `"accuracy"`):
            What RanPAC's ridge is chosen by: the right predictions of all images held out so far (`"accuracy"`), or
            the squared error on those of the newest task (`"error"`, as in the paper).
        ranpac_layers (`int`, defaults to 1): Number of last blocks whose class tokens RanPAC reads.
        ranpac_patch_means (`bool`, defaults to `False`): Whether RanPAC also reads the means of their patch tokens.
        kd_branch (`str`, defaults to `"none"`):
            KD branch of a student: `"none"`, `"deit"`, `"kdp"`, `"cdl_prompt"` or `"analytic"`.
        kd_alpha (`float`, defaults to 0.5):
            Weight of the KD head in a prediction, against the student's head (CDL-Prompt: always the mean).
        kd_prompt_length (`int`, defaults to 6): KDP vectors per block; the first half are keys, the second values.
        kd_prompt_blocks (`int`, *optional*): Leading blocks with KDP vectors; all by default.
        teacher_width (`int`, *optional*): embed_dim of the teacher whose prompts a CDL-Prompt student maps, or size of
            the teacher's features that an analytic student predicts.
        analytic_width (`int`, defaults to 2000): Number of random features by which an analytic student predicts them.
        analytic_groups (`int`, *optional*):
            Number of equal parts of the analytic student's features; each random feature reads one of them. By default
            1, and one for each token of a transformer in [`~PromptViTForImageClassification.from_backbone`].
        analytic_scores (`str`, *optional*):
            What an analytic student predicts with: the `"teacher"`'s classifier on the predicted features, its
            `"own"` classifier, or the sum of the scores of `"both"`; by default what makes held-out training images
            the most likely.
    """

    model_type = "prompt_vit"
    keys_to_ignore_at_inference = ["head_logits", "kd_logits", "prompt_loss", "hidden_states"]  # by `Trainer`
    _auto_class = "AutoConfig"  # its code travels with a checkpoint, for `trust_remote_code=True`

    backbone: str = "vit_tiny_patch16_224"
    backbone_args: dict[str, Any] = field(default_factory=dict)
    query_backbone: str | None = None
    query_backbone_args: dict[str, Any] = field(default_factory=dict)
    query_block: int | None = None
    backbone_weights: dict[str, str] = field(default_factory=dict)
    query_backbone_weights: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    classes_per_task: list[int] = field(default_factory=lambda: [10] * 10)
    repeats_classes: bool = False
    tasks_seen: int = 0
    train_tasks: int | None = None
    prompt_method: str = "coda_prompt"
    pool_size: int | None = None
    prompt_length: int | None = None
    prompt_blocks: list[int] | None = None
    top_k: int = 5
    g_prompt_length: int = 6
    g_prompt_blocks: list[int] = field(default_factory=lambda: [0, 1])
    ortho_weight: float | int = 0.0
    ema_decay: float | int = 0.7
    lora_rank: int = 8
    lora_alpha: float | int = 8
    lora_targets: list[str] = field(default_factory=lambda: list(LORA_TARGETS))
    lora_merging: str = "average"
    head: str = "linear"
    ranpac_width: int = 2000
    ranpac_ridge: str = "accuracy"
    ranpac_layers: int = 1
    ranpac_patch_means: bool = False
    kd_branch: str = "none"
    kd_alpha: float | int = 0.5
    kd_prompt_length: int = 6
    kd_prompt_blocks: int | None = None
    teacher_width: int | None = None
    analytic_width: int = 2000
    analytic_groups: int | None = None
    analytic_scores: str | None = None

    def __post_init__(self, **kwargs):
        first = 0 if self.query_block is None else self.query_block + 1
        for name, value in PROMPT_DEFAULTS.get(self.prompt_method, {}).items():
            if getattr(self, name) is None:
                setattr(self, name, [first + block for block in value] if isinstance(value, list) else value)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "PromptViTConfig":
        """As `PreTrainedConfig.from_dict`, for an untrusted file.

        Raises:
            ValueError: A field is invalid, or is not of this class but has a meaning in transformers.
        """
        check_inherited(config_dict)
        known = {*INHERITED, *(known.name for known in fields(cls))}
        # transformers sets what it does not know as an attribute: it must not replace a method or property
        for name in config_dict:
            if name in FOREIGN or (hasattr(cls, name) and name not in known):
                raise ValueError(f"{name} is not a field of a {cls.model_type} configuration")
        try:
            return super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(shortened(str(error.__cause__))) from error

    @classmethod
    def checked(cls, **values: Any) -> "PromptViTConfig":
        """As the constructor, but raises a plain error.

        Raises:
            ValueError: Fields are invalid.
        """
        if unknown := sorted(values.keys() - {f.name for f in fields(cls)}):
            raise ValueError(f"PromptViTConfig has no field {unknown[0]!r}")
        try:
            return cls(**values)
        except StrictDataclassError as error:
            raise ValueError(shortened(str(error.__cause__))) from error

    @property
    def num_tasks(self) -> int:
        return len(self.classes_per_task)

    @property
    def num_trained_tasks(self) -> int:
        """Number of tasks in which prompts, weight updates and heads are trained."""
        return self.num_tasks if self.train_tasks is None else self.train_tasks

    @property
    def num_classes(self) -> int:
        """Number of classes of the whole stream: rows of the head."""
        return sum(self.classes_per_task)

    @property
    def seen_classes(self) -> int:
        """Number of classes of the started tasks: columns of the logits."""
        return sum(self.classes_per_task[: self.tasks_seen])

    @property
    def current_classes(self) -> slice:
        """Class ids among which the current task trains: its own, or all classes seen if classes come again."""
        if self.repeats_classes:
            return slice(0, self.seen_classes)
        return slice(sum(self.classes_per_task[: self.tasks_seen - 1]), self.seen_classes)

    def validate_fields(self):
        """Checks all fields; later checks rely on earlier ones."""
        self._check_backbones()
        self._check_numbers()
        self._check_stream()
        self._check_prompts()
        self._check_head()
        self._check_kd_branch()

    def _check_backbones(self) -> None:
        for name in TRANSFORMERS:
            if getattr(self, name) is not None:
                check_architecture(name, getattr(self, name), getattr(self, f"{name}_args"))
            weights = getattr(self, f"{name}_weights")
            if weights and not (
                weights.keys() == {"source", "sha256"}
                and re.fullmatch("[0-9a-f]{64}", weights["sha256"])
                and weights["source"].isprintable()
                and len(weights["source"].encode()) <= MAX_NAME
            ):
                raise ValueError(
                    f"{name}_weights must hold the weights' source and the 64 digits of their sha256, got "
                    f"{shown(weights)}"
                )
        if len(set(self.left_out)) < len(self.left_out) or not set(self.left_out) <= set(TRANSFORMERS):
            raise ValueError(f"left_out may name {' and '.join(TRANSFORMERS)} once each, got {shown(self.left_out)}")
        for name in self.left_out:
            if getattr(self, name) is None or not getattr(self, f"{name}_weights"):
                raise ValueError(f"left_out names {name}, but {name}_weights does not give the source of its weights")

    def _check_numbers(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not is_whole(value, low, high):
                raise ValueError(f"{name} must be at least {low} and at most {high:,}, got {shown(value)}")
        for name in ("prompt_blocks", "g_prompt_blocks"):
            blocks = getattr(self, name) or []
            if len(blocks) > MAX_DEPTH or not all(is_whole(block, 0, MAX_DEPTH - 1) for block in blocks):
                raise ValueError(f"{name} must list blocks from 0 to at most {MAX_DEPTH - 1}, got {shown(blocks)}")
            if len(set(blocks)) < len(blocks):
                raise ValueError(f"{name} names a block twice: {blocks}")

    def _check_stream(self) -> None:
        tasks = self.classes_per_task
        if not tasks or len(tasks) > MAX_TASKS or min(tasks) < 0 or not any(tasks):
            raise ValueError(
                f"classes_per_task must list at least one task of one class, and at most {MAX_TASKS:,} tasks, got "
                f"{shown(tasks)}"
            )
        if self.num_classes > MAX_CLASSES:
            raise ValueError(f"classes_per_task adds up to {shown(self.num_classes)}, more than {MAX_CLASSES:,}")
        if self.train_tasks is not None and not 1 <= self.train_tasks <= self.num_tasks:
            raise ValueError(
                f"train_tasks must be between 1 and the number of tasks ({self.num_tasks}), got "
                f"{shown(self.train_tasks)}"
            )
        if not 0 <= self.tasks_seen <= self.num_tasks:
            raise ValueError(f"tasks_seen is {shown(self.tasks_seen)}, but the stream has {self.num_tasks} tasks")

    def _check_prompts(self) -> None:
        if self.prompt_method not in PROMPT_DEFAULTS:
            raise ValueError(
                f"prompt_method is {shown(self.prompt_method)}; choose one of {', '.join(PROMPT_DEFAULTS)}, or import "
                "the file that adds it first"
            )
        if self.query_block is not None and self.query_backbone is not None:
            raise ValueError("query_block takes the query from the model's own pass: leave out query_backbone")
        if self.prompt_length is not None and (self.prompt_length < 2 or self.prompt_length % 2):
            raise ValueError(f"prompt_length must be even (half keys, half values), got {self.prompt_length}")
        if self.prompt_method == "l2p" and not 1 <= self.top_k <= (self.pool_size or 0):
            raise ValueError(f"top_k must be between 1 and pool_size ({self.pool_size}), got {self.top_k}")
        if self.prompt_method == "coda_prompt" and (not self.pool_size or self.pool_size % self.num_trained_tasks):
            raise ValueError(
                f"CODA-Prompt gives each task an equal share of its pool: pool_size ({self.pool_size}) must be a "
                f"multiple of the number of tasks ({self.num_trained_tasks})"
            )
        if self.prompt_method == "dualprompt" and (self.g_prompt_length < 2 or self.g_prompt_length % 2):
            raise ValueError(f"g_prompt_length must be even (half keys, half values), got {self.g_prompt_length}")
        if not 0 <= self.ema_decay <= 1:
            raise ValueError(f"ema_decay must be between 0 and 1, got {shown(self.ema_decay)}")
        if not is_number(self.ortho_weight, 0, 1e9):
            raise ValueError(f"ortho_weight must not be negative, nor above 1e9, got {shown(self.ortho_weight)}")
        if self.prompt_method == "lora":
            self._check_lora()
        size = self.num_trained_tasks if self.prompt_method == "dualprompt" else self.pool_size or 1
        vectors = len(self.prompt_blocks or [0]) * size * (self.prompt_length or 1)
        if vectors > MAX_VECTORS:
            raise ValueError(
                f"the prompts are {vectors:,} vectors, more than {MAX_VECTORS:,}: prompt_blocks, pool_size and "
                "prompt_length are too large"
            )

    def _check_lora(self) -> None:
        if not is_number(self.lora_alpha, 0, 1e9):
            raise ValueError(f"lora_alpha must not be negative, nor above 1e9, got {shown(self.lora_alpha)}")
        targets = self.lora_targets
        if not targets or len(set(targets)) < len(targets) or not set(targets) <= set(LORA_TARGETS):
            raise ValueError(f"lora_targets may name {', '.join(LORA_TARGETS)} once each, got {shown(targets)}")
        if self.lora_merging not in LORA_MERGING:
            raise ValueError(f"lora_merging is {shown(self.lora_merging)}; choose one of {', '.join(LORA_MERGING)}")
        if self.lora_rank * self.num_trained_tasks > MAX_RANK:
            raise ValueError(
                f"lora_rank ({self.lora_rank:,}) times the number of tasks ({self.num_trained_tasks:,}) is more than "
                f"{MAX_RANK:,}"
            )

    def _check_head(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f"head is {shown(self.head)}; choose one of {', '.join(HEADS)}")
        if self.ranpac_ridge not in RIDGE_RULES:
            raise ValueError(f"ranpac_ridge is {shown(self.ranpac_ridge)}; choose one of {', '.join(RIDGE_RULES)}")
        if self.head == "ranpac" and self.ranpac_width * self.num_classes > MAX_WEIGHTS:
            raise ValueError(
                f"ranpac_width ({self.ranpac_width:,}) times the number of classes ({self.num_classes:,}) is more "
                f"than {MAX_WEIGHTS:,}"
            )

    def _check_kd_branch(self) -> None:
        if self.kd_branch not in KD_BRANCHES:
            raise ValueError(f"kd_branch is {shown(self.kd_branch)}; choose one of {', '.join(KD_BRANCHES)}")
        if not 0 <= self.kd_alpha <= 1:
            raise ValueError(f"kd_alpha must be between 0 and 1, got {shown(self.kd_alpha)}")
        if self.kd_branch == "kdp" and (self.kd_prompt_length < 2 or self.kd_prompt_length % 2):
            raise ValueError(f"kd_prompt_length must be even (half keys, half values), got {self.kd_prompt_length}")
        if self.kd_branch == "cdl_prompt" and self.prompt_method in ("apt", "lora", "none"):
            has = {"apt": "APT has neither", "lora": "LoRA has none"}.get(self.prompt_method, "there are none")
            raise ValueError(
                f"kd_branch 'cdl_prompt' maps prompt tokens selected by the query of the image, and {has}: "
                "choose another kd_branch or prompt_method"
            )
        if self.kd_branch == "cdl_prompt" and self.query_block is not None:
            raise ValueError(
                "kd_branch 'cdl_prompt' selects the teacher's prompts by the student's query, and with query_block "
                "both have their own: leave out query_block, or choose another kd_branch"
            )
        if self.kd_branch == "analytic":
            if self.head == "linear":
                raise ValueError(
                    "kd_branch 'analytic' takes over the classifier computed of the teacher's features: choose the "
                    "head ncm or ranpac, got linear"
                )
            if self.prompt_method != "none" and self.num_trained_tasks > 1:
                raise ValueError(
                    "kd_branch 'analytic' adds up features over the tasks, but prompts that are trained in each task "
                    f"change them: choose prompt_method none or train_tasks 1, got {self.prompt_method} and "
                    f"{shown(self.train_tasks)}"
                )
            if self.analytic_scores not in (None, *SCORES):
                raise ValueError(
                    f"analytic_scores is {shown(self.analytic_scores)}; choose one of {', '.join(SCORES)}"
                )
            largest = max(self.analytic_width, self.ranpac_width if self.head == "ranpac" else self.num_classes)
            if (self.teacher_width or 0) * largest > MAX_WEIGHTS:
                raise ValueError(
                    f"teacher_width ({self.teacher_width:,}) times analytic_width, ranpac_width or the number of "
                    f"classes ({largest:,}) is more than {MAX_WEIGHTS:,}"
                )
        if self.kd_branch in ("cdl_prompt", "analytic") and self.teacher_width is None:
            raise ValueError(f"kd_branch {self.kd_branch!r} needs teacher_width, got {self.teacher_width}")


__all__ = ["PromptViTConfig"]
