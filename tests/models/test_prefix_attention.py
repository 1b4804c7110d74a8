import copy

import pytest
import torch
from timm.models.vision_transformer import Block
from tiny_models import STUDENT, images, tiny_backbone
from torch.nn import functional as F

from cdl_hf.models import load_backbone
from cdl_hf.models.backbones import create_backbone
from cdl_hf.models.networks import network_of
from cdl_hf.models.prefix_attention import Prefix, run_block

VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 4},
    "registers without position": {"reg_tokens": 4, "no_embed_class": True},
    "clip": {"pre_norm": True, "norm_layer": "layernorm"},
    "dinov2": {"init_values": 1e-5},
    "dinov2 with registers": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    "mean pooling, norm after": {"global_pool": "avg"},
    "norm of the pooled": {"fc_norm": True},
    "no bias": {"qkv_bias": False},
    "normed queries and keys": {"qk_norm": True},
    "normed attention": {"scale_attn_norm": True, "scale_mlp_norm": True},
}


def random_vit(**args):
    vit = tiny_backbone(**args).module.eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return vit


def timms(vit):
    """The transformer with timm's own blocks."""
    vit = copy.deepcopy(vit)
    for block in vit.blocks:
        block.__class__ = Block
    return vit


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_without_prompts_it_is_timms_transformer(variant):
    vit, x = random_vit(**VARIANTS[variant]), images()
    features = timms(vit).forward_features(x)
    assert torch.allclose(network_of(vit).features(x), vit.fc_norm(features[:, 0]), atol=1e-5)
    assert torch.allclose(vit.forward_features(x), features, atol=1e-5)


@torch.no_grad()
def test_a_convolutional_stem_may_make_the_patches():
    hybrid = load_backbone("vit_tiny_r_s16_p8_224", pretrained=False, **{**STUDENT, "patch_size": 4}).module.eval()
    x = images()
    assert torch.allclose(network_of(hybrid).features(x), timms(hybrid).forward_features(x)[:, 0], atol=1e-5)


@torch.no_grad()
def test_a_convolutional_stem_runs_too():
    vit = create_backbone("vit_tiny_r_s16_p8_224", img_size=64, embed_dim=32, depth=2, num_heads=2).eval()
    x = images(2, size=64)
    assert torch.allclose(network_of(vit).features(x), timms(vit).forward_features(x)[:, 0], atol=1e-5)


def naive_attention(attn, x, prefix, suffix, cls_index):
    """One image, one head and one query at a time."""
    width = x.shape[-1] // attn.num_heads
    out = torch.zeros_like(x)
    for b in range(len(x)):
        query, key, value = F.linear(x[b], attn.qkv.weight, attn.qkv.bias).split(x.shape[-1], dim=-1)
        key, value = key.clone(), value.clone()
        key[cls_index] += prefix.cls_key
        value[cls_index] += prefix.cls_value
        for head in range(attn.num_heads):
            of = slice(head * width, (head + 1) * width)
            keys = torch.cat([prefix.key[b, :, of], attn.k_norm(key[:, of]), suffix.key[0, :, of]])
            values = torch.cat([prefix.value[b, :, of], value[:, of], suffix.value[0, :, of]])
            for i in range(x.shape[1]):
                scores = keys @ attn.q_norm(query[i, of]) / width**0.5
                out[b, i, of] = scores.softmax(0) @ values
    return attn.proj(out)


@pytest.mark.parametrize("variant", ["plain", "no bias", "normed queries and keys"])
@pytest.mark.parametrize("cls_index", [0, 1])
@torch.no_grad()
def test_prefixes_go_to_the_right_heads_and_places(variant, cls_index):
    block = random_vit(**VARIANTS[variant]).blocks[0]
    x = torch.randn(2, 5, 32)
    prefix = Prefix(torch.randn(2, 3, 32), torch.randn(2, 3, 32), torch.randn(32), torch.randn(32))
    suffix = Prefix(torch.randn(1, 2, 32), torch.randn(1, 2, 32))
    expected = x + naive_attention(block.attn, block.norm1(x), prefix, suffix, cls_index)
    expected = expected + block.mlp(block.norm2(expected))
    ours = run_block(block, x, prefix, suffix, cls_index)
    assert torch.allclose(ours, expected, atol=1e-5)
    some = run_block(block, x, prefix, suffix, cls_index, rows=[0, -1])
    assert torch.allclose(some, expected[:, [0, -1]], atol=1e-5)


def test_one_prefix_follows_another_for_all_images():
    one, each = Prefix(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)), Prefix(torch.ones(4, 1, 3), torch.ones(4, 1, 3))
    joined = one.concat(each)
    assert joined.key.shape == joined.value.shape == (4, 3, 3)
    assert joined.key[2, :, 0].tolist() == [0, 0, 1]
    assert one.concat(None) is one


@torch.no_grad()
def test_images_of_another_size_are_resized():
    embed, x = network_of(random_vit()).embed, images(2, size=48)
    resized = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(embed(x)[0], embed(resized)[0])


def test_half_precision_on_a_cpu_learns_what_full_precision_does():
    """There attention is written out in training, and fused in evaluation."""
    vit, x = random_vit(), images()
    tokens = network_of(vit).embed(x)[0].detach()
    prefix = torch.randn(2, 4, STUDENT["embed_dim"])
    gradients, outputs = [], []
    for enabled in (False, True):
        key = prefix[0][None].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = run_block(vit.blocks[0], tokens, Prefix(key, prefix[1][None]))
            with torch.no_grad():
                outputs.append((out.float(), run_block(vit.blocks[0], tokens, Prefix(key, prefix[1][None])).float()))
        out.float().square().mean().backward()
        gradients.append(key.grad)
    assert F.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.99
    for trained, evaluated in outputs:
        assert F.cosine_similarity(trained.flatten(), evaluated.flatten(), dim=0) > 0.999
