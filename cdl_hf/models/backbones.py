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
from timm.models import load_checkpoint
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from .prefix_attention import PrefixBlock, check_backbone

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
        if weights is not None:
            raise ValueError(f"the folder {folder} has weights of its own: leave out those of {weights}")
        config = _read_config(folder)
        name, args = config["architecture"], {**config.get("model_args", {}), **args}
        args.pop("num_classes", None)
        module = _create(f"local-dir:{folder}", str(source), args, pretrained=False)
        if pretrained:
            files = [folder / "model.safetensors", folder / "pytorch_model.bin"]
            _load_weights(module, next((file for file in files if file.is_file()), files[0]), str(source))
        return PretrainedBackbone(name, args, module, module.pretrained_cfg, folder.name)

    name = str(source)
    if weights is not None:
        module = _create(name, name, args, pretrained=False)
        _load_weights(module, Path(weights), name)
        return PretrainedBackbone(name, args, module, module.pretrained_cfg, name)
    if pretrained and ":" not in name and "." not in name:
        tags = timm.list_pretrained(f"{name}.*")
        if not tags:
            raise ValueError(f"there is no backbone {name!r}: {_unknown(name)}")
        raise ValueError(f"{name!r} does not say which pre-trained weights; choose one of: {', '.join(tags)}")
    module = _create(name, name, args, pretrained=pretrained)
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


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} is not a saved backbone: it has no config.json (see recipes/pretrain.py)")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise ValueError(f"{file} is not of a backbone: it names no architecture (see recipes/pretrain.py)")
    return config


def _load_weights(module: VisionTransformer, file: Path, shown_name: str) -> None:
    """Loads a file's weights, in any of the forms that timm reads; it would not mind if some or all were missing."""
    if not file.is_file():
        raise ValueError(f"the weights file {file} of {shown_name} does not exist")
    try:
        loaded = load_checkpoint(module, str(file), strict=False, filter_fn=checkpoint_filter_fn)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        if "size mismatch" in str(error):
            raise ValueError(
                f"{file} holds weights of another architecture than {shown_name}: {lines[1]} ({len(lines) - 1} such)"
            ) from error
        if "Unsupported globals" in str(error):
            raise ValueError(
                f"{file} holds code besides weights, which is not run: give the weights alone, as .safetensors"
            ) from error
        reason = lines[0].split(". ")[0]
        raise ValueError(f"{file} cannot be loaded for {shown_name}, it may be damaged: {reason}") from error
    except (OSError, EOFError, KeyError, ValueError, AttributeError, SafetensorError) as error:
        raise ValueError(
            f"{file} is damaged, or no file of weights: {type(error).__name__} {error}, on reading it for {shown_name}"
        ) from error
    if loaded is not None and loaded.missing_keys:
        missing, total = loaded.missing_keys, len(module.state_dict())
        raise ValueError(
            f"{file} does not hold the weights of {shown_name}: {len(missing)} of {total} tensors are missing, such "
            f"as {missing[0]}"
        )


def _create(name: str, shown_name: str, args: dict[str, Any], pretrained: bool) -> VisionTransformer:
    try:
        backbone = timm.create_model(name, num_classes=0, **args, pretrained=pretrained)
    except (RuntimeError, TypeError, AssertionError) as error:  # unknown name or argument, weights of another shape
        reason = _unknown(name) if "Unknown model" in str(error) else str(error)
        raise ValueError(f"timm cannot make the backbone {shown_name!r} with {args}: {reason}") from error
    except (OSError, SafetensorError) as error:  # not on the Hub, no network, not in the local cache, unreadable file
        raise ValueError(f"the weights of {shown_name!r} cannot be read: {error}") from error
    check_backbone(backbone, shown_name)
    for block in backbone.blocks:
        block.__class__ = PrefixBlock  # the same parts, run in another way
    return backbone


def _unknown(name: str) -> str:
    architecture = name.split(".")[0]
    near = timm.list_models(f"*{architecture[:12]}*", module="vision_transformer")[:5]
    return f"no such folder, and timm has no model {architecture!r}" + (f"; near: {', '.join(near)}" if near else "")
