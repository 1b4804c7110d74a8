"""Prompted Vision Transformer: a frozen backbone, learned prompts, and a head that grows task by task."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .analytic import AnalyticHead
from .backbones import PretrainedBackbone, create_backbone
from .classifiers import CLASSIFIERS, Classifier, calibration_factor
from .computed import Computed
from .configuration_prompt_vit import PromptViTConfig
from .growth import Growing, names_of
from .heads import LinearHead, UnitNormHead
from .kd_branches import BRANCHES, KDBranch
from .left_out import left_out_pattern
from .low_rank import LowRankUpdate
from .network_checks import check_prompts
from .networks import network_of
from .outputs import Encoded, PromptViTOutput
from .prompt_pools import POOLS, PromptPool
from .readout import LAST, Readout

LOGIT_SCALE = "logit_scale"  # name of the buffer; earlier versions had none, which is a scale of 1


class PromptViTForImageClassification(Growing):
    """
    A frozen network of timm with a head and, on a Vision Transformer, a prompt pool; some students also have a KD
    branch with a KD head.

    Tasks begin with [`start_task`] and end with [`end_task`]. The configuration counts the started tasks, so that a
    model saved after any task predicts the same after `from_pretrained`.
    """

    config: PromptViTConfig
    config_class = PromptViTConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    accepts_loss_kwargs = False
    _auto_class = "AutoModelForImageClassification"  # its code travels with a checkpoint
    _no_split_modules = ["PrefixBlock", "PrefixEvaBlock"]
    _keep_in_fp32_modules_strict = ["head", "kd_head", "classifier", "kd_classifier", "analytic"]
    # Statistics of RanPAC in checkpoints of earlier versions, needed only to add classes.
    _keys_to_ignore_on_load_unexpected = [r"^(kd_)?classifier\.(gram|sums)$"]
    _supports_sdpa = True

    def __init__(self, config: PromptViTConfig):
        super().__init__(config)
        names = cast(dict[int, str], config.id2label)
        for class_id in range(config.seen_classes):
            names.setdefault(class_id, f"LABEL_{class_id}")  # as transformers does without names
        self.backbone = create_backbone(config.backbone, **config.backbone_args)
        embed_dim, depth = self.network.embed_dim, self.network.depth
        self.query_backbone: nn.Module | None = None
        if config.query_backbone is not None:
            self.query_backbone = create_backbone(config.query_backbone, **config.query_backbone_args)
        query_dim = self.query_network.embed_dim
        pool = POOLS[config.prompt_method]
        check_prompts(self.backbone, config, needs_class_token=pool.needs_class_token)
        self.prompt_pool: PromptPool = pool(config, embed_dim, query_dim, depth)
        self.prompt_pool.add_updates(self.network.blocks)
        head = self.prompt_pool.head_class
        self.head = head(embed_dim, config.num_classes)
        self.kd_branch: KDBranch | None = None
        self.kd_head: LinearHead | None = None
        if config.kd_branch not in ("none", "analytic"):
            self.kd_branch = BRANCHES[config.kd_branch](config, embed_dim, query_dim, depth)
            self.kd_head = head(embed_dim, config.num_classes)
        # What predicts in place of the heads, which train the prompts.
        self.classifier: Classifier | None = None
        self.kd_classifier: Classifier | None = None
        self.analytic: AnalyticHead | None = None
        self.readout = self.readout_of_classifier = LAST  # what `head_features` reads
        if config.head != "linear":
            classifier = CLASSIFIERS[config.head]
            own = self.readout = self.readout_of_classifier = classifier.readout(config)
            if own.layers > depth:
                raise ValueError(f"ranpac_layers is {own.layers}, but {config.backbone} has {depth} blocks")
            self.classifier = classifier(config, self.network.width(own))
            if self.kd_head is not None:
                self.kd_classifier = classifier(config, self.network.width(own))
            if config.kd_branch == "analytic":
                self.readout = self.network.all_layers
                self.analytic = AnalyticHead(config, self.network.width(self.readout))
            self.logit_scale = nn.Buffer(torch.empty(()))  # of the computed classifiers, for the probabilities
        self._in_task = False
        self._freeze()
        self._keys_to_ignore_on_load_missing = [LOGIT_SCALE, *map(left_out_pattern, config.left_out)]
        self.post_init()

    @classmethod
    def from_backbone(
        cls, backbone: PretrainedBackbone, query_backbone: PretrainedBackbone | None = None, **config
    ) -> "PromptViTForImageClassification":
        """A model with new prompts on a pretrained backbone.

        Args:
            backbone: Output of [`load_backbone`].
            query_backbone: The transformer that computes the query; by default the model's own backbone. If a teacher
                uses that of its student, one query pass serves both.
            config: Fields of [`PromptViTConfig`]: `classes_per_task`, `prompt_method`, ... `analytic_groups` is by
                default one for each token that an analytic student reads.

        Raises:
            ValueError: The fields do not fit each other or the backbones.
        """
        if query_backbone is not None and query_backbone.is_the_same_as(backbone):
            query_backbone = None
        if config.get("kd_branch") == "analytic" and config.get("analytic_groups") is None:
            config["analytic_groups"] = network_of(backbone.module).num_tokens
        checked = PromptViTConfig.checked(backbone=backbone.name, backbone_args=backbone.args, **config)
        checked.backbone_weights = backbone.reference
        if query_backbone is not None:
            checked.query_backbone, checked.query_backbone_args = query_backbone.name, query_backbone.args
            checked.query_backbone_weights = query_backbone.reference
        model = cls(checked)
        for network, loaded in ((model.backbone, backbone), (model.query_backbone, query_backbone)):
            if network is not None and loaded is not None:
                network.load_state_dict(loaded.module.state_dict())
                data_config = {**loaded.pretrained_cfg, "hf_hub_id": loaded.hub_name}
                cast(Any, network).pretrained_cfg = data_config  # timm declares no attribute
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (PromptPool, LowRankUpdate, LinearHead, Computed, AnalyticHead, KDBranch)):
            module.init_weights()
        elif module is self and self.classifier is not None:
            init.ones_(self.logit_scale)
        elif isinstance(module, VisionTransformer):
            for parameter in (module.cls_token, module.reg_token, module.pos_embed):
                if parameter is not None:
                    init.trunc_normal_(parameter, std=0.02)

    def train(self, mode: bool = True) -> "PromptViTForImageClassification":
        """As `nn.Module.train`, but frozen modules stay frozen and in evaluation mode."""
        super().train(mode)
        self._freeze()  # here too: `from_pretrained` makes new parameters with gradients, and calls this
        return self

    def _freeze(self) -> None:
        norms = (head.norm for head in (self.head, self.kd_head) if isinstance(head, UnitNormHead))
        for module in (self.backbone, self.query_backbone, *norms):
            if module is not None:
                module.requires_grad_(False).eval()

    @property
    def computed(self) -> list[Computed]:
        """What is computed to predict in place of the trained heads."""
        found: list[Computed | None] = [self.classifier, self.kd_classifier]
        if self.analytic is not None:
            found += [self.analytic.predictor, self.analytic.classifier]
        return [module for module in found if module is not None]

    def start_task(self, class_names: Sequence[str]) -> None:
        """Begins the next task: adds its classes to the outputs and to `config.id2label`, and prepares its prompts.

        Args:
            class_names: Names of the task's classes in the order of their class ids.

        Raises:
            ValueError: The stream has no further task, or the task has another number of classes.
        """
        config, task_id = self.config, self.config.tasks_seen
        if task_id == config.num_tasks:
            raise ValueError(f"all {config.num_tasks} tasks of the stream have been started")
        if len(class_names) != config.classes_per_task[task_id]:
            raise ValueError(
                f"task {task_id} has {config.classes_per_task[task_id]} classes, but got {len(class_names)} names"
            )
        known = names_of(config)
        config.tasks_seen += 1
        config.id2label = dict(enumerate([*known, *class_names]))
        config.label2id = {name: i for i, name in config.id2label.items()}
        if task_id < config.num_trained_tasks:
            self.prompt_pool.start_task(task_id)
        self._in_task = True

    def end_task(self) -> None:
        """Ends the training of the current task: APT and LoRA merge what they have trained."""
        task_id = self.config.tasks_seen - 1
        if task_id < self.config.num_trained_tasks:
            self.prompt_pool.end_task(task_id)
        self._in_task = False

    @torch.no_grad()
    def head_features(self, pixel_values: Tensor, query: Tensor | None = None) -> Tensor:
        """What the computed classifiers read (see [`Readout`]): (B, 1, W), or (B, 2, W) with a KD head.

        The last D of the W values are what the heads read, and without a computed classifier there are no others.

        Args:
            pixel_values: (B, 3, H, W)
            query: (B, Dq), as in `forward`.
        """
        if query is None:
            query = self.query(pixel_values)
        return self._encode(pixel_values, query, self.readout).features

    def fit_classifier(
        self,
        features: Tensor,
        labels: Tensor,
        teacher_features: Tensor | None = None,
        mirrored: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Fits the images of a task to the computed classifiers, if the model has them, and their probabilities.

        Args:
            features: (n, 1 or 2, W), outputs of [`head_features`] in evaluation mode.
            labels: (n,), class ids.
            teacher_features: (n, W_t), what the classifier of an analytic student's teacher reads of the same images.
            mirrored: Features (n, W) and teacher's features (n, W_t) of the mirrored images, for an analytic student.
        """
        if self.classifier is None:
            return
        own = self.network.select(features, self.readout_of_classifier, self.readout)
        for i, classifier in enumerate((self.classifier, self.kd_classifier)):
            if classifier is not None:
                classifier.fit(own[:, i], labels)
        left_out = self.classifier.held_out(labels)
        if self.analytic is not None:
            assert teacher_features is not None
            self.analytic.fit(features[:, 0], teacher_features, labels, mirrored)
            own_scores = self.classifier.held_out_scores(own[left_out, 0], self.config.seen_classes)
            self.analytic.choose_scores(
                features[left_out, 0], teacher_features[left_out], labels[left_out], own_scores
            )
        if left_out.any():
            scores = self._computed_scores(features[left_out], self.config.seen_classes, held_out=True)
            self.logit_scale.fill_(calibration_factor(scores, labels[left_out]))

    def carry_classifier(self, before: Tensor, after: Tensor, labels: Tensor) -> None:
        """Carries the computed classifiers' earlier tasks along with features that a task has changed.

        Args:
            before, after: (n, 1 or 2, W), outputs of [`head_features`] for the task's images before and after it.
            labels: (n,), class ids.
        """
        before, after = (self.network.select(x, self.readout_of_classifier, self.readout) for x in (before, after))
        for i, classifier in enumerate((self.classifier, self.kd_classifier)):
            if classifier is not None:
                classifier.carry(before[:, i], after[:, i], labels)

    @torch.no_grad()
    def query(self, pixel_values: Tensor) -> Tensor | None:
        """The query of each image: CLS output of the frozen query network without prompts, after its final norm.

        Args:
            pixel_values: (B, 3, H, W)

        Returns:
            (B, Dq), or `None` for a prompt method without queries, or with those of its own pass (`query_block`).
        """
        if not self.prompt_pool.needs_query_pass:
            return None
        return self.query_network.features(pixel_values)

    def shares_query_with(self, other: "PromptViTForImageClassification") -> bool:
        """Whether one query pass serves both: both need one, and their query networks have equal weights.

        On the meta device, which has no weights, the shapes must be equal.
        """
        if not (self.prompt_pool.needs_query_pass and other.prompt_pool.needs_query_pass):
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
                Class ids of classes seen, or -100 to ignore an image; in training mode between `start_task` and
                `end_task`, class ids of the task.
            query (`torch.FloatTensor` of shape `(B, Dq)`, *optional*):
                Output of [`query`], to compute it once for teacher and student; computed if not given.
            output_hidden_states (`bool`, *optional*):
                Whether to return all tokens of all blocks. If not, the last block computes only those for the heads.

        Raises:
            ValueError: No task has been started, or labels are not class ids of its classes.
        """
        if not self.config.tasks_seen:
            raise ValueError("the model has seen no class yet: call start_task(class_names) first")
        if query is None:
            query = self.query(pixel_values)
        is_computed = self.classifier is not None and not self.training
        encoded = self._encode(pixel_values, query, self.readout if is_computed else LAST, output_hidden_states)
        features, prompt_loss = encoded.features, encoded.prompt_loss

        seen, last = self.config.seen_classes, slice(-self.network.embed_dim, None)
        logits = head_logits = self.head(features[:, 0, last], seen)
        kd_logits = None if self.kd_head is None else self.kd_head(features[:, 1, last], seen)
        if is_computed:
            logits = self.logit_scale * self._computed_scores(features, seen)
        elif kd_logits is not None and self.kd_branch is not None and not self.training:
            logits = torch.lerp(logits, kd_logits, self.kd_branch.kd_weight)
        loss = None
        if labels is not None:
            if self.training and kd_logits is not None and self.kd_branch is not None and not self._in_task:
                loss = self._cross_entropy(torch.lerp(logits, kd_logits, self.kd_branch.kd_weight), labels)
            else:
                loss = self._cross_entropy(logits, labels)
            if prompt_loss is not None:
                loss = loss + prompt_loss
        elif not self.training:
            prompt_loss = None  # pipelines split each output by images
        return PromptViTOutput(loss, logits, head_logits, kd_logits, prompt_loss, encoded.hidden_states)

    def _encode(
        self, pixel_values: Tensor, query: Tensor | None, readout: Readout, output_hidden_states: bool | None = None
    ) -> Encoded:
        task_id = min(self.config.tasks_seen, self.config.num_trained_tasks) - 1
        hidden_states = bool(output_hidden_states)
        return self.network.encode(
            pixel_values, self.prompt_pool, self.kd_branch, query, task_id, readout, hidden_states
        )

    def _computed_scores(self, features: Tensor, num_classes: int, *, held_out: bool = False) -> Tensor:
        """Scores (B, num_classes) of the computed classifiers, mixed as those of the heads.

        Args:
            features: (B, 1 or 2, W)
            held_out: Whether they are held-out images of the newest task: see [`Classifier.held_out_scores`].
        """

        def scores_of(classifier: Classifier, features: Tensor) -> Tensor:
            return (classifier.held_out_scores if held_out else classifier)(features, num_classes)

        assert self.classifier is not None
        own = self.network.select(features, self.readout_of_classifier, self.readout)
        scores = scores_of(self.classifier, own[:, 0])
        if self.kd_classifier is not None and self.kd_branch is not None:
            scores = torch.lerp(scores, scores_of(self.kd_classifier, own[:, 1]), self.kd_branch.kd_weight)
        if self.analytic is not None:
            scores = self.analytic(features[:, 0], scores, held_out=held_out)
        return scores

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of class ids (B,) over all classes seen or, in training, over those of the task."""
        masked = self.training and self._in_task
        classes = self.config.current_classes if masked else slice(0, self.config.seen_classes)
        if labels.is_floating_point() or labels.ndim != 1:
            raise ValueError(f"labels must be integers (B,), got {labels.dtype} {tuple(labels.shape)}")
        labels = labels.long()
        ignored = labels == -100
        invalid = labels[~ignored & ((labels < classes.start) | (labels >= classes.stop))]
        if len(invalid):
            owner = "of the current task" if masked else "seen by the model"
            raise ValueError(
                f"labels must be class ids from {classes.start} to {classes.stop - 1}, the classes {owner}, got "
                f"{invalid[0].item()}"
            )
        targets = torch.where(ignored, labels, labels - classes.start)
        return F.cross_entropy(logits[:, classes].float(), targets)


def frozen_networks(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The backbones and query backbones of all models in a module, with their names in it."""
    for name, child in module.named_modules():
        if isinstance(child, PromptViTForImageClassification):
            for role, network in (("backbone", child.backbone), ("query_backbone", child.query_backbone)):
                if network is not None:
                    yield f"{name}.{role}".removeprefix("."), network


__all__ = ["PromptViTForImageClassification", "PromptViTOutput"]
