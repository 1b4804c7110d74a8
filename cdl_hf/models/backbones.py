"""Frozen timm Vision Transformers: made by name, or loaded with their pre-trained weights."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer

from .prefix_attention import check_backbone

BUNDLED = Path(__file__).parents[1] / "data" / "backbones"


@dataclass
class PretrainedBackbone:
    """A loaded transformer and what is needed to make it again.

    Args:
        name: timm name (architecture, with the tag of its weights where there is one).
        args: Keyword arguments of `timm.create_model`.
        module: The transformer, without classifier.
        pretrained_cfg: timm's data configuration: input size, mean, std, interpolation, crop.
        source: What the user named: a timm tag, a Hub repository or the name of a folder.
        hub_name: The repository on the Hub that its weights are from, if they are.
    """

    name: str
    args: dict[str, Any]
    module: VisionTransformer
    pretrained_cfg: dict[str, Any]
    source: str
    hub_name: str | None = None

    @cached_property
    def digest(self) -> str:
        """See [`backbone_digest`]."""
        return backbone_digest(self.module)

    def is_the_same_as(self, other: "PretrainedBackbone") -> bool:
        return (self.name, self.args, self.digest) == (other.name, other.args, other.digest)


def create_backbone(name: str, **args) -> VisionTransformer:
    """A timm Vision Transformer without classifier and without pre-trained weights.

    Raises:
        ValueError: timm does not know the name or an argument, or the model is not a plain ViT with a class token.
    """
    return _create(name, name, args, pretrained=False)


def load_backbone(
    source: str | Path, *, weights: str | Path | None = None, pretrained: bool = True, **args
) -> PretrainedBackbone:
    """Loads a plain timm Vision Transformer.

    Args:
        source: The name of a bundled one (`vit_micro_quickdraw`), a timm name with its tag
            (`vit_base_patch16_224.augreg2_in21k_ft_in1k`, fetched from the Hub), a Hub repository
            (`hf_hub:timm/...`), or a folder in timm's form (`config.json` and `model.safetensors`), such as
            `recipes/pretrain.py` writes.
        weights: A local file with the weights of the architecture `source`, instead of the Hub's.
        pretrained: Whether to load weights at all; random ones serve to measure speed.
        args: Keyword arguments of `timm.create_model`, such as `img_size=224` (position embeddings are resampled).

    Raises:
        ValueError: The architecture is unknown or unsuitable, no tag says which weights, or they cannot be loaded.
    """
    folder = BUNDLED / source if (BUNDLED / source).is_dir() else Path(source)
    if folder.is_dir():
        config_file = folder / "config.json"
        if not config_file.is_file():
            raise ValueError(f"{folder} is not a saved backbone: it has no config.json (see recipes/pretrain.py)")
        config = json.loads(config_file.read_text())
        name, args = config["architecture"], {**config.get("model_args", {}), **args}
        args.pop("num_classes", None)
        module = _create(f"local-dir:{folder}", str(source), args, pretrained=pretrained)
        return PretrainedBackbone(name, args, module, module.pretrained_cfg, folder.name)

    name = str(source)
    overlay = {}
    if weights is not None:
        if not Path(weights).is_file():
            raise ValueError(f"the weights file {weights} of {name} does not exist")
        overlay["pretrained_cfg_overlay"] = {"file": str(weights)}
    elif pretrained and ":" not in name and "." not in name:
        tags = timm.list_pretrained(f"{name}.*")
        if not tags:
            raise ValueError(f"there is no backbone {name!r}: {_unknown(name)}")
        raise ValueError(f"{name!r} does not say which pre-trained weights; choose one of: {', '.join(tags)}")
    module = _create(name, name, args, pretrained=pretrained, **overlay)
    if ":" in name:  # a Hub repository: its config.json knows the architecture and its arguments
        name, args = module.pretrained_cfg["architecture"], {**(module.pretrained_cfg.get("model_args") or {}), **args}
    hub_name = str(source).split(":", 1)[1] if ":" in str(source) else module.pretrained_cfg.get("hf_hub_id")
    return PretrainedBackbone(name, args, module, module.pretrained_cfg, str(source), hub_name if pretrained else None)


def find_backbone(
    source: str, digest: str, args: dict[str, Any], given: Sequence[PretrainedBackbone] = ()
) -> PretrainedBackbone:
    """The transformer with this digest: one of `given`, or else the one that its source names.

    Args:
        source, args: What [`load_backbone`] takes.

    Raises:
        ValueError: It cannot be loaded, or the source holds other weights now.
    """
    for backbone in given:
        if backbone.digest == digest:
            return backbone
    advice = "give the right ones: from_pretrained(..., backbones=[load_backbone(...)])"
    try:
        found = load_backbone(source, **args)
    except ValueError as error:
        raise ValueError(
            f"the model was saved without the weights of {source}, which cannot be loaded here: {error}; {advice}"
        ) from error
    if found.digest != digest:
        raise ValueError(
            f"the weights found for {source} are not those that the prompts were learnt for (SHA-256 "
            f"{found.digest[:12]}..., not {digest[:12]}...); {advice}"
        )
    return found


def backbone_digest(module: VisionTransformer) -> str:
    """SHA-256 over the weights of a frozen transformer, by which a checkpoint names it.

    Without the position embeddings: timm resamples them to the size of the images, not to the same bit everywhere. On
    the meta device, where there are no weights, over their shapes.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if name != "pos_embed":
            digest.update(name.encode())
            if value.is_meta:
                digest.update(repr(tuple(value.shape)).encode())
            else:
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _create(name: str, shown_name: str, args: dict[str, Any], **kwargs) -> VisionTransformer:
    try:
        backbone = timm.create_model(name, num_classes=0, **args, **kwargs)
    except (RuntimeError, TypeError, AssertionError) as error:  # unknown name or argument, weights of another shape
        reason = _unknown(name) if "Unknown model" in str(error) else str(error)
        raise ValueError(f"timm cannot make the backbone {shown_name!r} with {args}: {reason}") from error
    except (OSError, SafetensorError) as error:  # not on the Hub, no network, not in the local cache, unreadable file
        raise ValueError(f"the weights of {shown_name!r} cannot be read: {error}") from error
    check_backbone(backbone, shown_name)
    return backbone


def _unknown(name: str) -> str:
    architecture = name.split(".")[0]
    near = timm.list_models(f"*{architecture[:12]}*", module="vision_transformer")[:5]
    return f"no such folder, and timm has no model {architecture!r}" + (f"; near: {', '.join(near)}" if near else "")
