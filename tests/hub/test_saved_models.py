"""Models by their folders, and what is said where there is none."""

import json
import pickle
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import images, tiny_model

from cdl_hf.data import image_processor_for
from cdl_hf.hub.image_processor import image_processor_of
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
    with pytest.raises(ValueError, match="is not finished"):
        load_run(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "student")
    assert list(load_run(tmp_path)) == ["student"]
    with pytest.raises(ValueError, match="folder of a run; give one of its models: .*student"):
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


def damage_weights(folder, **changes):
    weights = {**load_file(folder / "model.safetensors"), **changes}
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def in_shards(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


class Unpickled:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return open, ("unpickled", "w")


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Unpickled()))


JSON = ("config.json", "preprocessor_config.json")
NO_OBJECT = ["", "[]", "3", '"x"', "null", "{", "[" * 100_000, '{"a":' * 100_000]


def rewrite(name, content, folder):
    (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "cannot be loaded: there is no such folder, and the Hub cannot be reached"),
        (lambda folder: (folder / "config.json").unlink(), "no model in .*: it has no config.json"),
        (
            lambda folder: shutil.copytree(folder, folder / "student") and (folder / "config.json").unlink(),
            "holds models of a run; give one of them: .*student$",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: damage_config(folder, model_type="vit"), r"a model of another type \(vit\)"),
        (lambda folder: damage_config(folder, tasks_seen=9), "the stream has 3 tasks"),
        (lambda folder: damage_config(folder, tasks_seen=0), "seen no class"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: damage_weights(folder, **{"head.weight": None}), "incomplete: head.weight"),
        (lambda folder: damage_weights(folder, kd_head=torch.ones(2)), "are of another model: kd_head"),
        (lambda folder: damage_weights(folder, **{"head.bias": torch.full((9,), torch.nan)}), "finite.*: head.bias"),
        (lambda folder: in_shards(folder, {}), "index.json does not name files"),
        (lambda folder: in_shards(folder, []), "index.json is not a JSON object"),
        (
            lambda folder: in_shards(folder, {"metadata": {}, "weight_map": {"a": "../a.safetensors"}}),
            "does not name files",
        ),
        (lambda folder: in_shards(folder, {"metadata": {}, "weight_map": {"a": "a.bin"}}), "does not name files"),
        (lambda folder: in_shards(folder, {"weight_map": {"a": "a.safetensors"}}), "does not name files"),
        (pickled, "no file named model.safetensors"),
        *(
            (partial(rewrite, name, content), rf"{name} (is damaged|is not a JSON object)")
            for name in JSON
            for content in NO_OBJECT
        ),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json|processor"),
    ],
)
def test_what_is_wrong_is_told(checkpoint, tmp_path, damage, told):
    folder = tmp_path / "student"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    with pytest.raises(ValueError, match=rf"^[^\n]*({told})[^\n]*$"):
        load_saved_model(folder)


HUGE = 10**9
COLORS = ([], [1], [1, 2, 3, 4], "abc", 0.5, None, [torch.nan] * 3, [1e308] * 3, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("crop_size", {"height": side, "width": 32}) for side in (0, -1, HUGE, 32.5, "a", True, None)),
        *(("crop_size", value) for value in (None, [], "x", HUGE, {"shortest_edge": 32}, {"height": 32})),
        *(("size", {"shortest_edge": side}) for side in (0, -5, HUGE, 32.7, "x", True, None, torch.nan)),
        *(("size", value) for value in (None, [], {}, "x", {"longest_edge": 4}, {"height": HUGE, "width": 2})),
        *(("resample", value) for value in (None, True, -1, 4, 5, 99, HUGE, 1.5, "bicubic", [3])),
        *(("rescale_factor", value) for value in (None, 0, -1, torch.nan, torch.inf, 1e300, 1e-300, "x", [1])),
        *((name, value) for name in ("image_mean", "image_std") for value in COLORS),
        *(("image_std", [value] * 3) for value in (0, 1e-40, -1)),
        *((name, False) for name in ("do_resize", "do_center_crop", "do_rescale", "do_convert_rgb")),
        ("do_normalize", "no"),
    ],
)
def test_a_processor_that_prepares_no_image(checkpoint, field, value):
    fields = json.loads((checkpoint / "preprocessor_config.json").read_text())
    with pytest.raises(ValueError, match=rf"^{field} in preprocessor_config.json must be [^\n]{{4,200}}$"):
        image_processor_of({**fields, field: value})


def test_what_is_no_matter_of_images_is_no_part_of_a_processor(checkpoint):
    fields = json.loads((checkpoint / "preprocessor_config.json").read_text())
    strange = {"resize": "x", "__class__": "x", "center_crop": 3, "auto_map": {"AutoImageProcessor": "a/b--c.D"}}
    assert image_processor_of(fields | strange).to_dict() == image_processor_of(fields).to_dict()
    for cfg in ({}, {"crop_mode": "squash"}, {"interpolation": "nearest"}, {"input_size": (3, 32, 48)}):
        processor = image_processor_for(cfg, "none")
        assert image_processor_of(json.loads(processor.to_json_string())).to_dict() == processor.to_dict()
