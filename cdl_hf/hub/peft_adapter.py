"""Export of LoRA models as adapters of PEFT for the plain timm backbone, and import of such adapters.

    save_adapter(model, "adapter")
    peft.PeftModel.from_pretrained(timm.create_model(...), "adapter")

    model = PromptViTForImageClassification.from_backbone(
        backbone, classes_per_task=[10, 10], prompt_method="lora", **adapter_fields("adapter")
    )
    model.start_task(class_names)
    load_adapter(model, "adapter")  # where the training of the first task begins

PEFT itself is not needed.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..models import PromptViTForImageClassification
from ..models.prompt_pools import LoRA
from ..utils import write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODULES = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_KEY = re.compile(r"base_model\.model\.blocks\.(\d+)\.((?:attn|mlp)\.\w+)\.lora_([AB])\.weight")
# Settings of PEFT that change the formula W + alpha / r * B A.
_OTHER_FORMULAS = (
    *("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "fan_in_fan_out"),
    *("target_parameters", "layer_replication"),
)


def save_adapter(model: PromptViTForImageClassification, folder: str | Path) -> None:
    """Writes the merged weight updates of a model as one adapter; its rank is `lora_rank` times the merged tasks.

    Raises:
        ValueError: The model has no merged weight updates.
    """
    config, folder = model.config, Path(folder)
    num_tasks = min(config.tasks_seen, config.num_trained_tasks)
    if not isinstance(model.prompt_pool, LoRA) or not num_tasks:
        raise ValueError(
            f"an adapter holds the weight updates of LoRA after a task, and this model has prompt_method="
            f"{config.prompt_method!r} after {num_tasks} tasks"
        )
    tensors, modules = {}, []
    for block in model.prompt_pool.blocks:
        for name, update in model.prompt_pool.updates_of(block).items():
            module = f"blocks.{block}.{MODULES[name]}"
            down, up = update.merged_down[:num_tasks], update.merged_up[:num_tasks]
            tensors[f"base_model.model.{module}.lora_A.weight"] = down.flatten(0, 1).contiguous().cpu()
            tensors[f"base_model.model.{module}.lora_B.weight"] = up.transpose(0, 1).flatten(1).contiguous().cpu()
            modules.append(module)
    rank = config.lora_rank * num_tasks
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": config.backbone_weights.get("source", config.backbone),
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": rank,  # all factors are in the weights
        "lora_dropout": 0.0,
        "r": rank,
        "target_modules": modules,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    write_json(folder / CONFIG, settings)


def adapter_fields(folder: str | Path) -> dict[str, Any]:
    """The fields of a configuration that fit an adapter: rank, alpha, linear layers and blocks.

    Raises:
        ValueError: It is no adapter of LoRA, or of other layers or another formula.
    """
    settings = _settings(Path(folder))
    factors = _factors(Path(folder))
    names = {module: name for name, module in MODULES.items()}
    blocks = sorted({block for block, _, _ in factors})
    modules = [module for module in names if any(module == each for _, each, _ in factors)]
    expected = {(block, module, factor) for block in blocks for module in modules for factor in "AB"}
    if factors.keys() != expected:
        raise ValueError(f"the adapter in {folder} does not update the same linear layers in each of its blocks")
    return {
        "lora_rank": settings["r"],
        "lora_alpha": settings["lora_alpha"],
        "lora_targets": [names[module] for module in modules],
        "prompt_blocks": blocks,
    }


@torch.no_grad()
def load_adapter(model: PromptViTForImageClassification, folder: str | Path) -> None:
    """Sets the weight updates of the current task to those of an adapter: call it after `start_task`.

    Training goes on from there; `end_task` merges it.

    Raises:
        ValueError: The adapter does not fit the model.
    """
    config, fields = model.config, adapter_fields(folder)
    for name, theirs in fields.items():
        ours = getattr(config, name)
        if name == "prompt_blocks":
            ours = model.prompt_pool.blocks
        if (sorted(ours) if isinstance(ours, list) else ours) != (
            sorted(theirs) if isinstance(ours, list) else theirs
        ):
            raise ValueError(f"the adapter in {folder} has {name}={theirs}, but the model has {ours}")
    for (block, module, factor), tensor in _factors(Path(folder)).items():
        update = model.prompt_pool.updates_of(block)[module.rpartition(".")[2]]
        own = update.down if factor == "A" else update.up
        if own.shape != tensor.shape:
            raise ValueError(
                f"the adapter in {folder} is of another backbone: {module} of block {block} has a factor of "
                f"{tuple(tensor.shape)}, expected {tuple(own.shape)}"
            )
        own.copy_(tensor)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no adapter of PEFT: {CONFIG} cannot be read ({error})") from error
    others = [name for name in _OTHER_FORMULAS if settings.get(name)]
    if settings.get("peft_type") != "LORA" or settings.get("bias", "none") != "none" or others:
        raise ValueError(
            f"the adapter in {folder} is not of plain LoRA ({', '.join(others) or settings.get('peft_type')}): only "
            "low-rank updates of weights can be loaded"
        )
    return settings


def _factors(folder: Path) -> dict[tuple[int, str, str], Tensor]:
    """The factors A and B by block, module and factor."""
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no adapter of PEFT: {WEIGHTS} is missing")
    factors = {}
    for key, tensor in load_file(folder / WEIGHTS).items():
        match = _KEY.fullmatch(key)
        if match is None or match[2] not in MODULES.values():
            raise ValueError(
                f"the adapter in {folder} updates {key!r}, but only {', '.join(MODULES.values())} of blocks can be"
            )
        factors[int(match[1]), match[2], match[3]] = tensor
    return factors
