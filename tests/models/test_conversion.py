import re
import sys

import pytest
import torch
from tiny_models import CLASSES_PER_TASK, PROMPTS, TEACHER, images, tiny_backbone, tiny_model
from torch import Tensor
from transformers import AutoImageProcessor

from cdl_hf.models import PromptViTForImageClassification, backbones, conversion
from cdl_hf.models.conversion import convert
from cdl_hf.models.kd_branches import BRANCHES

THEIR_PROMPTS = [name for name in PROMPTS if name != "lora"]  # the authors have no weight updates


def their_state_dict(model: PromptViTForImageClassification) -> dict[str, Tensor]:
    """Our model in the authors' names, the other way round than `convert`."""
    theirs = {}
    pool = model.prompt_pool
    names = {"prompts": "e_p", "keys": "e_k", "attention": "e_a", "g_prompts": "g_p"}
    for name, tensor in model.state_dict().items():
        part, _, leaf = name.partition(".")
        if part in ("backbone", "query_backbone"):
            theirs[f"{'feat' if part == 'backbone' else 's_feat'}.{leaf}"] = tensor
        elif part in ("head", "kd_head"):
            prefix = {"head": "", "kd_head": "kd_"}[part]
            norm = "clf_norm" if part == "head" else "kd_cls_norm"
            theirs[f"{norm}.{leaf[5:]}" if leaf.startswith("norm.") else f"{prefix}last.{leaf}"] = tensor
        elif name == "prompt_pool.merged":
            theirs["prompt.global_merged_prompt"] = tensor.flatten(0, 1)
        elif part == "prompt_pool" and model.config.prompt_method == "apt":
            theirs["prompt.prompt_tokens"] = tensor.flatten(0, 1)
        elif part == "prompt_pool":
            blocks = pool.g_blocks if leaf == "g_prompts" else pool.blocks
            theirs |= {f"prompt.{names[leaf]}_{block}": tensor[i] for i, block in enumerate(blocks)}
        elif name == "kd_branch.token" and model.config.kd_branch == "kdp":
            theirs["kd_prompt.kd_p_0"] = tensor
        elif name == "kd_branch.token":
            theirs["feat.add_T_token"] = tensor[None]
        elif name == "kd_branch.prompts":
            theirs |= {f"kd_prompt.kd_p_{i + 1}": row for i, row in enumerate(tensor)}
        elif ".teacher_pool." not in name:
            leaf = {"keys": "key", "values": "value"}.get(leaf, leaf)
            theirs |= {f"prompt_map.{block}.{leaf}": tensor[i] for i, block in enumerate(model.kd_branch.blocks)}
    return {name: tensor.clone() for name, tensor in theirs.items()}


@pytest.fixture(autouse=True)
def tiny_architectures(monkeypatch):
    """Architectures of usual size, made tiny."""
    tiny = {"vit_tiny_patch16_32": {}, "vit_small_patch8_48": TEACHER}
    monkeypatch.setattr(conversion, "SIZES", {32: "tiny", 48: "small"})
    create = backbones.create_backbone
    monkeypatch.setattr(
        "cdl_hf.models.modeling_prompt_vit.create_backbone",
        lambda name, **args: tiny_backbone(**tiny[name]).module if name in tiny else create(name, **args),
    )


def teacher_model(prompt_method: str) -> PromptViTForImageClassification:
    return PromptViTForImageClassification.from_backbone(
        tiny_backbone(**TEACHER),
        tiny_backbone(),
        classes_per_task=CLASSES_PER_TASK,
        prompt_method=prompt_method,
        tasks_seen=2,
        **PROMPTS[prompt_method],
    )


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("prompt_method", "kd_branch"),
    [(p, b) for p in THEIR_PROMPTS for b in ("none", *BRANCHES, "teacher") if (p, b) != ("apt", "cdl_prompt")],
)
@torch.no_grad()
def test_logits_survive_the_conversion(prompt_method, kd_branch, prefix, tmp_path):
    teacher = teacher_model(prompt_method)
    model = teacher if kd_branch == "teacher" else tiny_model(prompt_method, kd_branch, tasks=2)
    if kd_branch == "cdl_prompt":
        model.kd_branch.teacher_pool.load_state_dict(teacher.prompt_pool.state_dict())
    for tensor in (*model.prompt_pool.state_dict().values(), *(p for p in model.parameters() if p.requires_grad)):
        tensor.normal_(std=0.5)
    state = {prefix + name: tensor for name, tensor in their_state_dict(model).items()}
    state |= {prefix + "project_t_s.proj.weight": torch.zeros(48, 32), prefix + "kd_prompt.kd_p_x": torch.zeros(1)}
    converted, unused = convert(
        state,
        role="teacher" if kd_branch == "teacher" else "student",
        classes_per_task=CLASSES_PER_TASK,
        tasks_seen=2,
        teacher_state_dict=their_state_dict(teacher),
        top_k=2,
    )
    assert unused[0] == "kd_prompt.kd_p_x" and "project_t_s.proj.weight" in unused
    x = images(size=48)
    expected = model.eval()(x).logits
    assert torch.equal(converted(x).logits, expected)
    converted.save_pretrained(tmp_path)
    assert torch.equal(PromptViTForImageClassification.from_pretrained(tmp_path)(x).logits, expected)


