"""Merged weight updates as a backbone of timm: timm itself is the reference."""

import json

import timm
import torch
from tiny_models import images, lora_after_two_tasks, tiny_model

from cdl_hf.data import image_processor_for
from cdl_hf.hub.saved_backbones import save_merged_backbone
from cdl_hf.hub.saved_models import SavedModel
from cdl_hf.models.backbones import load_backbone


@torch.no_grad()
def test_timm_computes_the_features_of_the_updated_model(tmp_path):
    model, x = lora_after_two_tasks(), images()
    cfg = {"input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.4,) * 3, "crop_pct": 0.9}
    expected, before = model.head_features(x)[:, 0], model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    save_merged_backbone(SavedModel(model, image_processor_for(cfg)), tmp_path)
    vit = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    frozen = model.backbone.forward_features(x)[:, 0]
    assert torch.allclose(vit.forward_features(x)[:, 0], expected, atol=1e-5)
    assert not torch.allclose(frozen, expected, atol=1e-2)
    backbone = load_backbone(tmp_path)
    assert torch.allclose(backbone.module.eval().forward_features(x)[:, 0], expected, atol=1e-5)
    ours, theirs = image_processor_for(backbone.pretrained_cfg), image_processor_for(cfg)
    assert ours.to_dict() == theirs.to_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_license_of_tagged_weights_stays(tmp_path):
    model = tiny_model("lora", backbone=load_backbone("test_vit.r160_in1k", pretrained=False))
    license = model.backbone.pretrained_cfg["license"]
    for name, expected in (("test_vit.r160_in1k", license), ("test_vit", None)):
        model.config.backbone = name
        save_merged_backbone(SavedModel(model, image_processor_for({"input_size": (3, 160, 160)})), tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["pretrained_cfg"].get("license") == expected
