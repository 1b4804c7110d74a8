import copy

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import CLASSES_PER_TASK, PROMPTS, TEACHER, images, labels_for, start_task, tiny_backbone, tiny_model
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    CLIPImageProcessor,
    Trainer,
    TrainingArguments,
    pipeline,
)

from cdl_hf.models import PromptViTConfig, PromptViTForImageClassification
from cdl_hf.models.configuration_prompt_vit import LORA_TARGETS

every_prompt_method = pytest.mark.parametrize("prompt_method", PROMPTS)


@every_prompt_method
def test_only_prompts_and_head_are_trained(prompt_method):
    model = tiny_model(prompt_method)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    pools = {"l2p": "prompts keys", "dualprompt": "prompts keys g_prompts", "coda_prompt": "prompts keys attention"}
    updates = [
        f"updates.{b}.{layer}.{factor}" for b in range(2) for layer in LORA_TARGETS for factor in ("down", "up")
    ]
    pools["lora"] = " ".join(updates)
    expected = {f"prompt_pool.{name}" for name in pools.get(prompt_method, "prompts").split()}
    assert trained == expected | {"head.weight", "head.bias"}
    model.train()
    assert not model.backbone.training and not any(p.requires_grad for p in model.backbone.parameters())


@every_prompt_method
@torch.no_grad()
def test_the_logits_are_those_of_the_seen_classes(prompt_method):
    model, x = tiny_model(prompt_method, tasks=0).eval(), images()
    with pytest.raises(ValueError, match="start_task"):
        model(x)
    for task in range(3):
        start_task(model)
        seen = sum(CLASSES_PER_TASK[: task + 1])
        assert model.config.seen_classes == seen
        assert model.config.current_classes == slice(seen - CLASSES_PER_TASK[task], seen)
        assert model(x).logits.shape == (4, seen)
        assert list(model.config.id2label) == list(range(seen)) == list(model.config.label2id.values())
        assert model.config.id2label[seen - 1] == f"class {task}.{CLASSES_PER_TASK[task] - 1}"
    with pytest.raises(ValueError, match="all 3 tasks"):
        model.start_task(["one", "two"])


def test_wrong_number_of_class_names():
    with pytest.raises(ValueError, match="task 1 has 2 classes, but got 1 names"):
        tiny_model("l2p").start_task(["one"])


def test_the_loss_masks_earlier_classes_in_training_only():
    model, x = tiny_model("apt", tasks=2), images()
    labels = labels_for(model)
    with torch.no_grad():
        trained, predicted = model.train()(x, labels=labels), model.eval()(x, labels=labels)
    assert torch.allclose(trained.loss, F.cross_entropy(trained.logits[:, 3:5], labels - 3))
    assert torch.allclose(predicted.loss, F.cross_entropy(predicted.logits, labels))


@torch.no_grad()
def test_a_given_query_is_used():
    model, x = tiny_model("l2p", tasks=1).eval(), images()
    model.prompt_pool.prompts.normal_(std=5)
    query = model.query(x)
    assert query.shape == (4, 32)
    assert torch.equal(model(x, query=query).logits, model(x).logits)
    assert not torch.allclose(model(x, query=-query).logits, model(x).logits)
    assert tiny_model("apt").query(x) is None


@torch.no_grad()
def test_query_networks():
    student_backbone = tiny_backbone()
    student = tiny_model("l2p", backbone=student_backbone)
    config = {"classes_per_task": CLASSES_PER_TASK, "prompt_method": "l2p", **PROMPTS["l2p"]}
    teacher_backbone = tiny_backbone(**TEACHER)
    shared = PromptViTForImageClassification.from_backbone(teacher_backbone, student_backbone, **config)
    own = PromptViTForImageClassification.from_backbone(teacher_backbone, **config)
    assert student.shares_query_with(shared) and shared.shares_query_with(student)
    assert not student.shares_query_with(own)
    x = images()
    assert torch.equal(shared.query(x), student.query(x))
    assert own.query(x).shape == (4, 48)


@torch.no_grad()
@pytest.mark.parametrize("kd_branch", ["none", "kdp"])
def test_auto_classes_and_pipeline(kd_branch, tmp_path):
    model = tiny_model("coda_prompt", kd_branch, tasks=2).eval()
    model.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32, do_normalize=False).save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PromptViTConfig)
    x = images()
    assert torch.equal(AutoModelForImageClassification.from_pretrained(tmp_path)(x).logits, model(x).logits)

    pixels = (x[0] * 255).byte().permute(1, 2, 0).numpy()
    results = pipeline("image-classification", model=str(tmp_path), top_k=10)(Image.fromarray(pixels))
    assert sorted(r["label"] for r in results) == sorted(model.config.id2label.values())
    expected = model(torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None]).logits[0].softmax(0)
    assert [r["score"] for r in results] == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt_method": "vpt"}, "choose one of l2p, dualprompt, coda_prompt, apt"),
        ({"prompt_length": 5}, "prompt_length must be even"),
        ({"top_k": 8}, r"top_k must be between 1 and pool_size \(7\)"),
        ({"classes_per_task": []}, "at least one task"),
        ({"classes_per_task": [0, 0]}, "at least one task of one class"),
        ({"tasks_seen": 4}, "tasks_seen is 4, but the stream has 3 tasks"),
        ({"prompt_method": "dualprompt", "g_prompt_length": 3}, "g_prompt_length must be even"),
        ({"ema_decay": 1.5}, "ema_decay must be between 0 and 1"),
        ({"ortho_weight": -1.0}, "ortho_weight must not be negative"),
        ({"kd_branch": "token"}, "choose one of none, deit, kdp, cdl_prompt"),
        ({"kd_alpha": 2.0}, "kd_alpha must be between 0 and 1"),
        ({"kd_branch": "kdp", "kd_prompt_length": 3}, "kd_prompt_length must be even"),
        ({"kd_branch": "cdl_prompt", "teacher_width": None}, "needs teacher_width"),
        ({"top_k": "five"}, "top_k"),
    ],
)
def test_configurations_that_make_no_sense(fields, reason):
    fields = {"classes_per_task": CLASSES_PER_TASK, "prompt_method": "l2p", **PROMPTS["l2p"], **fields}
    with pytest.raises(ValueError, match=reason):
        PromptViTForImageClassification.from_backbone(tiny_backbone(), **fields)


