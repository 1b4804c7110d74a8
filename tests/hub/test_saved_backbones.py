"""Merged weight updates as a backbone of timm: timm itself is the reference."""

import timm
import torch
from tiny_models import images, lora_after_two_tasks

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
