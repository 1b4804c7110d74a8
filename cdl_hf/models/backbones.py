"""Frozen backbones: networks of timm, created by name or loaded with pretrained weights."""

import hashlib
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from timm.models import get_model_input_config, load_checkpoint
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from .architecture_args import check_architecture, shown
from .network_checks import check_images
from .networks import network_of, prepare_blocks

BUNDLED = Path(__file__).parents[1] / "assets" / "backbones"
# Arguments of timm.create_model about loading weights, not about the architecture.
LOADING_ARGS = {"pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "device", "dtype"}
# Limits of a configuration: timm's largest plain ViT has 1.8 billion parameters; 4096 pixels give 65,536 patches.
MAX_PARAMETERS, MAX_PATCHES = 3_000_000_000, 65_536


@dataclass
class PretrainedBackbone:
    """A loaded network and what is needed to create it again.

    Args:
        name: timm name (architecture, with the tag of its weights where there is one).
        args: Keyword arguments of `timm.create_model`.
        module: The network, without classifier.
        pretrained_cfg: timm's data configuration: input size, mean, std, interpolation, crop.
        source: Name that the user gave: a timm tag, a Hub repository or the name of a folder.
        hub_name: Hub repository of its weights, if they are from the Hub.
    """

    name: str
    args: dict[str, Any]
    module: nn.Module
    pretrained_cfg: dict[str, Any]
    source: str
    hub_name: str | None = None

    @cached_property
    def digest(self) -> str:
        """See [`backbone_digest`]."""
        return backbone_digest(self.module)

    @property
    def reference(self) -> dict[str, str]:
        """Source and digest, by which a checkpoint without these weights names them."""
        return {"source": self.source, "sha256": self.digest}

    def is_the_same_as(self, other: "PretrainedBackbone") -> bool:
        return (self.name, self.args, self.digest) == (other.name, other.args, other.digest)


def create_backbone(name: str, **args) -> nn.Module:
    """A network of timm without classifier and without pretrained weights.

    It is first created on the meta device, so that an unsuitable or far too large one is refused immediately.

    Raises:
        ValueError: timm does not know the name or an argument, the network does not take square images with three
            channels, or it is larger than any known one.
    """
    backbone = _without_memory(name, name, args)
    if torch.get_default_device().type == "meta":
        return backbone
    return create_network(name, name, args, pretrained=False)


def load_backbone(
    source: str | Path, *, weights: str | Path | None = None, pretrained: bool = True, **args
) -> PretrainedBackbone:
    """Loads a network of timm.

    Args:
        source: The name of a bundled one (`vit_micro_quickdraw`), a timm name with its tag
            (`vit_base_patch16_224.augreg2_in21k_ft_in1k`, fetched from the Hub), a Hub repository
            (`hf_hub:timm/...`), or a folder in timm's form (`config.json` and `model.safetensors`), such as
            `cdl-hf pretrain` writes.
        weights: A local file with weights of the architecture `source`, instead of those on the Hub.
        pretrained: Whether to load weights; random ones are enough to measure speed.
        args: Keyword arguments of `timm.create_model`, such as `img_size=224` (position embeddings are resampled).

    Raises:
        ValueError: The architecture is unknown or unsuitable, the name has no tag, or weights cannot be loaded.
    """
    source = str(source).removeprefix("local-dir:")  # timm's word for a folder
    folder = BUNDLED / source if (BUNDLED / source).is_dir() else Path(source)
    if folder.is_dir():
        if weights is not None:
            raise ValueError(f"the folder {folder} has its own weights: do not pass weights={str(weights)!r}")
        config = _read_config(folder)
        name, args = config["architecture"], {**config["model_args"], **args}
        args.pop("num_classes", None)
        _without_memory(f"local-dir:{folder}", str(source), args)
        module = create_network(f"local-dir:{folder}", str(source), args, pretrained=False)
        if pretrained:
            files = [folder / "model.safetensors", folder / "pytorch_model.bin"]
            load_weights(module, next((file for file in files if file.is_file()), files[0]), str(source))
        return PretrainedBackbone(name, _with_size(args, module), module, pretrained_cfg(module), folder.name)

    name = str(source)
    if weights is not None:
        module = create_network(name, name, args, pretrained=False)
        load_weights(module, Path(weights), name)
        return PretrainedBackbone(name, _with_size(args, module), module, pretrained_cfg(module), name)
    if pretrained and ":" not in name and "." not in name:
        tags = timm.list_pretrained(f"{name}.*")
        if not tags:
            raise ValueError(f"there is no backbone {name!r}: {_unknown(name)}")
        raise ValueError(f"{name!r} does not name pretrained weights; choose one of: {', '.join(tags)}")
    module = create_network(name, name, args, pretrained=pretrained)
    data_config = pretrained_cfg(module)
    if ":" in name:  # a Hub repository: its config.json has the architecture and its arguments
        name, args = data_config["architecture"], {**(data_config.get("model_args") or {}), **args}
    hub_name = str(source).split(":", 1)[1] if ":" in str(source) else data_config.get("hf_hub_id")
    args = _with_size({arg: value for arg, value in args.items() if arg not in LOADING_ARGS}, module)
    return PretrainedBackbone(name, args, module, data_config, str(source), hub_name if pretrained else None)


def backbone_digest(module: nn.Module) -> str:
    """SHA-256 of the weights of a frozen network, by which a checkpoint identifies it.

    Position embeddings are excluded: timm resamples them to the size of the images, and not bit-identically on every
    machine. On the meta device, which has no weights, it is the digest of their shapes.
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
    """The `config.json` of a folder in timm's format, which is untrusted: only architecture arguments are allowed."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} is not a saved backbone: it has no config.json (see cdl-hf pretrain)")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise ValueError(f"{file} does not describe a backbone: it names no architecture (see cdl-hf pretrain)")
    args = config.get("model_args") or {}
    if not isinstance(args, dict):
        raise ValueError(f"{file} does not describe a backbone: model_args must be an object, got {shown(args)}")
    config["model_args"] = {arg: value for arg, value in args.items() if arg != "num_classes"}
    try:
        check_architecture("model", config["architecture"], config["model_args"])
    except ValueError as error:
        raise ValueError(f"{file} does not describe a backbone: {error}") from error
    return config


def load_weights(module: nn.Module, file: Path, shown_name: str) -> None:
    """Loads weights from a file in any format of timm, which itself would accept missing tensors."""
    if not file.is_file():
        raise ValueError(f"the weights file {file} of {shown_name} does not exist")
    try:
        # timm's files each have the filter for other formats of their networks' weights, if there are any.
        filter_fn = vars(sys.modules[type(module).__module__]).get("checkpoint_filter_fn")
        loaded = load_checkpoint(module, str(file), strict=False, filter_fn=filter_fn)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        if "size mismatch" in str(error):
            raise ValueError(
                f"{file} has weights of another architecture than {shown_name}: {lines[1]} ({len(lines) - 1} tensors "
                "differ)"
            ) from error
        if "Unsupported globals" in str(error):
            raise ValueError(
                f"{file} contains code, which is not run: save only the weights, as .safetensors"
            ) from error
        reason = lines[0].split(". ")[0]
        raise ValueError(f"{file} cannot be loaded for {shown_name}; it may be damaged: {reason}") from error
    except (OSError, EOFError, KeyError, ValueError, AttributeError, SafetensorError) as error:
        raise ValueError(
            f"{file} cannot be read as weights for {shown_name}; it may be damaged: {type(error).__name__} {error}"
        ) from error
    if loaded is not None and loaded.missing_keys:
        missing, total = loaded.missing_keys, len(module.state_dict())
        raise ValueError(
            f"{file} does not have all weights of {shown_name}: {len(missing)} of {total} tensors are missing, such "
            f"as {missing[0]}"
        )


def _without_memory(name: str, shown_name: str, args: dict[str, Any]) -> nn.Module:
    """The network on the meta device; refuses one that is far too large."""
    with torch.device("meta"):
        backbone = create_network(name, shown_name, args, pretrained=False)
    numbers = sum(tensor.numel() for tensor in (*backbone.parameters(), *backbone.buffers()))
    patches = backbone.patch_embed.num_patches if isinstance(backbone, VisionTransformer | Eva) else 0
    if numbers > MAX_PARAMETERS or patches > MAX_PATCHES:
        raise ValueError(
            f"{shown_name} with {args} would have {numbers:,} parameters and {patches:,} patches, more than "
            f"{MAX_PARAMETERS:,} or {MAX_PATCHES:,}"
        )
    return backbone


def create_network(
    name: str, shown_name: str, args: dict[str, Any], pretrained: bool, overlay: dict[str, Any] | None = None
) -> nn.Module:
    """A model of timm; blocks that can be prompted are [`PrefixBlock`]s or [`PrefixEvaBlock`]s.

    Args:
        args: Keyword arguments of `timm.create_model`. `img_size` is also allowed for a network that takes images of
            any size, such as most CNNs: its images are resized to that size.
        overlay: Replaces entries of timm's `pretrained_cfg`.
    """
    if overlay is not None:
        args = {**args, "pretrained_cfg_overlay": overlay}
    try:
        backbone = _create_model(name, args, pretrained)
    # unknown name or argument, sizes that do not fit each other, weights of another shape
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        reason = _unknown(name) if "Unknown model" in str(error) else str(error)
        raise ValueError(f"timm cannot create the backbone {shown_name!r} with {args}: {reason}") from error
    except (OSError, SafetensorError) as error:  # not on the Hub, no network, not in the local cache, unreadable file
        raise ValueError(f"the weights of {shown_name!r} cannot be read: {error}") from error
    check_images(backbone, shown_name)
    prepare_blocks(backbone)
    return backbone


def _create_model(name: str, args: dict[str, Any], pretrained: bool) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=0, **args, pretrained=pretrained)
    except TypeError as error:
        if "'img_size'" not in str(error):
            raise
    size = args["img_size"]
    others = {arg: value for arg, value in args.items() if arg != "img_size"}
    backbone = timm.create_model(name, num_classes=0, **others, pretrained=pretrained)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    cast(Any, backbone).pretrained_cfg = {**pretrained_cfg(backbone), "input_size": (3, height, width)}
    return backbone


def _with_size(args: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """The arguments with the size of the images, which a network that takes any size has from its weights alone."""
    config = get_model_input_config(module)
    if network_of(module).blocks or config["fixed_input_size"]:
        return args
    return {**args, "img_size": config["input_size"][-1]}


def pretrained_cfg(module: nn.Module) -> dict[str, Any]:
    """What timm says of a model's weights and images; it declares no attribute for it."""
    return cast(dict[str, Any], module.pretrained_cfg)


def _unknown(name: str) -> str:
    architecture = name.split(".")[0]
    near = timm.list_models(f"*{architecture[:12]}*")[:5]
    return f"no such folder, and timm has no model {architecture!r}" + (f"; near: {', '.join(near)}" if near else "")
