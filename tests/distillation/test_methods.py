import copy

import pytest
import torch
from tiny_models import TEACHER, images, labels_for, tiny_backbone, tiny_model, tiny_pair
from torch import nn
from torch.nn import functional as F

from cdl_hf.distillation import METHODS
from cdl_hf.distillation.feature_methods import Fusion, TokenGrid
from cdl_hf.distillation.losses import dist_loss, dkd_loss, kd_loss, standardized_kd_loss
from cdl_hf.models.low_rank import LowRankUpdate

DISTILLING = [name for name in METHODS if name not in ("none", "features", "analytic")]


@pytest.mark.parametrize("name", DISTILLING)
@torch.no_grad()
def test_the_parts_of_the_loss(name):
    """(1 - alpha) CE of the own head, alpha soft loss of the head that follows, prompt loss; current classes only."""
    teacher, method = tiny_pair("l2p", name, tasks=2)
    method.kd_alpha = 0.3
    student, x = method.model.train(), images()
    labels, current = labels_for(student), slice(3, 5)
    output = method(x, labels)
    student_output = student(x)
    own = student_output.logits[:, current]
    follower = student_output.kd_logits[:, current] if METHODS[name].kd_branch != "none" else own
    teaching = teacher.eval()(x).logits[:, current]
    assert torch.allclose(output["logits"], own, atol=1e-6)
    assert torch.allclose(output["cross_entropy"], 0.7 * F.cross_entropy(own, labels - 3))
    soft = {
        "dkd": dkd_loss(follower, teaching, labels - 3, 4.0),
        "lskd": standardized_kd_loss(follower, teaching, 2.0),
        "dist": dist_loss(follower, teaching, 1.0),
    }.get(name, kd_loss(follower, teaching, 2.0))
    assert torch.allclose(output["soft_loss"], 0.3 * soft, atol=1e-6)
    assert torch.allclose(output["prompt_loss"], student_output.prompt_loss)
    assert ("feature_loss" in output) == (name in ("fitnets", "reviewkd"))


def test_a_single_seen_logit_of_another_task_has_no_gradient():
    _, method = tiny_pair("coda_prompt", "kdp", tasks=2)
    method.train()(images(), labels_for(method.model))["loss"].backward()
    for head in (method.model.head, method.model.kd_head):
        assert not head.weight.grad[:3].any() and head.weight.grad[3:5].any() and not head.weight.grad[5:].any()


@pytest.mark.parametrize("name", ["kd", "kdp", "deit", "cdl_prompt"])
def test_a_student_without_the_branch_is_refused(name):
    other = tiny_model("l2p", "deit" if name != "deit" else "none")
    with pytest.raises(ValueError, match="needs a student with kd_branch"):
        METHODS[name](other, tiny_model("l2p"))


def test_models_of_other_tasks_are_refused():
    with pytest.raises(ValueError, match="same tasks"):
        METHODS["kd"](tiny_model("l2p"), tiny_model("l2p", classes_per_task=[3, 3, 3]))


def test_of_a_teacher_that_saw_all_classes_the_tasks_columns_count():
    student = tiny_model("l2p", tasks=2).eval()
    teacher = tiny_model("apt", tasks=0, classes_per_task=[9])
    teacher.start_task([str(i) for i in range(9)])
    x, labels = images(), labels_for(student)
    parts = METHODS["kd"](student, teacher).eval()(x, labels)
    ours, theirs = (model(x).logits[:, 3:5] for model in (student, teacher))
    torch.testing.assert_close(parts["soft_loss"], 0.5 * kd_loss(ours, theirs, 2.0))


def test_cdl_prompt_refuses_a_teacher_it_was_not_made_for():
    student_backbone = tiny_backbone()
    student = tiny_model("l2p", "cdl_prompt", backbone=student_backbone)
    with pytest.raises(ValueError, match="made for its teacher's prompts"):
        METHODS["cdl_prompt"](student, tiny_model("l2p", backbone=student_backbone))  # of another embed_dim
    with pytest.raises(ValueError, match="query network"):
        METHODS["cdl_prompt"](student, tiny_model("l2p", backbone=tiny_backbone(embed_dim=48, num_heads=3)))


