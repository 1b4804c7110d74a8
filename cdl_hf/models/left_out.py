"""Checkpoints without the weights of their frozen backbones, which are loaded from their sources."""

import re
from collections.abc import Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg, is_model_pretrained
from torch import nn
from transformers import PreTrainedModel

from .architecture_args import shown
from .backbones import BUNDLED, PretrainedBackbone, create_backbone, create_network, load_weights, pretrained_cfg
from .networks import Network, network_of

# Revision of a Hub repository, or none. The Hub client uses it in a path, which must stay inside its cache.
_REVISION = re.compile(r"([\w-][\w.-]*(/[\w-][\w.-]*)*)?", re.ASCII)


class BackbonesLeftOut(PreTrainedModel):
    """A model whose frozen networks `backbone` and `query_backbone` need not be in its checkpoint."""

    backbone: nn.Module
    query_backbone: nn.Module | None

    @property
    def network(self) -> Network:
        """What the backbone is to this model: its tokens, blocks and features."""
        return network_of(self.backbone)

    @property
    def query_network(self) -> Network:
        """The same of the network that computes the query."""
        return network_of(self.query_backbone or self.backbone)

    def save_pretrained(  # type: ignore[override]  # takes all but the folder by keyword
        self, save_directory: str | PathLike, *, save_backbone: bool = True, **kwargs
    ) -> None:
        """As `PreTrainedModel.save_pretrained`.

        Args:
            save_backbone: `False` leaves out the weights of the frozen transformers, by far the largest part. The
                checkpoint records their source and digest, and [`from_pretrained`] restores them.

        Raises:
            ValueError: The weights are to be left out, but their source is unknown.
        """
        if save_backbone:
            super().save_pretrained(save_directory, **kwargs)
            return
        left_out = [name for name in ("backbone", "query_backbone") if getattr(self, name) is not None]
        for name in left_out:
            if not getattr(self.config, f"{name}_weights"):
                raise ValueError(
                    f"the weights of the {name} cannot be left out: their source is unknown, as the model was not "
                    "made with from_backbone"
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
        """As `PreTrainedModel.from_pretrained`; also loads models saved with `save_backbone=False`.

        Args:
            backbones: Outputs of [`load_backbone`] for weights that were left out and cannot be loaded by name (from a
                folder, a file, or without a network).

        Raises:
            ValueError: Weights that were left out cannot be loaded or differ from those that the prompts were trained
                on, or the weights do not fit the configuration.
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
                f"the weights of {str(pretrained_model_name_or_path)!r} do not have the shapes of its configuration"
            ) from error
        except SafetensorError as error:
            raise ValueError(f"the weights of {str(pretrained_model_name_or_path)!r} are damaged: {error}") from error
        _restore_buffers(model)
        _align(model)
        download = {name: kwargs[name] for name in ("local_files_only", "cache_dir", "token") if name in kwargs}
        restore_backbones(model, backbones, **download)
        return (model, loading_info) if output_loading_info else model


def find_backbone(
    name: str,
    args: dict[str, Any],
    weights: dict[str, str],
    given: Sequence[PretrainedBackbone] = (),
    **download: Any,
) -> PretrainedBackbone:
    """The transformer whose weights a checkpoint has left out: one of `given`, or else loaded from its source.

    A checkpoint is untrusted. Weights are read only from safetensors files, and only from a bundled folder, a timm
    tag, a Hub repository, or a folder of that name in the current directory.

    Args:
        name, args: Fields of a checked [`PromptViTConfig`].
        weights: Their source and SHA-256.
        download: `local_files_only`, `cache_dir` and `token` of the user, never of the checkpoint.

    Raises:
        ValueError: The weights cannot be loaded, or the source has other weights.
    """
    source, digest = weights["source"], weights["sha256"]
    for backbone in given:
        if backbone.digest == digest:
            return backbone
    advice = "pass the right ones: from_pretrained(..., backbones=[load_backbone(...)])"
    try:
        module, hub_name = _load_left_out(name, args, source, download)
    except ValueError as error:
        raise ValueError(
            f"the model was saved without the weights of {source}, which cannot be loaded here: {error}; {advice}"
        ) from error
    found = PretrainedBackbone(name, args, module, pretrained_cfg(module), source, hub_name)
    if found.digest != digest:
        raise ValueError(
            f"the weights found for {source} are not those that the prompts were trained on (SHA-256 "
            f"{found.digest[:12]}..., not {digest[:12]}...); {advice}"
        )
    return found


def left_out_pattern(name: str) -> str:
    """Regular expression of the tensors that a checkpoint without the weights of the transformer `name` leaves out.

    Position embeddings stay in it; see [`backbone_digest`].
    """
    return rf"^{name}\.(?!pos_embed$)"


def restore_backbones(model: PreTrainedModel, given: Sequence[PretrainedBackbone], **download: Any) -> None:
    """Loads the weights that the checkpoint of a model has left out; see [`find_backbone`].

    Raises:
        ValueError: Weights cannot be loaded, or one of `given` is not a transformer of this checkpoint.
    """
    config = model.config
    weights = {name: getattr(config, f"{name}_weights") for name in config.left_out}
    digests = {reference["sha256"] for reference in weights.values()}
    foreign = [backbone for backbone in given if backbone.digest not in digests]
    if foreign:
        expected = " and ".join(f"{w['source']!r} (SHA-256 {w['sha256'][:12]}...)" for w in weights.values())
        raise ValueError(
            f"{foreign[0].source!r} (SHA-256 {foreign[0].digest[:12]}...) is not a backbone of this checkpoint; "
            f"expected {expected or 'none, as it holds all its weights'}"
        )
    for name, reference in weights.items():
        found = find_backbone(getattr(config, name), getattr(config, f"{name}_args"), reference, given, **download)
        tensors = {key: tensor for key, tensor in found.module.state_dict().items() if key != "pos_embed"}
        getattr(model, name).load_state_dict(tensors, strict=False)
    config.left_out = []


def _restore_buffers(model: Any) -> None:
    """Computes what timm keeps in no checkpoint, such as tables of positions, and transformers leaves empty."""
    for name in ("backbone", "query_backbone"):
        network = getattr(model, name)
        if network is None or network.state_dict().keys() >= dict(network.named_buffers()).keys():
            continue
        created = create_backbone(getattr(model.config, name), **getattr(model.config, f"{name}_args"))
        for key, buffer in created.named_buffers():
            if key not in network.state_dict():
                network.get_buffer(key).copy_(buffer)


def _align(model: nn.Module) -> None:
    """Copies weights and buffers that a file has left where a vector of the processor would not begin.

    Some processors compute with these in another order, and a loaded model would differ in its last bits.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def _load_left_out(
    name: str, args: dict[str, Any], source: str, download: dict[str, Any]
) -> tuple[nn.Module, str | None]:
    """The transformer with weights from its source, and their Hub repository, if they have one."""
    if source.startswith(("hf_hub:", "hf-hub:")):
        hub_name, _, revision = source.split(":", 1)[1].partition("@")
        if not _REVISION.fullmatch(revision):
            raise ValueError(f"{shown(revision)} is not a revision of a Hub repository")
        return _with_weights(name, args, _download(hub_name, revision or None, download), source), hub_name
    if not re.fullmatch(r"\w[\w. -]*", source):
        raise ValueError("it is not a timm name with a tag, a Hub repository or a plain folder name")
    for folder in (BUNDLED / source, Path(source)):
        if folder.is_dir():
            return _with_weights(name, args, folder / "model.safetensors", source), None
    weights = get_pretrained_cfg(source) if "." in source and is_model_pretrained(source) else None
    if weights is None or not weights.hf_hub_id:
        raise ValueError("there is no such folder, and timm has no weights of that name")
    if source.split(".")[0] != name.split(".")[0]:
        raise ValueError(f"they are of another architecture than {name}")
    file = _download(weights.hf_hub_id, None, download)
    create_backbone(name, **args)
    return create_network(source, source, args, True, {"file": str(file), "custom_load": False}), weights.hf_hub_id


def _with_weights(name: str, args: dict[str, Any], file: Path, source: str) -> nn.Module:
    if not file.is_file():
        raise ValueError(f"there is no {file}, and a checkpoint may not name another file")
    module = create_backbone(name, **args)
    load_weights(module, file, source)
    return module


def _download(hub_name: str, revision: str | None, download: dict[str, Any]) -> Path:
    """Downloads model.safetensors of a repository to the cache of the Hub."""
    try:
        return Path(hf_hub_download(hub_name, "model.safetensors", revision=revision, **download))
    except LocalEntryNotFoundError as error:
        raise ValueError(f"{hub_name} is not in the cache, and the Hub cannot be reached") from error
    except EntryNotFoundError as error:
        raise ValueError(f"{hub_name} has no model.safetensors") from error
    except (OSError, HFValidationError) as error:
        raise ValueError(" ".join(str(error).split())) from error
