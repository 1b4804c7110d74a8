"""Adapters of PEFT: the library itself is the reference, where it is installed."""

import json

import pytest
import torch
from tiny_models import images, lora_after_two_tasks, tiny_backbone, tiny_model

from cdl_hf.hub.peft_adapter import CONFIG, adapter_fields, load_adapter, save_adapter


@pytest.fixture
def model():
    return lora_after_two_tasks()


@torch.no_grad()
def test_peft_reads_what_is_exported(model, tmp_path):
    peft, x = pytest.importorskip("peft"), images()
    save_adapter(model, tmp_path)
    vit = tiny_backbone().module.eval()
    vit.load_state_dict(model.backbone.state_dict())
    frozen = vit.forward_features(x)[:, 0]
    adapted = peft.PeftModel.from_pretrained(vit, tmp_path).eval()
    features = adapted.base_model.model.forward_features(x)[:, 0]
    assert not torch.allclose(features, frozen, atol=1e-2)
    assert torch.allclose(features, model.head_features(x)[:, 0], atol=1e-5)


@torch.no_grad()
def test_an_adapter_of_peft_is_where_training_begins(tmp_path):
    peft, x, backbone = pytest.importorskip("peft"), images(), tiny_backbone()
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["proj", "fc1"], init_lora_weights=False)
    vit = tiny_backbone().module
    vit.load_state_dict(backbone.module.state_dict())
    config.target_modules = [f"blocks.{i}.{name}" for i in range(2) for name in ("attn.proj", "mlp.fc1")]
    adapted = peft.get_peft_model(vit, config).eval()
    adapted.save_pretrained(tmp_path)
    fields = adapter_fields(tmp_path)
    assert fields == {"lora_rank": 3, "lora_alpha": 5, "lora_targets": ["proj", "fc1"], "prompt_blocks": [0, 1]}
    model = tiny_model("lora", backbone=backbone, **fields)
    load_adapter(model, tmp_path)
    features = adapted.base_model.model.forward_features(x)[:, 0]
    assert not torch.allclose(model.network.features(x), features, atol=1e-2)
    model.end_task()
    assert torch.allclose(model.eval().head_features(x)[:, 0], features, atol=1e-5)


@torch.no_grad()
def test_what_is_exported_comes_back(model, tmp_path):
    save_adapter(model, tmp_path)
    again = tiny_model("lora", **adapter_fields(tmp_path))
    again.backbone.load_state_dict(model.backbone.state_dict())
    load_adapter(again, tmp_path)
    again.end_task()
    x = images()
    assert again.config.lora_rank == 4
    assert torch.allclose(again.eval().head_features(x), model.head_features(x), atol=1e-5)


def test_what_does_not_fit_is_refused(model, tmp_path):
    for other in (tiny_model("apt"), tiny_model("lora", tasks=0)):
        with pytest.raises(ValueError, match="an adapter holds the weight updates of LoRA after a task"):
            save_adapter(other, tmp_path)
    with pytest.raises(ValueError, match="holds no adapter of PEFT: adapter_config.json cannot be read"):
        adapter_fields(tmp_path)
    save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="has lora_rank=4, but the model has 2"):
        load_adapter(tiny_model("lora"), tmp_path)
    wider = tiny_model("lora", backbone=tiny_backbone(embed_dim=48, num_heads=3), **adapter_fields(tmp_path))
    with pytest.raises(ValueError, match="is of another backbone: attn.qkv of block 1 has a factor of"):
        load_adapter(wider, tmp_path)
    settings = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**settings, "use_dora": True}))
    with pytest.raises(ValueError, match=r"is not of plain LoRA \(use_dora\)"):
        adapter_fields(tmp_path)