def test_cdl_prompt_refuses_a_teacher_that_takes_other_prompts_of_its_pool():
    tiny_pair("l2p", "cdl_prompt")
    with pytest.raises(ValueError, match="same prompt_method, sizes, top_k, blocks"):
        tiny_pair("l2p", "cdl_prompt", top_k=1)


@torch.no_grad()
def test_cdl_prompt_carries_its_teachers_prompts(tmp_path):
    teacher, method = tiny_pair("coda_prompt", "cdl_prompt")
    student, x = method.model, images()
    teacher.prompt_pool.prompts.normal_()
    assert not torch.equal(student.kd_branch.teacher_pool.prompts, teacher.prompt_pool.prompts)
    method.train()(x, labels_for(student))
    assert torch.equal(student.kd_branch.teacher_pool.prompts, teacher.prompt_pool.prompts)
    logits = student.eval()(x).logits
    teacher.prompt_pool.prompts.normal_()
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    assert torch.equal(loaded(x).logits, logits)
    assert loaded.query_backbone is None
    assert not any("teacher" in name and "teacher_pool" not in name for name in loaded.state_dict())


def same_pair(name: str):
    """A student equal to its teacher, its training-only projections made identities."""
    teacher = tiny_model("coda_prompt")
    method = METHODS[name](copy.deepcopy(teacher), teacher)
    for projection in [method.projection] if name == "fitnets" else [f.linear_out for f in method.fusions]:
        nn.init.eye_(projection.weight)
        nn.init.zeros_(projection.bias)
    return method


@torch.no_grad()
def test_fitnets_of_equal_models_is_zero():
    method, x = same_pair("fitnets"), images()
    assert method.eval()(x, labels_for(method.model))["feature_loss"] == 0
    method.projection.bias.add_(2.0)
    assert method(x, labels_for(method.model))["feature_loss"].item() == pytest.approx(0.1 * 4, rel=1e-5)


@torch.no_grad()
def test_reviewkd_of_equal_models_is_zero():
    method, x = same_pair("reviewkd"), images()
    for fusion in method.fusions:  # without norms, and with gates 1 for the block and 0 for the deeper ones
        fusion.norm_in = nn.Identity()
        nn.init.eye_(fusion.linear_in.weight)
        nn.init.zeros_(fusion.linear_in.bias)
        if fusion.gate is not None:
            fusion.norm_fused = nn.Identity()
            fusion.norm_gate = Gates()
    assert method.eval()(x, labels_for(method.model))["feature_loss"].item() == pytest.approx(0, abs=1e-10)
    for fusion in method.fusions:
        fusion.linear_out.bias.add_(3.0)
    assert method(x, labels_for(method.model))["feature_loss"].item() == pytest.approx(0.2 * 9, rel=1e-5)


