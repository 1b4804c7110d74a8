"""A frozen Vision Transformer steered by learnt prompts, with a head that grows task by task."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .backbones import PretrainedBackbone, create_backbone, left_out_pattern, restore_backbones
from .classifiers import CLASSIFIERS, Classifier
from .configuration_prompt_vit import PromptViTConfig
from .heads import LinearHead, UnitNormHead
from .kd_branches import BRANCHES, KDBranch
from .prefix_attention import cls_features, embed, final_norm
from .prompt_pools import POOLS, PromptPool


@dataclass
class PromptViTOutput(ModelOutput):
    """
    Output of [`PromptViTForImageClassification`]. C_seen is the number of classes seen so far.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            Cross-entropy plus `prompt_loss`. Over all classes seen, of what predicts: the heads, mixed where there are
            two, and in evaluation mode a computed classifier in their place. In training mode between [`start_task`]
            and [`end_task`], as in the papers: over the classes of that task alone, of the own head.
        logits (`torch.FloatTensor` of shape `(B, C_seen)`):
            In evaluation mode what a user predicts with, heads mixed; in training mode the model's own head alone.
        head_logits (`torch.FloatTensor` of shape `(B, C_seen)`): The own trained head's, which a student follows.
        kd_logits (`torch.FloatTensor` of shape `(B, C_seen)`, *optional*): The KD head's, when there is a KD branch.
        prompt_loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned in training mode or with `labels`):
            The prompt method's own loss, if it has one.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            The tokens (B, n, D) before the first block and after each, before the final norm.
    """

    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]  # always given; ModelOutput wants a default
    head_logits: Tensor = None  # type: ignore[assignment]
    kd_logits: Tensor | None = None
    prompt_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class PromptViTForImageClassification(PreTrainedModel):
    """
    A frozen timm Vision Transformer with a prompt pool, a head, and, for some students, a KD branch with its head.

    Tasks begin with [`start_task`] and end with [`end_task`]; what was learnt, and of how many tasks, is in the
    configuration and the weights, so that `from_pretrained` after any task predicts as before saving.
    """

    config: PromptViTConfig
    config_class = PromptViTConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    accepts_loss_kwargs = False
    _auto_class = "AutoModelForImageClassification"  # its code travels with a checkpoint
    _no_split_modules = ["PrefixBlock"]
    _keep_in_fp32_modules_strict = ["head", "kd_head", "classifier", "kd_classifier"]
    # Of RanPAC, in checkpoints of earlier versions: what only further classes need.
    _keys_to_ignore_on_load_unexpected = [r"^(kd_)?classifier\.(gram|sums)$"]
    _supports_sdpa = True

    def __init__(self, config: PromptViTConfig):
        super().__init__(config)
        names = cast(dict[int, str], config.id2label)
        for class_id in range(config.seen_classes):
            names.setdefault(class_id, f"LABEL_{class_id}")  # as transformers does without names
        self.backbone = create_backbone(config.backbone, **config.backbone_args)
        embed_dim, depth = self.backbone.embed_dim, len(self.backbone.blocks)
        self.query_backbone: VisionTransformer | None = None
        if config.query_backbone is not None:
            self.query_backbone = create_backbone(config.query_backbone, **config.query_backbone_args)
        query_dim = (self.query_backbone or self.backbone).embed_dim
        self.prompt_pool: PromptPool = POOLS[config.prompt_method](config, embed_dim, query_dim, depth)
        head = self.prompt_pool.head_class
        self.head = head(embed_dim, config.num_classes)
        self.kd_branch: KDBranch | None = None
        self.kd_head: LinearHead | None = None
        if config.kd_branch != "none":
            self.kd_branch = BRANCHES[config.kd_branch](config, embed_dim, query_dim, depth)
            self.kd_head = head(embed_dim, config.num_classes)
        # What predicts in place of the heads, which train the prompts.
        self.classifier: Classifier | None = None
        self.kd_classifier: Classifier | None = None
        if config.head != "linear":
            self.classifier = CLASSIFIERS[config.head](config, embed_dim)
            if self.kd_head is not None:
                self.kd_classifier = CLASSIFIERS[config.head](config, embed_dim)
        self._in_task = False
        self._freeze()
        self._keys_to_ignore_on_load_missing = [left_out_pattern(name) for name in config.left_out]
        self.post_init()

    @classmethod
    def from_backbone(
        cls, backbone: PretrainedBackbone, query_backbone: PretrainedBackbone | None = None, **config
    ) -> "PromptViTForImageClassification":
        """A model with new prompts on a pre-trained transformer.

        Args:
            backbone: Output of [`load_backbone`].
            query_backbone: The transformer that makes the query; the model's own by default. A teacher takes its
                student's, so that one pass serves both.
            config: Fields of [`PromptViTConfig`]: `classes_per_task`, `prompt_method`, ...

        Raises:
            ValueError: The fields do not fit each other or the transformers.
        """
        if query_backbone is not None and query_backbone.is_the_same_as(backbone):
            query_backbone = None
        checked = PromptViTConfig.checked(backbone=backbone.name, backbone_args=backbone.args, **config)
        checked.backbone_weights = backbone.reference
        if query_backbone is not None:
            checked.query_backbone, checked.query_backbone_args = query_backbone.name, query_backbone.args
            checked.query_backbone_weights = query_backbone.reference
        model = cls(checked)
        model.backbone.load_state_dict(backbone.module.state_dict())
        model.backbone.pretrained_cfg = {**backbone.pretrained_cfg, "hf_hub_id": backbone.hub_name}
        if query_backbone is not None and model.query_backbone is not None:
            model.query_backbone.load_state_dict(query_backbone.module.state_dict())
            model.query_backbone.pretrained_cfg = {
                **query_backbone.pretrained_cfg,
                "hf_hub_id": query_backbone.hub_name,
            }
        return model

    def save_pretrained(  # type: ignore[override]  # takes all but the folder by keyword
        self, save_directory: str | PathLike, *, save_backbone: bool = True, **kwargs
    ) -> None:
        """As `PreTrainedModel.save_pretrained`.

        Args:
            save_backbone: `False` leaves out the weights of the frozen transformers, by far the largest part. The
                checkpoint names them by source and digest, and [`from_pretrained`] puts them back.

        Raises:
            ValueError: They are to be left out, but nothing tells where they are from.
        """
        if save_backbone:
            super().save_pretrained(save_directory, **kwargs)
            return
        left_out = [name for name in ("backbone", "query_backbone") if getattr(self, name) is not None]
        for name in left_out:
            if not getattr(self.config, f"{name}_weights"):
                raise ValueError(
                    f"the {name}'s weights cannot be left out: nothing tells where they are from, since the model was "
                    "not made with from_backbone"
                )
        is_left_out = re.compile("|".join(map(left_out_pattern, left_out)))
        state_dict = kwargs.pop("state_dict", None) or self.state_dict()
        kept = {name: tensor for name, tensor in state_dict.items() if not is_left_out.match(name)}
        self.config.left_out = left_out
        try:
            super().save_pretrained(save_directory, state_dict=kept, **kwargs)
        finally:
            self.config.left_out = []  # this model has them

    @classmethod
    def from_pretrained(  # type: ignore[override]  # takes all but the path by keyword
        cls,
        pretrained_model_name_or_path: str | PathLike,
        *model_args,
        backbones: Sequence[PretrainedBackbone] = (),
        output_loading_info: bool = False,
        **kwargs,
    ):
        """As `PreTrainedModel.from_pretrained`, also of what was saved with `save_backbone=False`.

        Args:
            backbones: Outputs of [`load_backbone`] that take the place of weights left out, where these cannot be
                loaded by their names alone (a folder, a file, no network).

        Raises:
            ValueError: A transformer left out cannot be loaded, or is not the one that the prompts were learnt for, or
                weights and configuration do not fit.
        """
        kwargs.setdefault("use_safetensors", True)  # nothing is unpickled
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
            model, loading_info = loaded
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path} have other shapes than its configuration says"
            ) from error
        except SafetensorError as error:
            raise ValueError(f"the weights of {pretrained_model_name_or_path} are damaged: {error}") from error
        download = {name: kwargs[name] for name in ("local_files_only", "cache_dir", "token") if name in kwargs}
        restore_backbones(model, backbones, **download)
        return (model, loading_info) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (PromptPool, LinearHead, Classifier, KDBranch)):
            module.init_weights()
        elif isinstance(module, VisionTransformer):
            for parameter in (module.cls_token, module.reg_token, module.pos_embed):
                if parameter is not None:
                    init.trunc_normal_(parameter, std=0.02)

    def train(self, mode: bool = True) -> "PromptViTForImageClassification":
        """As `nn.Module.train`, but what is frozen stays frozen and in evaluation mode."""
        super().train(mode)
        self._freeze()  # here too, since `from_pretrained` makes new parameters, all with gradients, and calls this
        return self

    def _freeze(self) -> None:
        norms = (head.norm for head in (self.head, self.kd_head) if isinstance(head, UnitNormHead))
        for module in (self.backbone, self.query_backbone, *norms):
            if module is not None:
                module.requires_grad_(False).eval()

    def start_task(self, class_names: Sequence[str]) -> None:
        """Begins the next task: its classes join the outputs and `config.id2label`, its prompts are made ready.

        Args:
            class_names: Names of the task's classes in the order of their columns.

        Raises:
            ValueError: The stream has no further task, or the number of names is not that of the task's classes.
        """
        config, task_id = self.config, self.config.tasks_seen
        if task_id == config.num_tasks:
            raise ValueError(f"all {config.num_tasks} tasks of the stream have been started")
        if len(class_names) != config.classes_per_task[task_id]:
            raise ValueError(
                f"task {task_id} has {config.classes_per_task[task_id]} classes, but got {len(class_names)} names"
            )
        names = cast(dict[int, str], config.id2label)
        known = [names[i] for i in range(config.seen_classes)]
        config.tasks_seen += 1
        config.id2label = dict(enumerate([*known, *class_names]))
        config.label2id = {name: i for i, name in config.id2label.items()}
        self.prompt_pool.start_task(task_id)
        self._in_task = True

    def end_task(self) -> None:
        """Ends the training of the task begun last: APT merges its prompts."""
        self.prompt_pool.end_task(self.config.tasks_seen - 1)
        self._in_task = False

    @torch.no_grad()
    def head_features(self, pixel_values: Tensor, query: Tensor | None = None) -> Tensor:
        """What the heads read: (B, 1, D) of the head, or (B, 2, D) of the head and the KD head.

        Args:
            pixel_values: (B, 3, H, W)
            query: (B, Dq), as in `forward`.
        """
        if query is None:
            query = self.query(pixel_values)
        features, kd_features, _, _ = self._encode(pixel_values, query, None)
        return torch.stack([features] if kd_features is None else [features, kd_features], dim=1)

    def fit_classifier(self, features: Tensor, labels: Tensor) -> None:
        """Adds a task's images to the classifiers that predict in place of the heads, if the model has such.

        Args:
            features: (n, 1 or 2, D), outputs of [`head_features`] in evaluation mode.
            labels: (n,), columns.
        """
        for i, classifier in enumerate((self.classifier, self.kd_classifier)):
            if classifier is not None:
                classifier.fit(features[:, i], labels)

    @torch.no_grad()
    def query(self, pixel_values: Tensor) -> Tensor | None:
        """The query of each image: CLS output of the frozen, un-prompted query network, after its final norm.

        Args:
            pixel_values: (B, 3, H, W)

        Returns:
            (B, Dq), or `None` for a method whose prompts take no query.
        """
        if not self.prompt_pool.needs_query:
            return None
        return cls_features(self.query_backbone or self.backbone, pixel_values)

    def shares_query_with(self, other: "PromptViTForImageClassification") -> bool:
        """Whether one query pass serves both: both take a query, and their query networks have equal weights.

        On the meta device, where there are no weights, equal shapes are enough.
        """
        if not (self.prompt_pool.needs_query and other.prompt_pool.needs_query):
            return False
        ours, theirs = ((model.query_backbone or model.backbone).state_dict() for model in (self, other))
        return ours.keys() == theirs.keys() and all(
            ours[name].shape == theirs[name].shape
            and (ours[name].is_meta or torch.equal(ours[name], theirs[name].to(ours[name].device)))
            for name in ours
        )

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        query: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> PromptViTOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): Images as the image processor returns them.
            labels (`torch.LongTensor` of shape `(B,)`, *optional*):
                Columns of the classes seen, or -100 for none; in training mode between `start_task` and `end_task`
                of that task's classes.
            query (`torch.FloatTensor` of shape `(B, Dq)`, *optional*):
                Output of [`query`], to compute it once for teacher and student; computed here when not given.
            output_hidden_states (`bool`, *optional*):
                Whether to return all tokens of all blocks. Without it the last block computes only what a head reads.

        Raises:
            ValueError: No task has been started, or labels are not those of its classes.
        """
        if not self.config.tasks_seen:
            raise ValueError("the model has seen no class yet: call start_task(class_names) first")
        if query is None:
            query = self.query(pixel_values)
        features, kd_features, prompt_loss, hidden_states = self._encode(pixel_values, query, output_hidden_states)

        seen = self.config.seen_classes
        logits = head_logits = self.head(features, seen)
        kd_logits = None if self.kd_head is None else self.kd_head(kd_features, seen)
        if not self.training:
            kd_part = kd_logits
            if self.classifier is not None:
                logits = self.classifier(features, seen)
                kd_part = None if self.kd_classifier is None else self.kd_classifier(kd_features, seen)
            if kd_part is not None and self.kd_branch is not None:
                logits = torch.lerp(logits, kd_part, self.kd_branch.kd_weight)
        loss = None
        if labels is not None:
            if self.training and kd_logits is not None and self.kd_branch is not None and not self._in_task:
                loss = self._cross_entropy(torch.lerp(logits, kd_logits, self.kd_branch.kd_weight), labels)
            else:
                loss = self._cross_entropy(logits, labels)
            if prompt_loss is not None:
                loss = loss + prompt_loss
        elif not self.training:
            prompt_loss = None  # pipelines take each output apart by images
        return PromptViTOutput(loss, logits, head_logits, kd_logits, prompt_loss, hidden_states)

    def _encode(
        self, pixel_values: Tensor, query: Tensor | None, output_hidden_states: bool | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[Tensor, ...] | None]:
        """Features (B, D) that the head and the KD head read, the prompt loss, and all tokens if asked for."""
        vit, branch, task_id = self.backbone, self.kd_branch, self.config.tasks_seen - 1
        with torch.no_grad():
            x = embed(vit, pixel_values)
        cls_index, read = 0, [0]
        if branch is not None:
            x = branch.add_token(x)
            cls_index, read = branch.cls_index, [branch.cls_index, branch.kd_index]
        hidden_states: tuple[Tensor, ...] = (x,) if output_hidden_states else ()
        prompt_losses = []
        for i, block in enumerate(vit.blocks):
            prefix, prompt_loss = self.prompt_pool(query, i, task_id)
            suffix = None
            if branch is not None:
                prefix, suffix = branch.attention_context(prefix, query, i, task_id)
            last = i == len(vit.blocks) - 1
            rows = read if last and not output_hidden_states else None
            x = block(x, prefix, suffix, cls_index, rows)
            if prompt_loss is not None:
                prompt_losses.append(prompt_loss)
            if output_hidden_states:
                hidden_states += (x,)
        tokens = final_norm(vit, x[:, read] if output_hidden_states else x)
        kd_features = None if branch is None else tokens[:, 1]
        total = cast(Tensor, sum(prompt_losses)) if prompt_losses else None
        return tokens[:, 0], kd_features, total, hidden_states if output_hidden_states else None

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of columns `labels` (B,): all classes seen compete or, as in the papers, those of the task in training."""
        masked = self.training and self._in_task
        columns = self.config.current_classes if masked else slice(0, self.config.seen_classes)
        if labels.is_floating_point() or labels.ndim != 1:
            raise ValueError(f"labels must be whole numbers (B,), got {labels.dtype} {tuple(labels.shape)}")
        labels = labels.long()
        ignored = labels == -100
        strange = labels[~ignored & ((labels < columns.start) | (labels >= columns.stop))]
        if len(strange):
            what = "the task that is trained has" if masked else "the model has seen"
            raise ValueError(
                f"labels must be columns {columns.start} to {columns.stop - 1}, the classes that {what}, got "
                f"{strange[0].item()}"
            )
        targets = torch.where(ignored, labels, labels - columns.start)
        return F.cross_entropy(logits[:, columns].float(), targets)


__all__ = ["PromptViTForImageClassification", "PromptViTOutput"]
