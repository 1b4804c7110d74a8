"""Conversion of state dicts from the authors' code of CDL (arXiv 2407.13911) to checkpoints of this package.

    python -m cdl_hf.models.conversion student.pth converted/ --role student --classes_per_task 20 --num_tasks 10

The prompt method, the KD branch, the transformers and all sizes follow from the names and shapes of the tensors. The
classes of each task and the number of trained tasks do not, and are arguments.
"""

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import CLIPImageProcessor
from transformers.image_utils import PILImageResampling

from ..cli import argument, cli_error, parse
from .configuration_prompt_vit import PromptViTConfig
from .modeling_prompt_vit import PromptViTForImageClassification

# Our prefix -> theirs, for parts that differ only in name; the first match counts.
THEIR_NAMES = {
    "backbone.": "feat.",
    "query_backbone.": "s_feat.",
    "head.norm.": "clf_norm.",
    "head.": "last.",
    "kd_head.norm.": "kd_cls_norm.",
    "kd_head.": "kd_last.",
}
SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}


def convert(
    state_dict: dict[str, Tensor],
    *,
    role: str,
    classes_per_task: Sequence[int],
    tasks_seen: int | None = None,
    backbone: str | None = None,
    query_backbone: str | None = None,
    class_names: Sequence[str] | None = None,
    teacher_state_dict: dict[str, Tensor] | None = None,
    **config: Any,
) -> tuple[PromptViTForImageClassification, list[str]]:
    """Converts a state dict of the authors' code to a model.

    Args:
        state_dict: Tensors by their names (`feat.blocks.0...`, `prompt.e_p_0`), with or without the prefix `module.`;
            the model uses these tensors without copying them.
        role: `"teacher"` or `"student"`. A teacher also has tensors of a KD branch, which are not used.
        classes_per_task: Number of classes of each task of the stream, in order.
        tasks_seen: Number of tasks trained so far, whose classes the model predicts; all if `None`.
        backbone: timm architecture of `feat`; if `None`, found by its embed_dim, patch size and image size.
        query_backbone: The same for `s_feat`, if the model has one.
        class_names: Names of all classes by class id; their numbers if `None`.
        teacher_state_dict: State dict of the teacher, whose prompts a student of CDL-Prompt (`prompt_map.*`) needs.
        config: Further fields of [`PromptViTConfig`], such as `top_k`, `ortho_weight`, `ema_decay`, `kd_alpha`.

    Returns:
        The model in evaluation mode, and the names of the tensors that are not used.

    Raises:
        ValueError: A tensor is missing or has another shape, or the arguments do not fit the state dict.
    """
    source = _plain_names(state_dict)
    if role not in ("teacher", "student"):
        raise ValueError(f"role must be 'teacher' or 'student', got {role!r}")
    if "last.weight" not in source or "feat.cls_token" not in source:
        raise ValueError("not a state dict of the authors' models: `feat.cls_token` or `last.weight` is missing")
    num_classes = len(source["last.weight"])
    if sum(classes_per_task) != num_classes:
        raise ValueError(f"classes_per_task adds up to {sum(classes_per_task)}, but the head has {num_classes} rows")

    names = list(class_names or map(str, range(num_classes)))
    if len(names) != num_classes:
        raise ValueError(f"there are {len(names)} class_names, but the head has {num_classes} rows")

    fields, tensors = _prompts(source)
    fields["backbone"] = backbone or _architecture(source, "feat.")
    own_query = "s_feat.cls_token" not in source or _equal_parts(source, "feat.", "s_feat.")
    if fields["prompt_method"] != "apt" and not own_query:
        fields["query_backbone"] = query_backbone or _architecture(source, "s_feat.")
    if role == "student":
        branch_fields, branch_tensors = _kd_branch(source, teacher_state_dict)
        fields |= branch_fields
        tensors |= branch_tensors

    seen = len(classes_per_task) if tasks_seen is None else tasks_seen
    settings = PromptViTConfig.checked(classes_per_task=list(classes_per_task), tasks_seen=seen, **fields, **config)
    settings.id2label = dict(enumerate(names[: settings.seen_classes]))
    settings.label2id = {name: i for i, name in settings.id2label.items()}
    with torch.device("meta"):  # all weights will be replaced
        model = PromptViTForImageClassification(settings)

    for name, tensor in model.state_dict().items():
        if name not in tensors:
            part = next(part for part in THEIR_NAMES if name.startswith(part))
            tensors[name] = _take(source, THEIR_NAMES[part] + name.removeprefix(part))
        if tensors[name].shape != tensor.shape:
            raise ValueError(f"{name} must be {tuple(tensor.shape)}, but theirs is {tuple(tensors[name].shape)}")
    model.load_state_dict(tensors, assign=True)
    return model.eval(), sorted(source)


