"""Models by their folders, and what is said where there is none."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import images, tiny_model

from cdl_hf.data import image_processor_for
from cdl_hf.hub.saved_models import is_run, load_run, load_saved_model
from cdl_hf.utils import seal_file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "student"
    tiny_model("l2p", tasks=2).save_pretrained(folder)
    image_processor_for({"input_size": (3, 32, 32)}).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_a_saved_model_answers_as_before(checkpoint):
    saved = load_saved_model(checkpoint)
    assert saved.class_names == [f"class {task}.{i}" for task, count in ((0, 3), (1, 2)) for i in range(count)]
    assert not saved.model.training and saved.image_processor.crop_size == {"height": 32, "width": 32}
    assert saved.model(images()).logits.shape == (4, 5)


def test_the_models_of_a_run(checkpoint, tmp_path):
    assert not is_run(checkpoint)
    (tmp_path / "args.yaml").write_text("")
    assert is_run(tmp_path)
    with pytest.raises(ValueError, match="it is not finished"):
        load_run(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "student")
    assert list(load_run(tmp_path)) == ["student"]
    with pytest.raises(ValueError, match="folder of a run; name one of its models: .*student"):
        load_saved_model(tmp_path)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_changed_bit_is_noticed_where_there_is_a_checksum(checkpoint, tmp_path, sealed):
    weights = shutil.copytree(checkpoint, tmp_path / "student") / "model.safetensors"
    if sealed:
        seal_file(weights)
    load_saved_model(weights.parent)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    if sealed:
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            load_saved_model(weights.parent)
    else:
        load_saved_model(weights.parent)


def damage_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def drop_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "cannot be loaded: there is no such folder, and the Hub cannot be reached"),
        (lambda folder: (folder / "config.json").unlink(), "no model in .*: it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: damage_config(folder, model_type="vit"), r"a model of another kind \(vit\)"),
        (lambda folder: damage_config(folder, tasks_seen=9), "the stream has 3 tasks"),
        (lambda folder: damage_config(folder, tasks_seen=0), "seen no class"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (drop_a_weight, "incomplete: head.weight"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json|processor"),
    ],
)
def test_what_is_wrong_is_told(checkpoint, tmp_path, damage, told):
    folder = tmp_path / "student"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    with pytest.raises(ValueError, match=told):
        load_saved_model(folder)
