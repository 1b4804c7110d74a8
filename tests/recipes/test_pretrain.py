import json
import sys
from pathlib import Path

import numpy as np
import pretrain
import pytest
import timm
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from probe import probe
from safetensors.torch import load_file

from cdl_hf.models.backbones import load_backbone

ROOT = Path(__file__).resolve().parents[2]
TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1}
BACKBONES = [ROOT / "cdl_hf" / "assets" / "backbones" / f"vit_{size}_quickdraw" for size in ("micro", "nano")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes of bright squares, each in its own corner."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    splits = {}
    for split, count in {"train": 24, "test": 6}.items():
        pixels = rng.integers(0, 60, (count, 16, 16)).astype(np.uint8)
        for index, image in enumerate(pixels):
            row, column = divmod(index % 3, 2)
            image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
        rows = {"image": [PILImage.fromarray(image) for image in pixels], "label": [i % 3 for i in range(count)]}
        splits[split] = Dataset.from_dict(rows, features=features)
    DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


@pytest.fixture
def run(data, monkeypatch):
    def run(output, *more, model="vit_tiny_patch16_224", model_args=TINY):
        arguments = ["--dataset", data, "--model", model, "--model_args", json.dumps(model_args)]
        arguments += ["--output_dir", str(output), "--num_train_epochs", "2", "--batch_size", "8", "--mixing", "0.5"]
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *arguments, *more])
        pretrain.main()

    return run


def test_the_saved_backbone_loads_and_computes_as_the_network(run, tmp_path):
    run(tmp_path, "--mean", "0", "--std", "0.3")
    network = timm.create_model(f"local-dir:{tmp_path / 'network'}", pretrained=True).eval()
    backbone = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True).eval()
    assert (network.num_classes, backbone.num_classes) == (3, 0)
    assert backbone.pretrained_cfg["input_size"] == (3, 16, 16) and backbone.pretrained_cfg["crop_pct"] == 1.0
    assert backbone.pretrained_cfg["mean"] == [0.0] * 3 and backbone.pretrained_cfg["std"] == [0.3] * 3
    images = torch.randn(2, 3, 16, 16)
    features = network.forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone(images), features, atol=5e-3, rtol=5e-3)  # half precision
    torch.testing.assert_close(load_backbone(tmp_path / "backbone").module(images), backbone(images))


def test_an_interrupted_run_continues_exactly(run, tmp_path, monkeypatch):
    run(tmp_path / "whole")
    augment, calls = pretrain.augment, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 5:  # three steps an epoch
            raise KeyboardInterrupt
        return augment(*args)

    monkeypatch.setattr(pretrain, "augment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    monkeypatch.setattr(pretrain, "augment", augment)
    run(tmp_path / "parts", "--resume_from_checkpoint")
    whole, parts = (load_file(tmp_path / name / "network" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_run_goes_on_with_what_it_was_made_of_alone(run, data, tmp_path, monkeypatch, capsys):
    run(tmp_path / "run")
    (tmp_path / "moved").symlink_to(data)
    run(tmp_path / "run", "--resume_from_checkpoint", "--dataset", str(tmp_path / "moved"))
    other = DatasetDict.load_from_disk(data)
    other["train"] = other["train"].select(range(23, -1, -1))
    other.save_to_disk(str(tmp_path / "other"))
    for more, changed in (
        (["--learning_rate", "0.1"], "learning_rate was 0.001, is now 0.1"),
        (["--seed", "3"], "seed was 0, is now 3"),
        (["--dataset", str(tmp_path / "other")], "images was"),
    ):
        with pytest.raises(SystemExit):
            run(tmp_path / "run", "--resume_from_checkpoint", *more)
        assert changed in capsys.readouterr().err


@pytest.mark.parametrize("checksum", [True, False])  # runs of earlier versions have none
def test_a_damaged_checkpoint_is_refused(run, tmp_path, capsys, checksum):
    run(tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    if not checksum:
        (tmp_path / "checkpoint.pt.sha256").unlink()
    with pytest.raises(SystemExit):
        run(tmp_path, "--resume_from_checkpoint")
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "checkpoint.pt is damaged" in told and "another output_dir" in told


def test_a_network_guides_another_and_the_result_is_probed(run, data, tmp_path):
    run(tmp_path / "guide", "--image_size", "16", model="resnet10t", model_args={"stem_width": 8})
    run(tmp_path / "guided", "--distill_from", str(tmp_path / "guide" / "network"), "--probe", data)
    results = json.loads((tmp_path / "guided" / "results.json").read_text())
    assert {"test_accuracy", "linear_probe", "nearest_class_mean"} <= results.keys()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset", "nowhere/at/all"], "nowhere/at/all"),
        (["--model", "vit_of_nobody"], "vit_of_nobody"),
        (["--model_args", "depth=6"], "model_args must be a JSON object"),
        (["--model_args", '{"depht": 6}'], "depht"),
        (["--model_args", '{"in_chans": 1}'], "images of 1 channels, but images here have 3"),
        (["--model_args", '{"img_size": [16, 32]}'], "16 x 32 pixels, but images here are square"),
        (["--model", "vit_base_patch16_siglip_224", "--model_args", "{}"], "no class token"),
        (["--batch_size", "7"], "must be even"),
        (["--batch_size", "64"], "has only 24 images"),
        (["--image_size", "32"], "set img_size in model_args"),
        (["--distill_from", "nowhere"], "nowhere is not a saved network"),
        (["--resume_from_checkpoint"], "no checkpoint.pt"),
    ],
)
def test_mistakes_are_told_in_one_line(run, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        run(tmp_path, *more)
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1] and "error" in told[-1]


def test_an_existing_output_is_refused(run, tmp_path, capsys):
    (tmp_path / "precious").touch()
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert "is not empty" in capsys.readouterr().err


def test_augmentation():
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(pretrain.augment(images, 0.0), images, atol=1e-4, rtol=0)
    torch.manual_seed(0)
    changed = pretrain.augment(images, 1.0)
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    assert not torch.allclose(changed, images, atol=0.1)


class Corners(torch.nn.Linear):
    """Stands for a backbone; its features tell the classes apart."""

    pretrained_cfg = {"input_size": (3, 16, 16), "crop_pct": 1.0}

    def forward_features(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2)

    def forward_head(self, features, pre_logits):
        return features.flatten(1)


def test_probe_of_separable_classes(data):
    assert probe(Corners(1, 1), data) == {"linear_probe": 100.0, "nearest_class_mean": 100.0}


def test_shipped_backbones():
    assert sum(file.stat().st_size for folder in BACKBONES for file in folder.iterdir()) <= 8e6
    teacher, student = (load_backbone(folder) for folder in BACKBONES)
    for backbone in (teacher, student):
        assert len(backbone.module.blocks) >= 6
        assert all(parameter.isfinite().all() for parameter in backbone.module.parameters())
    assert student.module.embed_dim >= 100  # the CODA pool of the presets is no larger
    for key in ("input_size", "mean", "std", "interpolation", "crop_pct"):  # one image pipeline, one query pass
        assert teacher.pretrained_cfg[key] == student.pretrained_cfg[key]
