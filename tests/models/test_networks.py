import pytest
import timm
import torch
from tiny_models import CLASSES_PER_TASK, PROMPTS, images, labels_for, start_task, tiny_backbone, tiny_model, train
from tiny_networks import FEATURES_ONLY, NAMES, PROMPTED, tiny_network
from transformers import AutoModelForImageClassification

from cdl_hf.distillation import METHODS
from cdl_hf.models import PromptViTForImageClassification
from cdl_hf.models.networks import network_of

WITH_CLASS_TOKEN = [name for name, (_, reads) in PROMPTED.items() if reads == "class token"]


def timms(backbone):
    """timm's own network with the same weights."""
    args = {arg: value for arg, value in backbone.args.items() if arg != "img_size" or backbone.name not in FLEXIBLE}
    network = timm.create_model(backbone.name, num_classes=0, **args).eval()
    network.load_state_dict(backbone.module.state_dict())
    return network


FLEXIBLE = ("tiny_vit_5m_224", "mobilenetv4_conv_small", "convnext_tiny", "resnet50", "fastvit_t8")


def randomized(name):
    backbone = tiny_network(name)
    backbone.module.eval()
    for parameter in backbone.module.parameters():
        if parameter.ndim == 1 or name in PROMPTED:
            torch.nn.init.normal_(parameter, std=0.2)
    return backbone


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_are_those_of_timms_head(name):
    backbone, x = randomized(name), images()
    network = network_of(backbone.module)
    x = network.resized(x)
    whole = timms(backbone)
    tokens = whole.forward_features(x)
    expected = whole.forward_head(tokens, pre_logits=True)
    if name in WITH_CLASS_TOKEN:
        expected = whole.fc_norm(tokens[:, 0])
    assert expected.shape == (4, network.embed_dim)
    assert torch.allclose(network.features(x), expected, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_saved_model_predicts_the_same(name, tmp_path):
    backbone, x = randomized(name), images()
    layers = network_of(backbone.module).depth
    config = {"head": "ranpac", "ranpac_width": 16, "ranpac_layers": layers}
    model = tiny_model("none", backbone=backbone, **config).eval()
    model.fit_classifier(model.head_features(images(30)), labels_for(model, 30))
    expected = model(x).logits
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "prompts", save_backbone=False)
    for loaded in (
        AutoModelForImageClassification.from_pretrained(tmp_path / "whole"),
        AutoModelForImageClassification.from_pretrained(tmp_path / "prompts", backbones=[backbone]),
    ):
        assert torch.equal(loaded(x).logits, expected) and loaded.network.image_size == model.network.image_size


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_as_a_student_and_from_itself_as_a_teacher(name):
    backbone = tiny_network(name)
    student = tiny_model("none", backbone=backbone)
    method = METHODS["fitnets"](student, tiny_model("none", backbone=backbone).eval())
    losses = train(method, images())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in student.backbone.parameters())
    crossed = METHODS["kd"](tiny_model("none"), method.teacher)
    assert train(crossed, images(), steps=1)


@pytest.mark.parametrize("prompt_method", PROMPTS)
@pytest.mark.parametrize("name", [name for name in PROMPTED if not name.startswith("vit_base_patch16_224")])
def test_prompts_are_trained_and_saved(name, prompt_method, tmp_path):
    backbone = randomized(name)
    options = {}
    if prompt_method == "lora" and name in ("eva02_base_patch14_224", "vit_small_plus_patch16_dinov3"):
        options["lora_targets"] = ["proj"]
    if prompt_method == "lora" and name == "aimv2_large_patch14_224":
        options["lora_targets"] = ["qkv", "proj"]
    if prompt_method == "apt" and not network_of(backbone.module).has_class_token:
        with pytest.raises(ValueError, match=f"{name} has no class token: take another prompt_method"):
            tiny_model(prompt_method, backbone=backbone)
        return
    model = tiny_model(prompt_method, "kdp", backbone=backbone, **options)
    objective = METHODS["kdp"](model, tiny_model("none", backbone=tiny_backbone()).eval())
    before = {key: value.clone() for key, value in model.prompt_pool.named_parameters()}
    losses = train(objective, images(), lr=0.02)
    assert losses[-1] < losses[0]
    assert any(not torch.equal(value, before[key]) for key, value in model.prompt_pool.named_parameters())
    model.end_task()
    model.eval().save_pretrained(tmp_path)
    x = images()
    with torch.no_grad():
        assert torch.equal(PromptViTForImageClassification.from_pretrained(tmp_path)(x).logits, model(x).logits)


@pytest.mark.parametrize("name", FEATURES_ONLY)
def test_what_has_no_such_blocks_says_so(name):
    backbone = tiny_network(name)
    for prompt_method in PROMPTS:
        with pytest.raises(
            ValueError, match=rf"^prompt_method '{prompt_method}' .*{name} .*: take prompt_method none$"
        ):
            tiny_model(prompt_method, backbone=backbone)
    for branch in ("deit", "kdp"):
        with pytest.raises(ValueError, match=rf"^kd_branch '{branch}' .*{name} .*: take another distillation method$"):
            tiny_model("none", branch, backbone=backbone)


@pytest.mark.parametrize("name", ["resnet50", "vit_base_patch16_siglip_gap_224", "vit_small_patch16_dinov3"])
def test_it_selects_prompts_as_a_query_network(name):
    model = PromptViTForImageClassification.from_backbone(
        tiny_backbone(), tiny_network(name), classes_per_task=CLASSES_PER_TASK, prompt_method="l2p", **PROMPTS["l2p"]
    ).eval()
    start_task(model)
    x = images()
    query = model.query(x)
    assert query.shape == (4, network_of(model.query_backbone).embed_dim)
    assert model(x).logits.shape == (4, 3)
