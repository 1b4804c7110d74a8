"""The methods of cdl_hf/README.md in a file of one's own train, save and load as the package's do."""

import importlib

import pytest
import torch
from pages import block
from tiny_models import images, tiny_backbone
from transformers import AutoModelForImageClassification

from cdl_hf import ContinualDistillationTrainer, PromptViTForImageClassification, TaskStream, load_image_dataset
from cdl_hf.catalogue import PROMPT_METHODS
from cdl_hf.data import image_processor_for
from cdl_hf.models.configuration_prompt_vit import PROMPT_DEFAULTS
from cdl_hf.models.prompt_pools import POOLS
from cdl_hf.training import CDLConfig


@pytest.fixture
def my_methods(tmp_path, monkeypatch):
    for registry in (POOLS, PROMPT_DEFAULTS, PROMPT_METHODS):
        monkeypatch.setitem(registry, "shared", None)  # to be gone afterwards
    (tmp_path / "my_methods.py").write_text(block("cdl_hf/README.md", "my_methods.py"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(importlib.import_module("sys").modules, "my_methods", raising=False)
    return importlib.import_module("my_methods")


def test_own_methods(my_methods, drawings, tmp_path, monkeypatch):
    stream = TaskStream(load_image_dataset(str(drawings)), num_tasks=3)
    prompts = {"classes_per_task": stream.classes_per_task, "prompt_method": "shared"}
    student, teacher = (PromptViTForImageClassification.from_backbone(tiny_backbone(), **prompts) for _ in range(2))
    trainer = ContinualDistillationTrainer(
        stream,
        my_methods.LogitCopy(student, teacher),
        image_processor_for({"input_size": (3, 32, 32)}),
        CDLConfig(num_train_epochs=1, batch_size=8, output_dir=str(tmp_path / "run")),
    )
    before = student.prompt_pool.prompts.clone()
    trainer.train()
    assert not torch.equal(student.prompt_pool.prompts, before)
    assert "soft_loss" in (tmp_path / "run" / "metrics.jsonl").read_text()
    card = (tmp_path / "run" / "student" / "README.md").read_text(encoding="utf-8")
    assert "steered by SharedPrompt prompts" in card and "with LogitCopy." in card

    x = images()
    with torch.no_grad():
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "student")
        assert torch.equal(loaded(x).logits, student(x).logits)
    for registry in (POOLS, PROMPT_DEFAULTS):
        monkeypatch.delitem(registry, "shared")
    with pytest.raises(ValueError, match="import the file that adds it first"):
        PromptViTForImageClassification.from_backbone(tiny_backbone(), **prompts)
