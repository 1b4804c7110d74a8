"""Checkpoints without the weights of the frozen transformers: prompts, heads, and where the rest is from."""

import json

import pytest
import timm
import torch
from safetensors import safe_open
from tiny_models import (
    CLASSES_PER_TASK,
    PROMPTS,
    STUDENT,
    TEACHER,
    WITHOUT_QUERY,
    images,
    start_task,
    tiny_backbone,
    tiny_model,
)
from transformers import AutoModelForImageClassification

from cdl_hf.models import PromptViTConfig, PromptViTForImageClassification, load_backbone
from cdl_hf.models.classifiers import CLASSIFIERS
from cdl_hf.models.kd_branches import BRANCHES

COMBINATIONS = [(p, b) for p in PROMPTS for b in ("none", *BRANCHES) if b != "cdl_prompt" or p not in WITHOUT_QUERY]


def tensors_in(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize(("prompt_method", "kd_branch"), COMBINATIONS)
@torch.no_grad()
def test_the_whole_is_rebuilt(prompt_method, kd_branch, tmp_path):
    backbone, x = tiny_backbone(), images()
    model = tiny_model(prompt_method, kd_branch, tasks=2, backbone=backbone).eval()
    model.save_pretrained(tmp_path, save_backbone=False)
    assert not [name for name in tensors_in(tmp_path) if name.startswith("backbone.blocks")]
    loaded, info = AutoModelForImageClassification.from_pretrained(
        tmp_path, backbones=[backbone], output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded(x).logits, model(x).logits)
    assert not any(p.requires_grad for p in loaded.backbone.parameters()) and not loaded.backbone.training


@pytest.mark.parametrize("head", CLASSIFIERS)
@pytest.mark.parametrize("prompt_method", ["none", "coda_prompt"])
@torch.no_grad()
def test_computed_classifiers_come_with_the_prompts(head, prompt_method, tmp_path):
    backbone, x = tiny_backbone(), images(12)
    model = tiny_model(prompt_method, tasks=2, backbone=backbone, head=head, ranpac_width=16).eval()
    model.classifier.fit(torch.randn(30, STUDENT["embed_dim"]), torch.arange(30) % 5)
    model.save_pretrained(tmp_path, save_backbone=False)
    assert not [name for name in tensors_in(tmp_path) if name.startswith("backbone.blocks")]
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, backbones=[backbone])
    assert loaded(x).logits.std() > 0 and torch.equal(loaded(x).logits, model(x).logits)
    loaded.classifier.load_statistics(model.classifier.statistics())  # a later task goes on with it
    loaded.classifier.fit(torch.randn(8, STUDENT["embed_dim"]), torch.full((8,), 5))
    loaded.start_task(["one", "two", "three", "four"])
    assert loaded(x).logits.shape == (12, 9)


@torch.no_grad()
def test_a_frozen_transformer_keeps_its_heads_alone(tmp_path):
    backbone, x = tiny_backbone(), images()
    model = tiny_model("none", tasks=2, backbone=backbone).eval()
    model.save_pretrained(tmp_path, save_backbone=False)
    assert all("head" in name or name.endswith("pos_embed") for name in tensors_in(tmp_path))
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, backbones=[backbone])
    assert torch.equal(loaded(x).logits, model(x).logits)


@torch.no_grad()
def test_a_teacher_with_a_query_backbone(tmp_path):
    own, query, x = tiny_backbone(**TEACHER), tiny_backbone(), images()
    model = PromptViTForImageClassification.from_backbone(
        own, query, classes_per_task=CLASSES_PER_TASK, prompt_method="l2p", **PROMPTS["l2p"]
    ).eval()
    start_task(model)
    model.save_pretrained(tmp_path, save_backbone=False)
    loaded = PromptViTForImageClassification.from_pretrained(tmp_path, backbones=[query, own])
    assert torch.equal(loaded(x).logits, model(x).logits)
    loaded.save_pretrained(tmp_path / "whole")  # what was rebuilt is whole again
    again = PromptViTForImageClassification.from_pretrained(tmp_path / "whole")
    assert torch.equal(again(x).logits, model(x).logits)


