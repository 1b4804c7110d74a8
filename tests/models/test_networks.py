import pytest
import timm
import torch
from timm.layers import apply_rot_embed_cat
from timm.models.eva import EvaAttention
from tiny_models import CLASSES_PER_TASK, PROMPTS, images, labels_for, start_task, tiny_backbone, tiny_model, train
from tiny_networks import FEATURES_ONLY, NAMES, PROMPTED, tiny_network
from transformers import AutoModelForImageClassification

from cdl_hf.distillation import METHODS
from cdl_hf.models import PromptViTForImageClassification
from cdl_hf.models.networks import network_of
from cdl_hf.models.prefix_attention import Prefix

WITH_CLASS_TOKEN = [name for name, (_, reads) in PROMPTED.items() if reads == "class token"]


def timms(backbone):
    """timm's own network with the same weights."""
    args = {arg: value for arg, value in backbone.args.items() if arg != "img_size" or backbone.name not in FLEXIBLE}
    network = timm.create_model(backbone.name, num_classes=0, **args).eval()
    network.load_state_dict(backbone.module.state_dict())
    return network


EVAS = (
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3",
    "eva02_base_patch14_224",
    "vit_base_patch16_rope_224",
    "vit_pe_core_base_patch16_224",
)
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
        tensors = [*loaded.parameters(), *loaded.buffers()]
        assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)  # or the last bits may differ
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


# Each kind of tokens, positions, attention and pooling with one prompt method, and some with all.
PAIRS = [(name, "coda_prompt") for name in PROMPTED if PROMPTED[name][1] != "class token"]
ALL_METHODS = ("vit_base_patch16_rope_224", "eva02_base_patch14_224", "vit_base_patch16_siglip_224")
PAIRS += [(name, method) for name in ALL_METHODS for method in PROMPTS if (name, method) not in PAIRS]


@pytest.mark.parametrize(("name", "prompt_method"), PAIRS)
def test_prompts_are_trained_and_saved(name, prompt_method, tmp_path):
    backbone = randomized(name)
    options = {}
    if prompt_method == "lora" and name == "eva02_base_patch14_224":
        with pytest.raises(
            ValueError, match="names 'qkv', but block 0 of the backbone only has the linear layers proj"
        ):
            tiny_model(prompt_method, backbone=backbone, **options)
        options["lora_targets"] = ["proj"]
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


def naive_attention(attn, x, angles, prefix, suffix, first):
    """Tokens with a prefix and a suffix, of which only the patches, from `first` on, are rotated."""
    if attn.qkv is None:
        projected = [attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)]
    elif attn.qkv.bias is None and isinstance(attn, EvaAttention) and attn.q_bias is not None:
        biases = (attn.q_bias, 0, attn.v_bias)
        projected = [part + bias for part, bias in zip(attn.qkv(x).chunk(3, -1), biases, strict=True)]
    else:
        projected = attn.qkv(x).chunk(3, -1)
    out = []
    for head in range(attn.num_heads):
        width = x.shape[-1] // attn.num_heads
        query, key, value = (part[..., head * width : (head + 1) * width] for part in projected)
        query, key = attn.q_norm(query), attn.k_norm(key)
        of_head = angles[head] if angles.ndim == 3 else angles
        for tokens in (query, key):
            stop = first + len(of_head)
            tokens[:, first:stop] = apply_rot_embed_cat(tokens[:, first:stop], of_head, half=attn.rotate_half)
        around = [
            [each[..., head * width : (head + 1) * width] for each in (p.key, p.value)] for p in (prefix, suffix)
        ]
        key, value = (torch.cat([around[0][i], t, around[1][i]], 1) for i, t in enumerate((key, value)))
        out.append((query @ key.transpose(1, 2) / width**0.5).softmax(-1) @ value)
    return attn.proj(attn.norm(torch.cat(out, -1)))


@pytest.mark.parametrize("name", EVAS)
@torch.no_grad()
def test_only_patches_have_rotary_positions(name):
    module = randomized(name).module
    network, block = network_of(module), module.blocks[1]
    tokens, angles = network.embed(images())
    x = torch.cat([torch.randn(4, 1, 32), tokens, torch.randn(4, 1, 32)], 1)  # with tokens of a KD branch
    prefix, suffix = (Prefix(torch.randn(4, 2, 32), torch.randn(4, 2, 32)) for _ in range(2))
    rotation = network.rotation(angles, 1, cls_index=1)
    found = block(x, prefix, suffix, 1, rotation=rotation)
    gammas = [1 if gamma is None else gamma for gamma in (block.gamma_1, block.gamma_2)]
    of_block = angles[1] if module.rope_mixed else angles
    first = 1 + module.num_prefix_tokens
    expected = x + gammas[0] * naive_attention(block.attn, block.norm1(x), of_block, prefix, suffix, first)
    expected = expected + gammas[1] * block.mlp(block.norm2(expected))
    assert torch.allclose(found, expected, atol=1e-4)
    some = block(x, prefix, suffix, 1, rows=[1, -1], rotation=rotation)
    assert torch.allclose(some, expected[:, [1, -1]], atol=1e-4)


@pytest.mark.parametrize("name", FEATURES_ONLY)
def test_what_has_no_such_blocks_says_so(name):
    backbone = tiny_network(name)
    for prompt_method in PROMPTS:
        with pytest.raises(
            ValueError, match=rf"^prompt_method '{prompt_method}' .*{name} .*: take prompt_method none, "
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


@pytest.mark.parametrize("name", ["convnext_tiny", "beit_base_patch16_224", "vit_base_patch16_siglip_224"])
@torch.no_grad()
def test_closed_form_reads_all_its_layers(name, tmp_path):
    options = {"tasks": 3, "head": "ranpac", "ranpac_width": 16}
    teacher = tiny_model("none", backbone=tiny_network("resnet50"), ranpac_layers=2, **options).eval()
    width = teacher.network.width(teacher.readout)
    backbone = randomized(name)
    student = tiny_model(
        "none", "analytic", backbone=backbone, teacher_width=width, analytic_width=16, **options
    ).eval()
    x, labels = images(45), torch.arange(45) % sum(CLASSES_PER_TASK)
    student.fit_classifier(student.head_features(x), labels, teacher.head_features(x)[:, 0])
    student.save_pretrained(tmp_path)
    logits = student(x).logits
    assert logits.std() > 0
    assert torch.equal(PromptViTForImageClassification.from_pretrained(tmp_path)(x).logits, logits)


@pytest.mark.parametrize("name", ["resnet50", "vit_small_patch16_dinov3"])
def test_stages_are_not_fused_and_have_no_patch_means(name):
    network = tiny_network(name)
    student, teacher = tiny_model("none", backbone=network), tiny_model("none")
    if network_of(network.module).blocks:
        assert train(METHODS["reviewkd"](student, teacher), images(), steps=1)
        return
    with pytest.raises(ValueError, match="reviewkd fuses .* resnet50 has stages: take fitnets"):
        METHODS["reviewkd"](student, teacher)
    with pytest.raises(ValueError, match=r"ranpac_patch_means .* resnet50 .*: leave it out"):
        tiny_model("none", backbone=network, head="ranpac", ranpac_width=16, ranpac_patch_means=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224"])
def test_it_is_exported_with_a_batch_of_any_size(name):
    model = tiny_model("none" if name == "resnet50" else "l2p", backbone=randomized(name)).eval()
    shapes = {"pixel_values": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (images(2),), dynamic_shapes=shapes)
    x = images(3)
    with torch.no_grad():
        assert torch.allclose(program.module()(x).logits, model(x).logits, atol=1e-4)
