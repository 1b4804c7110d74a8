import json

import pytest
import timm
import torch
from tiny_models import STUDENT, images, tiny_backbone, tiny_model

from cdl_hf.models import load_backbone
from cdl_hf.models.backbones import create_backbone
from cdl_hf.models.networks import network_of

SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("vit_tinny_patch16_224", {}, "no model 'vit_tinny_patch16_224'"),
        ("vit_tiny_patch16_224", {"dept": 1}, "dept"),
        ("vit_tiny_patch16_224", {**SMALL, "in_chans": 1}, "images of 1 channels, but images here have 3"),
        ("vit_tiny_patch16_224", {**SMALL, "in_chans": 4}, "images of 4 channels"),
        ("vit_tiny_r_s16_p8_224", {**SMALL, "in_chans": 4}, "images of 4 channels"),
        ("vit_tiny_patch16_224", {**SMALL, "img_size": (32, 64)}, "32 x 64 pixels, but images here are square"),
        ("vit_tiny_patch16_224", {"embed_dim": 33, "num_heads": 2}, "divisible"),
        ("resnet18", {"in_chans": 1}, "images of 1 channels"),
        ("resnet18", {"depths": (1, 1)}, "depths"),
        ("resnet18", {"layers": (1,)}, "timm cannot create the backbone 'resnet18'"),
    ],
)
def test_unsuitable_networks_are_refused_with_the_reason(name, args, reason):
    with pytest.raises(ValueError, match=reason):
        create_backbone(name, **args)
    with pytest.raises(ValueError, match=reason):
        load_backbone(name, pretrained=False, **args)


def test_a_name_without_tag_does_not_say_which_weights():
    with pytest.raises(ValueError, match=r"choose one of: .*vit_tiny_patch16_224\.augreg_in21k"):
        load_backbone("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="no such folder, and timm has no model"):
        load_backbone("vit_tinny_patch16_224")


def test_unreachable_weights():
    with pytest.raises(ValueError, match="nobody/nothing"):
        load_backbone("hf_hub:nobody/nothing")


def test_weights_from_a_file(tmp_path):
    vit = tiny_backbone().module
    file = tmp_path / "weights.pth"
    torch.save(vit.state_dict(), file)
    loaded = load_backbone("vit_tiny_patch16_224", weights=file, **STUDENT)
    assert all(torch.equal(a, b) for a, b in zip(vit.parameters(), loaded.module.parameters(), strict=True))

    with pytest.raises(ValueError, match="does not exist"):
        load_backbone("vit_tiny_patch16_224", weights=tmp_path / "none.pth")
    with pytest.raises(ValueError, match="vit_tiny_patch16_224"):  # of another architecture
        load_backbone("vit_tiny_patch16_224", weights=file, **{**STUDENT, "embed_dim": 48, "num_heads": 3})
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises(ValueError, match="vit_tiny_patch16_224"):
            load_backbone("vit_tiny_patch16_224", weights=tmp_path / name)


def test_folder_in_timms_form(tmp_path):
    args = {**STUDENT, "num_classes": 5}
    vit = timm.create_model("vit_tiny_patch16_224", **args).eval()
    vit.pretrained_cfg |= {"mean": [0.4, 0.4, 0.4], "input_size": [3, 32, 32]}
    timm.models.save_for_hf(vit, tmp_path / "mine", model_args=args)
    loaded = load_backbone(tmp_path / "mine")
    assert (loaded.name, loaded.source) == ("vit_tiny_patch16_224", "mine")
    assert loaded.args["depth"] == STUDENT["depth"] and "num_classes" not in loaded.args
    assert tuple(loaded.pretrained_cfg["mean"]) == (0.4, 0.4, 0.4)
    again = create_backbone(loaded.name, **loaded.args).eval()
    again.load_state_dict(loaded.module.state_dict())
    x = images()
    with torch.no_grad():
        assert torch.equal(again(x), vit.forward_head(vit.forward_features(x), pre_logits=True))

    larger = load_backbone(tmp_path / "mine", img_size=64)  # positions are resampled
    assert larger.args["img_size"] == 64
    assert larger.module.pos_embed.shape[1] == 1 + 16

    by_scheme = load_backbone(
        f"local-dir:{tmp_path / 'mine'}"
    )  # where a folder lies is in no checkpoint and on no card
    assert (by_scheme.source, by_scheme.hub_name, by_scheme.digest) == ("mine", None, loaded.digest)

    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_backbone(tmp_path / "empty")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (3, "names no architecture"),
        ({"architecture": None}, "names no architecture"),
        ({"architecture": "hf-hub:someone/something"}, "must be the plain name of a timm architecture"),
        ({"architecture": "local-dir:/etc"}, "must be the plain name"),
        ({"model_args": [1]}, "model_args must be an object"),
        ({"model_args": {"checkpoint_path": "/etc/hostname"}}, "model_args has 'checkpoint_path'"),
        ({"model_args": {"pretrained_cfg": {"url": "https://example.org/x.pth"}}}, "model_args has 'pretrained_cfg'"),
        ({"model_args": {"depth": 20_000}}, "depth in model_args must be an integer from 1 to 100"),
        ({"model_args": {"depth": 100, "embed_dim": 8192, "num_heads": 8}}, "more than 3,000,000,000"),
        (
            {"architecture": "convnext_tiny", "model_args": {"depths": [9] * 4, "dims": [8192] * 4}},
            "more than 3,000,000,000",
        ),
        ({"architecture": "convnext_tiny", "model_args": {"depths": [1] * 11}}, "depths in model_args must be"),
        ({"model_args": {"norm_layer": "os.system"}}, "norm_layer in model_args must be one of"),
    ],
)
def test_a_folder_of_a_backbone_is_a_strangers_word_too(tmp_path, config, reason):
    if isinstance(config, dict):
        config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}, **config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"^[^\n]*{reason}[^\n]*$"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is damaged"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("vit_small_patch16_18x2_224", SMALL, "has blocks of type ParallelThingsBlock"),
        ("deit_tiny_distilled_patch16_224", SMALL, "is a VisionTransformerDistilled"),
        ("vit_dwee_patch16_reg1_gap_256", SMALL, "DiffAttention"),
    ],
)
def test_blocks_that_cannot_be_prompted(name, args, reason):
    backbone = load_backbone(name, pretrained=False, **args)
    with pytest.raises(ValueError, match=rf"^prompt_method 'l2p' changes .* and {name} .*{reason}"):
        tiny_model("l2p", backbone=backbone)


def test_a_network_for_images_of_any_size_keeps_the_one_that_it_is_given(tmp_path):
    args = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}
    backbone = load_backbone("resnet50", pretrained=False, img_size=32, **args)
    assert network_of(backbone.module).image_size == 32
    timm.models.save_for_hf(backbone.module, tmp_path, model_args=args)  # timm itself knows no img_size of it
    loaded = load_backbone(tmp_path)
    assert network_of(loaded.module).image_size == loaded.args["img_size"] == 32 and loaded.digest == backbone.digest
    assert network_of(load_backbone(tmp_path, img_size=48).module).image_size == 48
