import pytest
import torch
from tiny_models import images, labels_for, tiny_backbone, tiny_model, train
from tiny_networks import tiny_network
from transformers import AutoModelForImageClassification

from cdl_hf.benchmark.plain import PlainPromptViT
from cdl_hf.distillation import TrainingObjective
from cdl_hf.models import PromptViTConfig

BLOCKS = {"l2p": [2], "dualprompt": [2], "coda_prompt": [1, 2]}  # of three, the query after the first


def one_pass(prompt_method, kd_branch="none", **config):
    backbone = config.pop("backbone", None) or tiny_backbone(depth=3)
    blocks = {"prompt_blocks": BLOCKS[prompt_method], "g_prompt_blocks": [1]}
    model = tiny_model(prompt_method, kd_branch, backbone=backbone, query_block=0, **{**blocks, **config})
    for tensor in model.prompt_pool.state_dict().values():
        tensor.normal_()
    return model


def queries_of(model, monkeypatch):
    """What the pool is asked with, block by block."""
    queries, forward = [], model.prompt_pool.forward
    monkeypatch.setattr(model.prompt_pool, "forward", lambda *args: queries.append(args[0]) or forward(*args))
    return queries


@pytest.mark.parametrize("prompt_method", BLOCKS)
@torch.no_grad()
def test_the_query_is_the_class_token_after_that_block(prompt_method, monkeypatch):
    model, x, calls = one_pass(prompt_method).eval(), images(), []
    queries = queries_of(model, monkeypatch)
    for block in model.backbone.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    logits = model(x).logits
    assert model.query(x) is None and len(calls) == 3, "more than one pass"
    vit = model.backbone
    tokens = vit.blocks[0](vit.norm_pre(vit._pos_embed(vit.patch_embed(x))))
    assert queries[0] is None and all(torch.allclose(q, vit.norm(tokens[:, 0]), atol=1e-6) for q in queries[1:])
    assert len({tuple(query.shape) for query in queries[1:]}) == 1
    assert torch.allclose(model(x[1:]).logits, logits[1:], atol=1e-5), "depends on the batch"


@torch.no_grad()
def test_without_a_class_token_it_is_what_heads_read(monkeypatch):
    model, x = (
        one_pass("coda_prompt", backbone=tiny_network("vit_base_patch16_siglip_224"), prompt_blocks=[1]),
        images(),
    )
    queries = queries_of(model, monkeypatch)
    model.eval()(x)
    tokens, _ = model.network.embed(x)
    assert torch.allclose(queries[-1], model.network.pooled(model.backbone.blocks[0](tokens)), atol=1e-6)


@pytest.mark.parametrize("kd_branch", ["deit", "kdp"])
def test_no_gradient_flows_through_the_query(kd_branch):
    model = one_pass("l2p", kd_branch).train()
    model(images()).prompt_loss.backward()
    assert model.prompt_pool.keys.grad.any()
    assert all(parameter.grad is None for parameter in model.kd_branch.parameters())


@pytest.mark.parametrize("prompt_method", BLOCKS)
def test_it_learns_and_is_saved(prompt_method, tmp_path):
    backbone, x = tiny_backbone(depth=3), images()
    model = one_pass(prompt_method, backbone=backbone)
    losses = train(TrainingObjective(model), x)
    assert losses[-1] < losses[0]
    expected = model(x).logits
    model.save_pretrained(tmp_path, save_backbone=False)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, backbones=[backbone])
    assert loaded.config.query_block == 0 and torch.equal(loaded(x).logits, expected)


def test_the_plain_implementation_agrees():
    model, x = one_pass("coda_prompt", ortho_weight=0.0).train(), images()
    plain = PlainPromptViT.like(model)
    for each in (model, plain):
        each(x, labels=labels_for(each)).loss.backward()
    for ours, theirs in zip(model.prompt_pool.parameters(), plain.prompt_pool.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 1e-4 * theirs.grad.norm()


def test_a_grown_model_keeps_it():
    model, x = one_pass("l2p", tasks=3).eval(), images()
    before = model(x).logits
    model.add_classes(["a", "b"])
    assert model.config.query_block == 0 and torch.allclose(model(x).logits[:, :9], before, atol=1e-5)


def test_two_models_share_no_query():
    one, other = one_pass("coda_prompt"), tiny_model("coda_prompt", backbone=tiny_backbone(depth=3))
    assert not one.shares_query_with(one) and not other.shares_query_with(one) and other.shares_query_with(other)


def test_the_papers_blocks_are_counted_from_the_first_after_it():
    assert PromptViTConfig(prompt_method="coda_prompt", query_block=1).prompt_blocks == [2, 3, 4, 5, 6]
    assert PromptViTConfig(prompt_method="coda_prompt", query_block=1, prompt_blocks=[4]).prompt_blocks == [4]


@pytest.mark.parametrize(
    ("prompt_method", "config", "words"),
    [
        (
            "l2p",
            {"query_block": 0},
            r"known after block 0 \(query_block\), but blocks \[0\] have prompts: choose later",
        ),
        ("dualprompt", {"query_block": 0}, r"but blocks \[0, 1\] have prompts"),
        ("coda_prompt", {"query_block": -1}, "query_block must be at least 0"),
        ("apt", {"query_block": 0}, "'apt' takes no query: leave out query_block"),
        ("none", {"query_block": 0}, "'none' takes no query: leave out query_block"),
        ("coda_prompt", {"query_block": 0, "kd_branch": "cdl_prompt"}, "'cdl_prompt' .* leave out query_block"),
        ("coda_prompt", {"query_block": 0, "query_backbone": "vit_tiny_patch16_224"}, "leave out query_backbone"),
    ],
)
def test_what_it_does_not_go_with_is_refused(prompt_method, config, words):
    with pytest.raises(ValueError, match=words):
        if "query_backbone" in config:
            PromptViTConfig.checked(prompt_method=prompt_method, **config)
        else:
            tiny_model(prompt_method, **config)
