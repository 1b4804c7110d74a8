import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from safetensors.torch import load_file

from cdl_hf.commands import pretrain
from cdl_hf.data import load_image_dataset
from cdl_hf.models.backbones import load_backbone
from cdl_hf.pretraining import probe

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


@pytest.fixture(autouse=True)
def few_random_features(monkeypatch):
    monkeypatch.setattr(probe, "RANPAC_WIDTH", 20)


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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_continues_exactly(run, tmp_path, monkeypatch, optimizer):
    run(tmp_path / "whole", "--optimizer", optimizer)
    rate_at, calls = pretrain.rate_at, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 5:  # three steps an epoch
            raise KeyboardInterrupt
        return rate_at(*args)

    monkeypatch.setattr(pretrain, "rate_at", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "parts", "--optimizer", optimizer)
    assert stop.value.code == os.EX_TEMPFAIL
    monkeypatch.setattr(pretrain, "rate_at", rate_at)
    run(tmp_path / "parts", "--optimizer", optimizer, "--resume_from_checkpoint")
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


def test_a_checkpoint_of_an_earlier_version_is_resumed(run, tmp_path):
    run(tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    for later in ("augmented as", "stored_size", "drop_path", "mixed_precision"):
        del state["made_of"][later]
    del state["progress"]
    torch.save(state, checkpoint)
    (tmp_path / "checkpoint.pt.sha256").unlink()
    run(tmp_path, "--resume_from_checkpoint")
    assert json.loads((tmp_path / "results.json").read_text())["epochs"] == 2


@pytest.mark.slow
def test_two_processes_go_on_from_their_checkpoint(data, tmp_path):
    """Their devices have numbers, such as cpu:0, from which a checkpoint cannot be read."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, ROOT / "recipes" / "pretrain.py", "--dataset", data, "--model", "vit_tiny_patch16_224"]
    command += ["--model_args", json.dumps(TINY), "--num_train_epochs", "1", "--batch_size", "8"]
    command += ["--output_dir", tmp_path]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    weights = []
    for more in ([], ["--resume_from_checkpoint"]):
        subprocess.run([*map(str, command), *more], env=environment, check=True, timeout=120)
        weights.append((tmp_path / "network" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


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


def test_a_network_guides_another_and_the_result_is_probed(run, data, tmp_path, monkeypatch):
    run(tmp_path / "guide", "--image_size", "16", model="resnet10t", model_args={"stem_width": 8})
    assert load_backbone(tmp_path / "guide" / "backbone").args["stem_width"] == 8
    lowest, load_network = [], pretrain.load_network

    def watched(*args):
        network = load_network(*args)
        network.register_forward_pre_hook(lambda _, inputs: lowest.append(inputs[0].min().item()))
        return network

    monkeypatch.setattr(pretrain, "load_network", watched)
    run(tmp_path / "guided", "--distill_from", str(tmp_path / "guide" / "network"), "--probe", data)
    assert min(lowest) < -1.5  # the guide's own pixels: those of the other are from -1 to 1
    results = json.loads((tmp_path / "guided" / "results.json").read_text())
    card = (tmp_path / "guided" / "backbone" / "README.md").read_text()
    assert {"test_accuracy", "linear_probe", "nearest_class_mean", "ranpac"} <= results.keys()
    assert f"| linear probe on {Path(data).name} | {results['linear_probe']:.1f} % |" in card


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset", "nowhere/at/all"], "nowhere/at/all"),
        (["--model", "vit_of_nobody"], "vit_of_nobody"),
        (["--model_args", "depth=6"], "model_args must be a JSON object"),
        (["--model_args", "[6]"], "model_args must be a JSON object"),
        (["--model_args", '{"block_fn": "x"}'], "model_args has 'block_fn', which a configuration may not set"),
        (["--model_args", '{"depht": 6}'], "depht"),
        (["--model_args", '{"in_chans": 1}'], "images of 1 channels, but images here have 3"),
        (["--model_args", '{"img_size": [16, 32]}'], "16 x 32 pixels, but images here are square"),
        (["--batch_size", "7"], "must be even"),
        (["--batch_size", "64"], "has only 24 images"),
        (["--image_size", "32"], "set img_size in model_args"),
        (["--model", "resnet10t", "--model_args", "{}", "--drop_path", "0.1"], "drop_path is for Vision Transformers"),
        (["--distill_from", "nowhere"], "nowhere is not a saved network"),
        (["--resume_from_checkpoint"], "no checkpoint.pt"),
        (["--probe", "nowhere/at/all"], "nowhere/at/all"),
        (["--stored_size", "16"], "stored_size is for photographs"),
        (["--std", "0"], "std must be at least 0.001"),
    ],
)
def test_mistakes_are_told_in_one_line(run, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        run(tmp_path, *more)
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1] and "error" in told[-1]


def test_an_existing_output_is_refused(run, tmp_path, capsys):
    (tmp_path / "precious").touch()
    for output in (tmp_path, tmp_path / "precious"):
        with pytest.raises(SystemExit):
            run(output)
        assert "is not empty" in capsys.readouterr().err


def test_a_guide_sees_the_images_in_its_own_size(run, tmp_path, monkeypatch):
    run(tmp_path / "guide", "--image_size", "48", model="resnet10t", model_args={"stem_width": 8})
    sizes, load_network = [], pretrain.load_network

    def watched(*args):
        network = load_network(*args)
        network.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[1:])))
        return network

    monkeypatch.setattr(pretrain, "load_network", watched)
    run(tmp_path / "guided", "--distill_from", str(tmp_path / "guide" / "network"))
    assert set(sizes) == {(3, 48, 48)}


def test_images_without_labels_are_refused(run, data, tmp_path, capsys):
    unlabeled = DatasetDict.load_from_disk(data)
    rows = {"image": unlabeled["train"]["image"][:8], "label": [0, 1, 2, None] * 2}
    unlabeled["train"] = Dataset.from_dict(rows, features=unlabeled["train"].features)
    unlabeled.save_to_disk(str(tmp_path / "unlabeled"))
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run", "--dataset", str(tmp_path / "unlabeled"))
    assert stop.value.code == 2 and "have no label" in capsys.readouterr().err


def test_a_time_that_is_over_before_the_training_is_refused(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "made_of", lambda *args: time.sleep(1.1))
    with pytest.raises(SystemExit):
        run(tmp_path, "--time_limit", "1")
    assert "reading the images took longer: give more" in capsys.readouterr().err


def test_a_training_that_diverges_keeps_what_it_had(run, tmp_path, monkeypatch):
    rate_at = pretrain.rate_at
    monkeypatch.setattr(pretrain, "rate_at", lambda epoch, args: 1e38 if epoch > 1 else rate_at(epoch, args))
    with pytest.raises(SystemExit, match="epoch 2 are not finite numbers: try a lower learning_rate"):
        run(tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epochs"] == 1
    assert not (tmp_path / "backbone").exists()


def test_a_schedule_by_the_clock_goes_on_by_it_alone(run, tmp_path, capsys):
    run(tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"epochs": 1, "progress": 0.8}, checkpoint)
    (tmp_path / "checkpoint.pt.sha256").unlink()
    with pytest.raises(SystemExit):
        run(tmp_path, "--resume_from_checkpoint")
    assert "follows a clock: give --time_limit" in capsys.readouterr().err


class Corners(torch.nn.Linear):
    """Stands for a backbone; its features tell the classes apart."""

    pretrained_cfg = {"input_size": (3, 16, 16), "crop_pct": 1.0}

    def forward_features(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2)

    def forward_head(self, features, pre_logits):
        return features.flatten(1)


def test_probe_of_separable_classes(data):
    splits = load_image_dataset(data)
    assert set(probe.probe(Corners(1, 1), splits).values()) == {100.0}
    splits["train"] = splits["train"].filter(lambda label: label != 1, input_columns="label")
    with pytest.raises(ValueError, match="no train images of 1 classes: b"):
        probe.probe(Corners(1, 1), splits)


def test_photographs_in_little_time(run, tmp_path, monkeypatch):
    """A schedule that ends at its time, not after its epochs; resuming a finished run trains no more."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    more = ["--images", "photographs", "--drop_path", "0.1", "--torch_compile", "--num_train_epochs", "100000"]
    run(tmp_path / "run", *more, "--save_epochs", "500", "--time_limit", "1.2")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 1 <= results["epochs"] < 1000 and results["seconds"] <= 2
    assert compiled == ["PatchEmbed", "Block"]
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["progress"] == 1 and state["optimizer"]["param_groups"][0]["lr"] < 1e-4
    card = (tmp_path / "run" / "backbone" / "README.md").read_text()
    assert "--images photographs" in card and "24 images of 3 classes of" in card and str(tmp_path) not in card
    run(tmp_path / "run", *more, "--resume_from_checkpoint")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["epochs"] == results["epochs"]


def test_shipped_backbones():
    assert sum(file.stat().st_size for folder in BACKBONES for file in folder.iterdir()) <= 8e6
    teacher, student = (load_backbone(folder) for folder in BACKBONES)
    for backbone in (teacher, student):
        assert len(backbone.module.blocks) >= 6
        assert all(parameter.isfinite().all() for parameter in backbone.module.parameters())
    assert student.module.embed_dim >= 100  # the CODA pool of the presets is no larger
    for key in ("input_size", "mean", "std", "interpolation", "crop_pct"):  # one image pipeline, one query pass
        assert teacher.pretrained_cfg[key] == student.pretrained_cfg[key]
