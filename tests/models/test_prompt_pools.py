import pytest
import torch
from tiny_models import PROMPTS, images, labels_for, tiny_model, tiny_pair
from torch.nn import functional as F

from cdl_hf.models.prefix_attention import run_block
from cdl_hf.models.prompt_pools import CodaPrompt
from cdl_hf.models.similarity import attended_cosine, cosine


def pool_of(prompt_method, tasks=1, **config):
    model = tiny_model(prompt_method, tasks=tasks, **config)
    for tensor in model.prompt_pool.state_dict().values():
        tensor.normal_()
    return model.prompt_pool


def test_l2p_selects_the_nearest_prompts_of_each_image():
    pool, query = pool_of("l2p"), torch.randn(5, 32)
    prefix, loss = pool(query, 0, 0)
    losses = []
    for b in range(5):
        similarity = F.cosine_similarity(query[b], pool.keys[0])
        best = similarity.argsort(descending=True)[:2]
        losses.append((1 - similarity[best]).sum())
        assert torch.equal(prefix.key[b], pool.prompts[0, best, :2].flatten(0, 1))
        assert torch.equal(prefix.value[b], pool.prompts[0, best, 2:].flatten(0, 1))
    assert torch.allclose(loss, torch.stack(losses).mean())
    assert pool(query, 1, 0) == (None, None)


def test_l2p_loss_reaches_only_the_keys_that_an_image_chose():
    """`cos[:, chosen]` instead of `gather` would move every image's choice for every other image."""
    pool = pool_of("l2p")
    query = torch.stack([pool.keys[0, 0], pool.keys[0, 3]]).detach()
    pool(query, 0, 0)[1].backward()
    chosen = cosine(query, pool.keys[0]).topk(2, dim=1).indices
    assert set(chosen.flatten().tolist()) == set(pool.keys.grad[0].abs().sum(1).nonzero().flatten().tolist())
    expected = torch.autograd.grad(
        sum(
            (1 - F.cosine_similarity(q, pool.keys[0, m], dim=0))
            for q, ms in zip(query, chosen, strict=True)
            for m in ms
        )
        / 2,
        pool.keys,
    )[0]
    assert torch.allclose(pool.keys.grad, expected, atol=1e-6)


def test_deep_l2p_has_a_pool_in_each_block():
    pool, query = pool_of("l2p", prompt_blocks=[0, 1]), torch.randn(2, 32)
    (first, _), (second, _) = pool(query, 0, 0), pool(query, 1, 0)
    assert not torch.equal(first.key, second.key)


def test_dualprompt_trains_the_tasks_prompt_and_predicts_with_the_nearest():
    pool, query = pool_of("dualprompt"), torch.randn(6, 32)
    prefix, loss = pool.train()(query, 1, 2)
    assert torch.equal(prefix.key[0], pool.prompts[0, 2, :2])
    assert torch.equal(prefix.value[0], pool.prompts[0, 2, 2:])
    assert torch.allclose(loss, (1 - F.cosine_similarity(query, pool.keys[0, 2][None])).mean())
    prefix, _ = pool.eval()(query, 1, 2)
    for b in range(6):
        nearest = F.cosine_similarity(query[b], pool.keys[0]).argmax()
        assert torch.equal(prefix.key[b], pool.prompts[0, nearest, :2])
    prefix, loss = pool(query, 0, 2)  # the G-prompt: the same for all, no loss
    assert torch.equal(prefix.key, pool.g_prompts[:1, :1])
    assert torch.equal(prefix.value, pool.g_prompts[:1, 1:])
    assert loss is None


def test_dualprompt_keys_and_values_go_to_the_right_heads():
    """A prompt whose value is 1 in one head's columns changes that head's output alone."""
    model = tiny_model("dualprompt", tasks=1)
    pool, block = model.prompt_pool, model.backbone.blocks[0]
    outputs, x = [], torch.randn(1, 3, 32)
    torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
    block.attn.proj.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0]))
    with torch.no_grad():
        pool.g_prompts.zero_()
        run_block(block, x, pool(None, 0, 0)[0])
        pool.g_prompts[0, 1, 16:] = 5  # value of the second of two heads
        run_block(block, x, pool(None, 0, 0)[0])
        pool.g_prompts[0, 1] = 0
        pool.g_prompts[0, 0, :16] = 5  # key of the first
        run_block(block, x, pool(None, 0, 0)[0])
    plain, value, key = outputs
    assert torch.equal(plain[..., :16], value[..., :16]) and not torch.allclose(plain[..., 16:], value[..., 16:])
    assert torch.equal(plain[..., 16:], key[..., 16:]) and not torch.allclose(plain[..., :16], key[..., :16])


def test_coda_draws_components_orthonormal_to_all_earlier_ones():
    model = tiny_model("coda_prompt", tasks=0)
    pool = model.prompt_pool
    for task in range(3):
        before = {name: p.clone() for name, p in pool.named_parameters()}
        identity = {name: (id(p), p.data_ptr()) for name, p in pool.named_parameters()}
        pool.start_task(task)
        for name, parameter in pool.named_parameters():
            assert (id(parameter), parameter.data_ptr()) == identity[name], "not in place"
            assert torch.equal(parameter[:, : 2 * task], before[name][:, : 2 * task])
            assert torch.equal(parameter[:, 2 * task + 2 :], before[name][:, 2 * task + 2 :])
            rows = parameter[:, : 2 * task + 2].flatten(2).double()
            assert torch.allclose(rows @ rows.mT, torch.eye(2 * task + 2).double().expand(2, -1, -1), atol=1e-6)