def test_a_teacher_has_no_kd_branch_even_with_its_tensors():
    state = their_state_dict(tiny_model("l2p", "kdp"))
    model, unused = convert(state, role="teacher", classes_per_task=CLASSES_PER_TASK)
    assert model.config.kd_branch == "none" and "kd_prompt.kd_p_1" in unused and "kd_last.bias" in unused
    assert model.config.tasks_seen == 3  # all by default


def test_kd_prompts_in_the_first_block_alone():
    model = tiny_model("l2p", "kdp", kd_prompt_blocks=1)
    converted, _ = convert(their_state_dict(model), role="student", classes_per_task=CLASSES_PER_TASK)
    assert converted.config.kd_prompt_blocks == 1 and converted.kd_branch.prompts is None


def test_own_query_network_is_not_kept_twice():
    model = tiny_model("l2p")
    state = their_state_dict(model)
    state |= {f"s_{name}": tensor for name, tensor in state.items() if name.startswith("feat.")}
    converted, _ = convert(state, role="student", classes_per_task=CLASSES_PER_TASK)
    assert converted.query_backbone is None


@pytest.mark.parametrize(
    ("change", "arguments", "reason"),
    [
        (lambda s: s.pop("last.bias"), {}, "has no last.bias"),
        (lambda s: s.pop("prompt.e_k_1"), {}, "prompt_pool.keys must be"),
        (lambda s: s.pop("last.weight"), {}, "not a state dict of the authors' models"),
        (lambda s: s.update({"last.bias": torch.zeros(4)}), {}, r"head.bias must be \(9,\), but theirs is \(4,\)"),
        (lambda s: s, {"classes_per_task": [3, 3]}, "adds up to 6, but the head has 9 rows"),
        (lambda s: s, {"role": "pupil"}, "'teacher' or 'student'"),
        (lambda s: s, {"class_names": ["one", "two"]}, "2 class_names, but the head has 9 rows"),
        (lambda s: s, {"tasks_seen": 4}, "tasks_seen is 4"),
        (lambda s: s.update({"prompt_map.0.key": torch.zeros(2, 48)}), {}, "pass the state dict of the teacher"),
        (lambda s: s.update({"feat.pos_embed": torch.zeros(1, 5, 40)}), {}, "embed_dim 40"),
        (lambda s: [s.pop(n) for n in list(s) if "e_p_" in n], {}, re.escape("has no prompt.e_p_*")),
    ],
)
def test_state_dicts_that_do_not_fit(change, arguments, reason):
    state = their_state_dict(tiny_model("coda_prompt"))
    change(state)
    with pytest.raises(ValueError, match=reason):
        convert(state, **{"role": "student", "classes_per_task": CLASSES_PER_TASK, **arguments})


@torch.no_grad()
def test_command_line(tmp_path, monkeypatch, capsys):
    model = tiny_model("apt", "kdp", tasks=2).eval()
    torch.save(their_state_dict(model), tmp_path / "student.pth")
    (tmp_path / "names.txt").write_text("\n".join("abcdefghi"))
    arguments = f"{tmp_path}/student.pth {tmp_path}/out --role student --classes_per_task 3 2 4 --tasks_seen 2"
    monkeypatch.setattr(sys, "argv", ["conversion", *arguments.split(), "--class_names", f"{tmp_path}/names.txt"])
    conversion.main()
    assert "apt, KD branch kdp" in capsys.readouterr().out
    loaded, info = PromptViTForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert list(loaded.config.id2label.values()) == list("abcde")
    x = images()
    assert torch.equal(loaded(x).logits, model(x).logits)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert not processor.do_normalize and dict(processor.crop_size) == {"height": 32, "width": 32}

    monkeypatch.setattr(sys, "argv", ["conversion", *arguments.replace("3 2 4", "3").split()])
    with pytest.raises(SystemExit):
        conversion.main()
    assert "adds up to 3, but the head has 9 rows" in capsys.readouterr().err