def test_a_query_backbone_that_is_the_own_is_not_kept_twice():
    backbone = tiny_backbone()
    config = {"classes_per_task": CLASSES_PER_TASK, "prompt_method": "l2p", **PROMPTS["l2p"]}
    assert PromptViTForImageClassification.from_backbone(backbone, backbone, **config).query_backbone is None
    other = PromptViTForImageClassification.from_backbone(backbone, tiny_backbone(), **config)
    assert other.query_backbone is not None


@torch.no_grad()
def test_bundled_backbones_are_found_by_name(tmp_path):
    config = {"classes_per_task": CLASSES_PER_TASK, "prompt_method": "coda_prompt", **PROMPTS["coda_prompt"]}
    model = PromptViTForImageClassification.from_backbone(load_backbone("vit_nano_quickdraw"), **config).eval()
    start_task(model)
    model.save_pretrained(tmp_path / "prompts", save_backbone=False)
    model.save_pretrained(tmp_path / "whole")
    about = json.loads((tmp_path / "prompts" / "config.json").read_text())
    assert about["backbone_weights"]["source"] == "vit_nano_quickdraw" and about["left_out"] == ["backbone"]
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("prompts", "whole")]
    assert 20 * sizes[0] < sizes[1]
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "prompts")
    x = images()
    assert torch.equal(loaded(x).logits, model(x).logits)
    half = AutoModelForImageClassification.from_pretrained(tmp_path / "prompts", dtype=torch.bfloat16)
    assert half.backbone.cls_token.dtype == torch.bfloat16


@torch.no_grad()
def test_other_sizes_of_images_need_no_equal_resampling(tmp_path):
    """timm resamples position embeddings; they are kept with the prompts."""
    args = {**STUDENT, "num_classes": 0}
    timm.models.save_for_hf(
        timm.create_model("vit_tiny_patch16_224", **args), tmp_path / "mine", model_args=args, safe_serialization=True
    )
    small, large = (load_backbone(tmp_path / "mine", img_size=size) for size in (32, 64))
    model, x = tiny_model("l2p", backbone=large).eval(), images(size=64)
    model.save_pretrained(tmp_path / "saved", save_backbone=False)
    assert "backbone.pos_embed" in tensors_in(tmp_path / "saved")
    loaded = PromptViTForImageClassification.from_pretrained(tmp_path / "saved", backbones=[small])
    assert torch.equal(loaded(x).logits, model(x).logits)


def test_another_backbone_is_refused(tmp_path, monkeypatch):
    tiny_model("l2p").save_pretrained(tmp_path / "saved", save_backbone=False)
    load = PromptViTForImageClassification.from_pretrained
    with pytest.raises(
        ValueError,
        match=r"'vit_tiny_patch16_224' \(SHA-256 .*\) is not a backbone of this checkpoint; expected 'vit_tiny",
    ):
        load(tmp_path / "saved", backbones=[tiny_backbone()])
    with pytest.raises(ValueError, match=r"saved without the weights of vit_tiny_patch16_224, .* backbones=\["):
        load(tmp_path / "saved")  # the name has no tag

    # a folder of the same name with other weights
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        vit = timm.create_model("vit_tiny_patch16_224", **STUDENT, num_classes=0)
        timm.models.save_for_hf(
            vit, tmp_path / name, model_args={**STUDENT, "num_classes": 0}, safe_serialization=True
        )
    model = tiny_model("l2p", backbone=load_backbone("mine"))
    model.save_pretrained("saved", save_backbone=False)
    load("saved")
    (tmp_path / "mine").rename("gone")
    (tmp_path / "other").rename("mine")
    with pytest.raises(ValueError, match="mine are not those that the prompts were trained on"):
        load("saved")
    model.save_pretrained("whole")
    with pytest.raises(ValueError, match="'gone' .* is not a backbone of this checkpoint; expected none"):
        load("whole", backbones=[load_backbone("gone")])


def test_weights_of_unknown_origin_are_not_left_out(tmp_path):
    model = tiny_model("l2p")
    unknown = PromptViTForImageClassification(PromptViTConfig(**{**model.config.to_dict(), "backbone_weights": {}}))
    with pytest.raises(ValueError, match="their source is unknown"):
        unknown.save_pretrained(tmp_path, save_backbone=False)
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path, save_backbone=False)
    assert model.config.left_out == []