class Gates(nn.Module):
    """1 for the first map that it is asked for, 0 for the second."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.full_like(x, self.calls % 2)


@torch.no_grad()
def test_fusion_by_hand():
    """Width 1 x 2 so that LayerNorm gives +-1: x = norm_in = (1, -1), gates (1, -1), sum (x + y) * gate."""
    fusion = Fusion(2, 3, deepest=False)
    for linear in (fusion.linear_in, fusion.gate):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    nn.init.ones_(fusion.linear_out.weight)
    nn.init.zeros_(fusion.linear_out.bias)
    nn.init.constant_(fusion.norm_gate.bias, 1.0)  # gates (2, 0)
    tokens, deeper = torch.tensor([[[10.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]])
    fused, out = fusion(tokens, deeper)
    # x = (1, -1); gate of x = (2, 0); gate of y = (0, 2); x * gx + y * gy = (2 + 0, 0 + 8) -> normed (-1, 1)
    assert torch.allclose(fused, torch.tensor([[[-1.0, 1.0]]]), atol=1e-3)
    assert torch.allclose(out, torch.zeros(1, 1, 3), atol=1e-3)
    assert Fusion(2, 3, deepest=True).gate is None


def test_frozen_features_by_hand():
    """1 - cos of the projected token and the frozen backbone's, whatever the teacher learned; labels move nothing."""
    teacher, method = tiny_pair("lora", "features", tasks=2)
    student, x, labels = method.model.train(), images(), labels_for(method.model)
    for update in (module for module in student.modules() if isinstance(module, LowRankUpdate)):
        nn.init.normal_(update.up, std=0.1)
    output = method(x, labels)
    token = student.network.norm(student(x, output_hidden_states=True).hidden_states[-1][:, 0])
    frozen = teacher.network.features(x)
    cosine = F.cosine_similarity(method.projection(token), frozen, dim=1)
    assert torch.allclose(output["feature_loss"], (1 - cosine).mean(), atol=1e-6)
    for module in teacher.prompt_pool.modules():
        if isinstance(module, LowRankUpdate):
            nn.init.normal_(module.merged_up)
    assert torch.equal(method(x, labels)["feature_loss"], output["feature_loss"])
    moved = [parameter for parameter in student.prompt_pool.parameters() if parameter.requires_grad]
    of_labels = torch.autograd.grad(output["cross_entropy"], moved, allow_unused=True, retain_graph=True)
    assert not any(gradient is not None and gradient.any() for gradient in of_labels)
    assert all(gradient.any() for gradient in torch.autograd.grad(output["feature_loss"], moved))


def test_frozen_features_need_something_to_move():
    with pytest.raises(ValueError, match="prompt_method='none' trains nothing that could: take prompt_method='lora'"):
        METHODS["features"](tiny_model("none"), tiny_model("none"))
    with pytest.raises(ValueError, match="needs a student with kd_branch='none', this one has 'kdp'"):
        METHODS["features"](tiny_model("lora", "kdp"), tiny_model("none"))


@pytest.mark.parametrize("name", ["fitnets", "reviewkd", "features"])
@pytest.mark.parametrize(
    "teacher",
    [
        {"depth": 1},
        {"depth": 4, "num_heads": 4},
        {"reg_tokens": 3},
        {"patch_size": 8},
        {"img_size": 64},
        TEACHER,
    ],
)
def test_feature_methods_between_transformers_of_other_sizes(name, teacher):
    student_backbone = tiny_backbone()
    student = tiny_model("apt", backbone=student_backbone)
    method = METHODS[name](student, tiny_model("apt", backbone=tiny_backbone(**teacher)))
    output = method.train()(images(), labels_for(student))
    output["loss"].backward()
    assert output["feature_loss"] > 0
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    if name == "reviewkd":
        assert len(method.fusions) == min(2, teacher.get("depth", 2))


def test_tokens_are_resampled_where_they_lie():
    grid = TokenGrid(before=3, height=2, width=4, has_class_token=True)
    tokens = torch.arange(3 + 8.0)[None, :, None]  # CLS 0, registers 1 and 2, patches 3..10
    assert grid.resample(tokens, TokenGrid(1, 2, 4, True)).flatten().tolist() == [0, 3, 4, 5, 6, 7, 8, 9, 10]
    halved = grid.resample(tokens, TokenGrid(1, 1, 1, True)).flatten()
    assert halved.tolist() == pytest.approx([0, 6.5])
    assert grid.resample(tokens, TokenGrid(1, 4, 8, True)).shape == (1, 33, 1)


def test_the_teacher_takes_its_own_query_where_they_differ():
    teacher, student = tiny_model("l2p", backbone=tiny_backbone(**TEACHER)), tiny_model("l2p")
    method, x = METHODS["kd"](student, teacher), images()
    assert not method.shares_query
    assert torch.isfinite(method.train()(x, labels_for(student))["loss"])
    _, sharing = tiny_pair("l2p", "kd")
    assert sharing.shares_query
