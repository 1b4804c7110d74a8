"""A checkpoint with its code is loaded where this package is not installed."""

import os
import subprocess
import sys

import pytest
import torch
from tiny_models import images, tiny_model

from cdl_hf.models import PromptViTConfig, PromptViTForImageClassification

LOAD = """
import sys, torch
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "cdl_hf" not in sys.modules and type(model).__module__.startswith("transformers_modules")
assert torch.equal(model(torch.load("images.pt")).logits, torch.load("logits.pt"))
"""


@pytest.mark.slow
@torch.no_grad()
def test_model_code_travels_with_the_checkpoint(tmp_path, monkeypatch):
    for cls, auto in (
        (PromptViTConfig, "AutoConfig"),
        (PromptViTForImageClassification, "AutoModelForImageClassification"),
    ):
        monkeypatch.setattr(cls, "_auto_class", auto)
    model, x = tiny_model("coda_prompt", "cdl_prompt", tasks=2).eval(), images()
    model.save_pretrained(tmp_path / "checkpoint")
    torch.save(x, tmp_path / "images.pt")
    torch.save(model(x).logits, tmp_path / "logits.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    subprocess.run([sys.executable, "-P", "-c", LOAD, "checkpoint"], cwd=tmp_path, env=environment, check=True)
