import pytest
import torch
from tiny_models import PROMPTS, WITHOUT_QUERY, images, start_task, tiny_model
from torch.nn import functional as F

from cdl_hf.models import PromptViTForImageClassification

BRANCHES = ("deit", "kdp", "cdl_prompt")


@pytest.mark.parametrize("kd_branch", BRANCHES)
@torch.no_grad()
def test_heads_mix_as_documented_also_after_loading(kd_branch, tmp_path):
    model, x = tiny_model("coda_prompt", kd_branch, tasks=2, kd_alpha=0.3).eval(), images()
    output = model(x)
    own = model.train()(x).logits  # in training the own head alone
    weight = 0.5 if kd_branch == "cdl_prompt" else 0.3
    assert not torch.allclose(own, output.kd_logits)
    assert torch.allclose(output.logits, (1 - weight) * own + weight * output.kd_logits, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert torch.equal(PromptViTForImageClassification.from_pretrained(tmp_path)(x).logits, output.logits)


@pytest.mark.parametrize("kd_branch", BRANCHES)
def test_a_new_task_leaves_the_branch_as_it_is(kd_branch):
    model = tiny_model("coda_prompt", kd_branch)
    before = {name: p.clone() for name, p in model.kd_branch.state_dict().items()}
    model.end_task()
    start_task(model)
    assert all(torch.equal(p, before[name]) for name, p in model.kd_branch.state_dict().items())


@pytest.mark.parametrize(
    ("prompt_method", "kd_branch"),
    [(p, b) for p in PROMPTS for b in ("none", *BRANCHES) if b != "cdl_prompt" or p not in WITHOUT_QUERY],
)
@torch.no_grad()
def test_the_short_cut_through_the_last_block_is_exact(prompt_method, kd_branch):
    model, x = tiny_model(prompt_method, kd_branch).eval(), images()
    whole = model(x, output_hidden_states=True)
    tokens = 1 + 4 + (kd_branch in ("deit", "kdp"))
    assert [tuple(h.shape) for h in whole.hidden_states] == [(4, tokens, 32)] * 3
    short = model(x)
    assert short.hidden_states is None
    assert torch.allclose(short.logits, whole.logits, atol=1e-6)


def test_kdp_init_and_positions():
    branch = tiny_model("l2p", "kdp").kd_branch
    assert branch.token.min() >= 0 and 0.5 < branch.token.max() <= 1
    x = torch.randn(3, 5, 32)
    with_token = branch.add_token(x)
    assert torch.equal(with_token[:, :-1], x) and torch.equal(with_token[1, -1], branch.token[0])
    assert branch.attention_context(None, None, 0, 0) == (None, None)
    prefix, suffix = branch.attention_context(None, None, 1, 0)
    assert prefix is None
    assert torch.equal(suffix.key[0], branch.prompts[0, :3]) and torch.equal(suffix.value[0], branch.prompts[0, 3:])
    only_token = tiny_model("l2p", "kdp", kd_prompt_blocks=1).kd_branch
    assert [name for name, _ in only_token.named_parameters()] == ["token"]
    with pytest.raises(ValueError, match="kd_prompt_blocks is 3, but the backbone has 2 blocks"):
        tiny_model("l2p", "kdp", kd_prompt_blocks=3)


def test_deit_token_is_zero_at_first_and_before_cls():
    branch = tiny_model("l2p", "deit").kd_branch
    assert not branch.token.any()
    x = torch.randn(3, 5, 32)
    assert torch.equal(branch.add_token(x)[:, 1:], x)


def test_prompt_map_weighs_its_prompts_by_the_teachers():
    model = tiny_model("coda_prompt", "cdl_prompt")
    branch, query = model.kd_branch, torch.randn(3, 32)
    for parameter in (*branch.parameters(), model.prompt_pool.prompts):
        torch.nn.init.normal_(parameter)
    teacher, _ = branch.teacher_pool(query, 1, 0)
    own, _ = model.prompt_pool(query, 1, 0)
    prefix, suffix = branch.attention_context(own, query, 1, 0)
    assert suffix is None
    for b in range(3):
        m = torch.cat([teacher.key[b], teacher.value[b]]).mean(0)
        weights = F.cosine_similarity(m * branch.attention[1], branch.keys[1])
        mapped = (weights[:, None, None] * branch.values[1]).sum(0)
        assert torch.allclose(prefix.key[b], torch.cat([mapped[:2], own.key[b]]), atol=1e-5)
        assert torch.allclose(prefix.value[b], torch.cat([mapped[2:], own.value[b]]), atol=1e-5)


def test_prompt_map_begins_orthonormal_and_its_teacher_stays_frozen():
    model = tiny_model("coda_prompt", "cdl_prompt", pool_size=9)
    branch = model.kd_branch
    for parameter in (branch.keys, branch.attention, branch.values):
        rows = parameter.detach()[1].flatten(1)
        assert torch.allclose(rows @ rows.T, torch.eye(3), atol=1e-5)
    model.train()
    assert not branch.teacher_pool.training and branch.training
    assert not any(p.requires_grad for p in branch.teacher_pool.parameters())
    assert tiny_model("dualprompt", "cdl_prompt").kd_branch.blocks == [0, 1]  # G-prompts are mapped too
    assert tiny_model("dualprompt", "cdl_prompt").kd_branch.values.shape == (2, 1, 4, 32)