def _plain_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}


def _prompts(source: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Takes the prompts: the fields of the configuration that describe them, and the tensors by our names."""
    if "prompt.prompt_tokens" in source:  # rows 2l and 2l + 1 are the key's and the value's vector of block l
        current, merged = (_take(source, f"prompt.{name}") for name in ("prompt_tokens", "global_merged_prompt"))
        tensors = {"prompts": current.unflatten(0, (-1, 2)), "merged": merged.unflatten(0, (-1, 2))}
        return {"prompt_method": "apt"}, _named("prompt_pool", tensors)

    blocks, prompts = _take_blocks(source, "prompt.e_p_")
    _, keys = _take_blocks(source, "prompt.e_k_")
    tensors = {"prompts": prompts, "keys": keys}
    fields = {"prompt_method": "l2p", "prompt_blocks": blocks, "prompt_length": prompts.shape[2]}
    if any(name.startswith("prompt.e_a_") for name in source):
        fields |= {"prompt_method": "coda_prompt", "pool_size": prompts.shape[1]}
        _, tensors["attention"] = _take_blocks(source, "prompt.e_a_")
    elif any(name.startswith("prompt.g_p_") for name in source):
        g_blocks, tensors["g_prompts"] = _take_blocks(source, "prompt.g_p_")
        g_length = tensors["g_prompts"].shape[1]
        fields |= {"prompt_method": "dualprompt", "g_prompt_blocks": g_blocks, "g_prompt_length": g_length}
    else:
        fields["pool_size"] = prompts.shape[1]
    return fields, _named("prompt_pool", tensors)


def _kd_branch(
    source: dict[str, Tensor], teacher_state_dict: dict[str, Tensor] | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Takes the KD branch of a student, if there is one, in the same way as `_prompts`."""
    if "kd_prompt.kd_p_0" in source:
        fields, tensors = {"kd_branch": "kdp", "kd_prompt_blocks": 1}, {"token": _take(source, "kd_prompt.kd_p_0")}
        if "kd_prompt.kd_p_1" in source:
            blocks, tensors["prompts"] = _take_blocks(source, "kd_prompt.kd_p_")
            fields |= {"kd_prompt_blocks": len(blocks) + 1, "kd_prompt_length": tensors["prompts"].shape[1]}
        return fields, _named("kd_branch", tensors)
    if any(name.startswith("prompt_map.") for name in source):
        if teacher_state_dict is None:
            raise ValueError(
                "a student of CDL-Prompt predicts with its teacher's prompts: pass the state dict of the teacher"
            )
        _, pool = _prompts(_plain_names(teacher_state_dict))
        tensors = {name.replace("prompt_pool", "teacher_pool"): tensor for name, tensor in pool.items()}
        for ours, theirs in (("keys", "key"), ("attention", "attention"), ("values", "value")):
            _, tensors[ours] = _take_blocks(source, "prompt_map.", f".{theirs}")
        return {"kd_branch": "cdl_prompt", "teacher_width": tensors["keys"].shape[-1]}, _named("kd_branch", tensors)
    if "feat.add_T_token" in source:
        return {"kd_branch": "deit"}, {"kd_branch.token": _take(source, "feat.add_T_token").flatten(0, -2)}
    return {}, {}


def _architecture(source: dict[str, Tensor], part: str) -> str:
    """timm name of the plain ViT with a usual size whose tensors start with `part`."""
    tokens, embed_dim = source[f"{part}pos_embed"].shape[-2:]
    patch = source[f"{part}patch_embed.proj.weight"].shape[-1]
    if embed_dim not in SIZES:
        raise ValueError(f"no timm ViT has embed_dim {embed_dim}: give the architecture of {part}*")
    return f"vit_{SIZES[embed_dim]}_patch{patch}_{round((tokens - 1) ** 0.5) * patch}"


def _equal_parts(source: dict[str, Tensor], first: str, second: str) -> bool:
    names = [name.removeprefix(second) for name in source if name.startswith(second)]
    return all(
        f"{first}{name}" in source and torch.equal(source[f"{first}{name}"], source[f"{second}{name}"])
        for name in names
    )


def _take(source: dict[str, Tensor], name: str) -> Tensor:
    if name not in source:
        raise ValueError(f"the state dict has no {name}")
    return source.pop(name)


def _take_blocks(source: dict[str, Tensor], prefix: str, suffix: str = "") -> tuple[list[int], Tensor]:
    """Takes the tensors named by a block between `prefix` and `suffix`: the blocks in order, the tensors stacked."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)" + re.escape(suffix))
    blocks = sorted(int(match[1]) for name in source if (match := pattern.fullmatch(name)))
    if not blocks:
        raise ValueError(f"the state dict has no {prefix}*{suffix}")
    return blocks, torch.stack([source.pop(f"{prefix}{block}{suffix}") for block in blocks])


def _named(owner: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{owner}.{name}": tensor for name, tensor in tensors.items()}


@dataclass
class ConversionArguments:
    """The state dict, and the arguments that cannot be derived from it."""

    state_dict: str = argument("Path of the .pth file that the authors' code wrote", positional=True)
    output_dir: str = argument("Folder for the checkpoint, for from_pretrained", positional=True)
    role: Literal["teacher", "student"] = argument("Which of the two models it is")
    classes_per_task: list[int] = argument(
        "Number of classes of each task, or one number for all num_tasks tasks", min=1
    )
    num_tasks: int | None = argument("Number of tasks", None, unset="from classes_per_task", min=1)
    tasks_seen: int | None = argument("Number of tasks trained so far", None, unset="all", min=1)
    class_names: str | None = argument("Text file with a class name a line, by class id", None, unset="numbers")
    backbone: str | None = argument("Architecture, by its timm name", None, unset="found by its sizes")
    query_backbone: str | None = argument("Architecture of s_feat, by its timm name", None, unset="found by its sizes")
    teacher: str | None = argument("Path of the .pth file of the teacher, for a student of CDL-Prompt", None)
    kd_alpha: float = argument("Weight of the KD head in a prediction", PromptViTConfig.kd_alpha, min=0, max=1)
    resize: int = argument("Shorter side in pixels, before the crop to the input", 224, min=1)


def main() -> None:
    (args,) = parse((ConversionArguments,), description=__doc__)
    classes = (
        args.classes_per_task * (args.num_tasks or 1) if len(args.classes_per_task) == 1 else args.classes_per_task
    )
    try:
        teacher = None if args.teacher is None else torch.load(args.teacher, map_location="cpu", weights_only=True)
        model, unused = convert(
            torch.load(args.state_dict, map_location="cpu", weights_only=True),
            role=args.role,
            classes_per_task=classes,
            tasks_seen=args.tasks_seen,
            backbone=args.backbone,
            query_backbone=args.query_backbone,
            class_names=Path(args.class_names).read_text().splitlines() if args.class_names else None,
            teacher_state_dict=teacher,
            kd_alpha=args.kd_alpha,
        )
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        cli_error(str(error))
    model.save_pretrained(args.output_dir)
    side = model.network.image_size
    CLIPImageProcessor(
        size={"shortest_edge": args.resize},
        crop_size={"height": side, "width": side},
        resample=PILImageResampling.BILINEAR,
        do_normalize=False,  # the authors' pixels are in [0, 1]
    ).save_pretrained(args.output_dir)
    print(f"{args.output_dir}: {model.config.prompt_method}, KD branch {model.config.kd_branch}")
    if unused:
        print(f"not used: {', '.join(unused)}")


if __name__ == "__main__":
    main()
