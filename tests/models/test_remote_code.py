"""Every checkpoint carries its code, and is loaded where this package is not installed."""

import os
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from tiny_models import STUDENT, images, tiny_model
from transformers import CLIPImageProcessor

from cdl_hf.models import load_backbone

LOAD = """
import sys
sys.modules["cdl_hf"] = None  # importing it is an error, be it installed or not
import torch
from transformers import AutoModelForImageClassification, pipeline
for checkpoint in sys.argv[1:]:
    model = AutoModelForImageClassification.from_pretrained(checkpoint, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules")
    assert torch.equal(model(torch.load("images.pt")).logits, torch.load("logits.pt"))
    answers = pipeline("image-classification", model=checkpoint, trust_remote_code=True, top_k=2)("image.png")
    assert [answer["label"] for answer in answers] == torch.load("labels.pt")
model.save_pretrained("again")  # the code travels on
AutoModelForImageClassification.from_pretrained("again", trust_remote_code=True)
"""


@pytest.mark.slow
@torch.no_grad()
def test_model_code_travels_with_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vit = timm.create_model("vit_tiny_patch16_224", **STUDENT, num_classes=0)
    timm.models.save_for_hf(vit, tmp_path / "mine", model_args={**STUDENT, "num_classes": 0}, safe_serialization=True)
    model = tiny_model("coda_prompt", "cdl_prompt", tasks=2, backbone=load_backbone("mine")).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    for name, save_backbone in (("whole", True), ("prompts", False)):
        model.save_pretrained(name, save_backbone=save_backbone)
        processor.save_pretrained(name)
    x, image = images(), Image.effect_noise((40, 40), 90).convert("RGB")
    image.save("image.png")
    best = model(**processor(image, return_tensors="pt")).logits[0].topk(2).indices.tolist()
    torch.save(x, "images.pt")
    torch.save(model(x).logits, "logits.pt")
    torch.save([model.config.id2label[column] for column in best], "labels.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    subprocess.run([sys.executable, "-P", "-c", LOAD, "whole", "prompts"], env=environment, check=True)
