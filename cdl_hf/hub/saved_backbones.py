"""Backbones saved in timm's format."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from torch import nn

from ..data.transforms import evaluation_of
from ..models.backbones import pretrained_cfg
from ..utils import seal_file, write_json
from .saved_models import SavedModel


def save_backbone(
    module: nn.Module,
    folder: Path,
    evaluation: Mapping[str, Any],
    label_names: list[str] | None = None,
    license: str | None = None,
) -> None:
    """Writes a network of timm to a folder in timm's form, which `load_backbone` and `timm.create_model` read.

    Args:
        evaluation: Its pixels in the words of `pretrained_cfg`: input_size, interpolation, crop_pct, mean, std.
        label_names: Of the classes of its classifier, if it has one.
        license: Of its weights, where these come from others with one.
    """
    module.to(memory_format=torch.contiguous_format)
    names = {} if label_names is None else {"label_names": label_names}
    save_for_hf(module, str(folder), model_config=names, data_config=dict(evaluation), safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"].pop("num_classes", None)  # is in the file already; some readers fail if it is there twice
    for key in ("tag", "license", "origin_url", "test_crop_pct"):  # of weights that are not these
        config["pretrained_cfg"].pop(key, None)
    if license is not None:
        config["pretrained_cfg"]["license"] = license
    write_json(folder / "config.json", config)
    seal_file(folder / "model.safetensors")


def save_merged_backbone(saved: SavedModel, folder: str | Path) -> None:
    """Writes the backbone of a model with its weight updates merged, in timm's format: another run can start from it.

    Raises:
        ValueError: timm has no word for how the model's images are resized.
    """
    model = copy.deepcopy(saved.model)
    model.prompt_pool.fold(model.network.blocks)
    is_tagged = "." in model.config.backbone  # otherwise timm's entry may be of other weights
    license = pretrained_cfg(model.backbone).get("license") if is_tagged else None
    save_backbone(model.backbone, Path(folder), evaluation_of(saved.image_processor), license=license)