def test_the_papers_settings_are_the_defaults():
    config = PromptViTConfig(prompt_method="coda_prompt")
    assert (config.pool_size, config.prompt_length, config.prompt_blocks) == (100, 8, [0, 1, 2, 3, 4])
    config = PromptViTConfig(prompt_method="dualprompt")
    assert (config.prompt_length, config.prompt_blocks, config.g_prompt_length) == (20, [2, 3, 4], 6)
    config = PromptViTConfig(prompt_method="l2p")
    assert (config.pool_size, config.prompt_length, config.prompt_blocks, config.top_k) == (30, 20, [0], 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_weights(dtype, tmp_path):
    model, x = tiny_model("coda_prompt", "kdp"), images()
    model.save_pretrained(tmp_path)
    half = PromptViTForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    logits = half(x.to(dtype)).logits
    assert half.backbone.cls_token.dtype == dtype and logits.dtype == half.head.weight.dtype == torch.float32
    assert torch.allclose(logits, model.eval()(x).logits, atol=0.05)


@pytest.mark.parametrize("prompt_method", ["coda_prompt", "apt"])
@pytest.mark.parametrize("kd_branch", ["none", "deit", "kdp", "cdl_prompt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_heads_compute_in_float32_always(prompt_method, kd_branch, dtype):
    if (prompt_method, kd_branch) == ("apt", "cdl_prompt"):
        return
    model = tiny_model(prompt_method, kd_branch, tasks=2)
    features = torch.randn(20, 32)
    for head in (model.head, model.kd_head or model.head):
        expected = head(features, 5)
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(head(features, 5), expected)
        assert copy.deepcopy(head).to(dtype)(features.to(dtype), 5).dtype == torch.float32
    for mode in (True, False):
        with torch.autocast("cpu", dtype=dtype):
            output = model.train(mode)(images(), labels=labels_for(model))
        assert all(x.dtype == torch.float32 for x in (output.loss, output.logits, output.head_logits))
        assert output.kd_logits is None or output.kd_logits.dtype == torch.float32


@torch.no_grad()
def test_more_classes_than_half_precision_can_count():
    """bfloat16 counts to 256, float16 to 2,048 and 16 bits to 65,536."""
    classes = 70_000
    model = PromptViTForImageClassification.from_backbone(
        tiny_backbone(), classes_per_task=[classes], prompt_method="none", head="ncm"
    )
    model.start_task([str(label) for label in range(classes)])
    last = torch.arange(classes - 300, classes)
    features = torch.randn(300, 32)
    model.fit_classifier(features[:, None], last)
    model.eval().head.bias[last[7]] = 1e6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.classifier(features, classes).argmax(1), last)
        assert model(images(), labels=last[7].expand(4)).head_logits.argmax(1).eq(last[7]).all()


@pytest.mark.parametrize("kd_branch", ["none", "kdp"])
@pytest.mark.parametrize("head", ["linear", "ncm"])
def test_a_saved_model_is_trained_by_the_trainer_of_transformers(kd_branch, head, tmp_path):
    """On any of the classes it has seen, with the usual loss over what it predicts with."""
    tiny_model("coda_prompt", kd_branch, tasks=2, head=head).save_pretrained(tmp_path / "saved")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    before = model.head.weight.clone()
    samples = [{"pixel_values": pixels, "labels": column % 5} for column, pixels in enumerate(images(10))]
    args = TrainingArguments(tmp_path / "out", max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, args, train_dataset=samples, eval_dataset=samples)
    trainer.train()
    assert not torch.equal(model.head.weight, before)
    found = trainer.predict(samples)
    assert found.predictions.shape == (10, 5) and np.isfinite(found.metrics["test_loss"])


def test_labels_outside_a_task_are_of_all_classes_seen():
    model, x = tiny_model("l2p", "kdp", tasks=2), images(5)
    model.end_task()
    labels = torch.tensor([0, 1, 2, 4, -100])
    output = model.train()(x, labels=labels)
    logits = torch.lerp(output.logits, output.kd_logits, 0.5)
    assert torch.allclose(output.loss, F.cross_entropy(logits, labels) + output.prompt_loss)
    for label, mode in ((5, True), (5, False), (-1, True), (-1, False)):
        with pytest.raises(ValueError, match=rf"class ids from 0 to 4, the classes seen by the model, got {label}"):
            model.train(mode)(x, labels=torch.full((5,), label))
    with pytest.raises(ValueError, match="must be integers"):
        model(x, labels=torch.rand(5))
    assert model(x, labels=labels.to(torch.int8)).loss == model(x, labels=labels).loss


def test_labels_in_a_task_are_of_its_classes():
    model = tiny_model("l2p", tasks=2).train()
    assert torch.isfinite(model(images(2), labels=torch.tensor([3, 4])).loss)
    with pytest.raises(ValueError, match="class ids from 3 to 4, the classes of the current task, got 1"):
        model(images(2), labels=torch.tensor([3, 1]))
