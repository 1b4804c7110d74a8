"""A tiny pair of random backbones, a small data set on disk, and the command line run in this process."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

ROOT = Path(__file__).parents[1]
# Made-up accuracies: each task starts at 80, gains 10 with the next one and loses 5 with every one after that.
TEN_TASKS = [
    [80],
    [90, 80],
    [85, 90, 80],
    [80, 85, 90, 80],
    [75, 80, 85, 90, 80],
    [70, 75, 80, 85, 90, 80],
    [65, 70, 75, 80, 85, 90, 80],
    [60, 65, 70, 75, 80, 85, 90, 80],
    [55, 60, 65, 70, 75, 80, 85, 90, 80],
    [50, 55, 60, 65, 70, 75, 80, 85, 90, 80],
]


def save_backbone(folder: Path, width: int) -> Path:
    torch.manual_seed(width)
    args = {"img_size": 16, "patch_size": 8, "embed_dim": width, "depth": 6, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **args)
    config = {"architecture": "vit_tiny_patch16_224", "num_features": width}
    save_for_hf(model, folder, model_config=config, model_args=args, safe_serialization=True)
    return folder


def save_drawings(folder: Path) -> Path:
    """Six classes of noisy patterns, 7 training and 4 test images each: a task of two is no multiple of a batch."""
    rng = np.random.default_rng(0)
    for label in range(6):
        pattern = rng.integers(0, 256, (16, 16, 3))
        for split, count in (("train", 7), ("test", 4)):
            place = folder / split / f"class_{label}"
            place.mkdir(parents=True)
            for i in range(count):
                noisy = np.clip(pattern + rng.integers(-60, 60, (16, 16, 3)), 0, 255).astype(np.uint8)
                PIL.Image.fromarray(noisy).save(place / f"{i}.png")
    return folder


def arguments(pair: tuple[Path, Path], drawings: Path) -> list[str]:
    teacher, student = pair
    return [
        *("--dataset", str(drawings), "--teacher", str(teacher), "--student", str(student), "--num_tasks", "3"),
        *("--pool_size", "6", "--num_train_epochs", "2", "--batch_size", "4", "--learning_rate", "0.01"),
        *("--ranpac_width", "24", "--analytic_width", "16"),  # the run's baseline computes classifiers, too
    ]


def load_recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", ROOT / "recipes" / f"{name}.py")
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe  # where dataclasses look for their annotations
    spec.loader.exec_module(recipe)
    return recipe


def run_recipe(name: str, *arguments: object) -> None:
    """Runs recipes/<name>.py in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        load_recipe(name).main()


def results_without_times(folder: Path) -> dict:
    results = json.loads((folder / "results.json").read_text())
    for name in ("seconds", "latency_ms", "args"):
        del results[name]
    return results


def metrics_without_times(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    return lines


def assert_same_run(one: Path, other: Path) -> None:
    assert results_without_times(one) == results_without_times(other)
    assert metrics_without_times(one) == metrics_without_times(other)
    for role in ("teacher", "student"):
        ours, theirs = (load_file(folder / role / "model.safetensors") for folder in (one, other))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