def test_coda_draws_beside_components_that_training_has_moved():
    pool = pool_of("coda_prompt")
    pool.start_task(2)
    for parameter in pool.parameters():
        rows = parameter.detach()[0].flatten(1).double()
        assert torch.allclose(rows[4:] @ rows[:4].T, torch.zeros(2, 4).double(), atol=1e-5)
        assert torch.allclose(rows[4:] @ rows[4:].T, torch.eye(2).double(), atol=1e-6)


def test_coda_refuses_a_pool_that_cannot_be_orthogonal():
    with pytest.raises(ValueError, match=r"pool of 33 components .* in 32 dimensions .*at most 30"):
        tiny_model("coda_prompt", pool_size=33)
    with pytest.raises(ValueError, match=r"pool_size \(7\) must be a multiple of the number of tasks \(3\)"):
        tiny_model("coda_prompt", pool_size=7)


def test_coda_weighs_components_of_the_tasks_so_far():
    pool, query = pool_of("coda_prompt"), torch.randn(3, 32)
    prefix, loss = pool.train()(query, 1, 1)
    keys, attention, prompts = pool.keys[1, :4], pool.attention[1, :4], pool.prompts[1, :4]
    for b in range(3):
        weights = F.cosine_similarity(query[b] * attention, keys)
        prompt = (weights[:, None, None] * prompts).sum(0)
        assert torch.allclose(torch.cat([prefix.key[b], prefix.value[b]]), prompt, atol=1e-5)
    penalty = sum(((r @ r.T - torch.eye(4)) ** 2).mean() for r in (keys, attention, prompts.flatten(1)))
    assert torch.allclose(loss, 0.1 * penalty)
    loss.backward()
    prefix.key.sum().backward()
    for parameter in pool.parameters():
        assert not parameter.grad[:, :2].any(), "earlier components have a gradient"
        assert parameter.grad[1, 2:4].any() and not parameter.grad[:, 4:].any()
    assert torch.equal(pool.eval()(query, 1, 1)[0].key, prefix.key)


def coda_step(objective, x):
    """Logits and gradients in training and logits in evaluation."""
    objective.train().zero_grad()
    output = objective(x, labels_for(objective.model))
    output["loss"].backward()
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    with torch.no_grad():
        return [output["loss"], output["logits"], *gradients, objective.eval().model(x).logits]


@pytest.mark.parametrize("method", ["none", "kdp", "cdl_prompt"])
def test_coda_computes_all_blocks_at_once_on_a_gpu(method, request, monkeypatch):
    _, objective = tiny_pair("coda_prompt", method, tasks=2, prompt_blocks=[1, 0])
    for tensor in objective.model.prompt_pool.parameters():
        torch.nn.init.normal_(tensor, std=0.5)
    x = images()
    each = coda_step(objective, x)
    request.getfixturevalue("as_on_a_gpu")
    monkeypatch.setattr(objective.model.prompt_pool, "forward", None)
    for ours, expected in zip(coda_step(objective, x), each, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_coda_waits_for_a_query_of_a_later_block(as_on_a_gpu):
    model, x = tiny_model("coda_prompt", prompt_blocks=[1], query_block=0), images()
    for tensor in model.prompt_pool.parameters():
        torch.nn.init.normal_(tensor, std=0.5)
    logits = model(x).logits
    assert torch.equal(logits, model(x, query=torch.randn(len(x), 32)).logits)  # not that of another network


def test_a_method_that_overrides_coda_is_called_on_a_gpu(as_on_a_gpu, monkeypatch):
    class Ours(CodaPrompt):
        def forward(self, query, block, task_id):
            called.append(block)
            return super().forward(query, block, task_id)

    called, model = [], tiny_model("coda_prompt")
    monkeypatch.setattr(model.prompt_pool, "__class__", Ours)
    model(images())
    assert called


def test_attended_cosine_of_a_zero_vector_is_zero():
    keys = torch.randn(3, 4, requires_grad=True)
    weights = attended_cosine(torch.zeros(2, 4), torch.zeros(3, 4), keys)
    weights.sum().backward()
    assert not weights.any() and torch.isfinite(keys.grad).all()


def test_apt_trains_the_current_vectors_and_predicts_with_the_merged():
    pool = tiny_model("apt").prompt_pool
    first = pool.prompts.detach().clone()
    assert not pool.merged.any()
    assert torch.equal(pool.train()(None, 1, 0)[0].cls_key, first[1, 0])
    pool.end_task(0)
    assert torch.equal(pool.merged, first)
    assert torch.equal(pool.eval()(None, 1, 0)[0].cls_value, first[1, 1])
    second = torch.randn_like(first)
    pool.prompts.data.copy_(second)
    pool.end_task(1)
    assert torch.allclose(pool.merged, 0.7 * first + 0.3 * second)


@pytest.mark.parametrize("prompt_method", PROMPTS)
def test_a_block_that_does_not_exist_is_refused(prompt_method):
    with pytest.raises(ValueError, match="the backbone has blocks 0 to 1"):
        tiny_model(prompt_method, prompt_blocks=[1, 2] if prompt_method == "dualprompt" else [0, 2])


def test_dualprompt_blocks_do_not_overlap():
    with pytest.raises(ValueError, match=r"\[0\] are in both prompt_blocks and g_prompt_blocks"):
        tiny_model("dualprompt", prompt_blocks=[0, 1])
