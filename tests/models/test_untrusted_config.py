"""A checkpoint's config.json is a stranger's word: what it may ask for, and what is refused before it is done."""

import json
import pickle
import time

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.layers import create_act, create_norm
from tiny_models import STUDENT, images, tiny_backbone, tiny_model
from tiny_runs import run_recipe
from transformers import AutoConfig, AutoModelForImageClassification, CLIPImageProcessor, pipeline

from cdl_hf.models import PromptViTConfig, PromptViTForImageClassification, backbones, load_backbone
from cdl_hf.models.architecture_args import ARCHITECTURE_ARGS

TAG = "vit_tiny_patch16_224.augreg_in21k"
DIGEST = "0" * 64
HUGE, HUGE_TEXT = 10**9, 100_000


def weights(source):
    return {"source": source, "sha256": DIGEST}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    tiny_model("coda_prompt", "cdl_prompt").save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


@pytest.fixture
def rewritten(checkpoint, tmp_path):
    """The checkpoint with other fields in its configuration; its weights are left out where they say so."""

    def rewrite(**fields):
        folder = tmp_path / "rewritten"
        folder.mkdir()
        for file in checkpoint.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))
        return folder

    return rewrite


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch):
    """A request fails the test, and so does a call of timm with pre-trained weights."""

    def fail(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("httpx2.Client.send", fail)
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)


ARGS = [
    (
        {"pretrained_cfg": {"url": "https://example.org/x.pth"}},
        "has 'pretrained_cfg', which a configuration may not set",
    ),
    ({"pretrained_cfg_overlay": {"file": "x.pth"}}, "has 'pretrained_cfg_overlay'"),
    ({"cache_dir": "somewhere"}, "has 'cache_dir'"),
    ({"checkpoint_path": "x.pth"}, "has 'checkpoint_path'"),
    ({"features_only": True}, "has 'features_only'"),
    ({"scriptable": True}, "has 'scriptable'"),
    ({"num_classes": 5}, "has 'num_classes'"),
    ({"depth": 20000}, "depth in .*_args must be an integer from 1 to 100, got 20000"),
    ({"depth": True}, "depth in .*_args must be an integer"),
    ({"embed_dim": HUGE}, "embed_dim in"),
    ({"embed_dim": 30, "num_heads": 4}, "must be divisible by num_heads"),
    ({"img_size": HUGE}, "img_size in"),
    ({"img_size": [224]}, "img_size in"),
    ({"patch_size": 0}, "patch_size in"),
    ({"mlp_ratio": float("nan")}, "mlp_ratio in .*, got nan"),
    ({"mlp_ratio": -1}, "mlp_ratio in"),
    ({"drop_path_rate": 1.5}, "drop_path_rate in"),
    ({"norm_layer": "nonsense"}, "norm_layer in .* must be one of 'layernorm'"),
    ({"act_layer": "nonsense"}, "act_layer in .* must be one of 'silu'"),
    ({"act_layer": ["gelu"]}, "act_layer in"),
    ({"qkv_bias": "yes"}, "qkv_bias in .* must be true or false"),
]


@pytest.mark.parametrize(("args", "reason"), ARGS)
@pytest.mark.parametrize("name", ["backbone", "query_backbone"])
def test_arguments_of_timm_that_do_not_merely_shape_a_transformer(rewritten, name, args, reason):
    left_out = {name: TAG, f"{name}_args": args, f"{name}_weights": weights(TAG), "left_out": [name]}
    with pytest.raises(ValueError, match=rf"^[^\n]*{reason}[^\n]*$"):
        AutoConfig.from_pretrained(rewritten(**left_out))


FIELDS = [
    ({"backbone": "hf-hub:a/b"}, "backbone must be the plain name of a timm architecture"),
    ({"backbone": "local-dir:/etc"}, "backbone must be the plain name"),
    ({"query_backbone": "../x"}, "query_backbone must be the plain name"),
    ({"left_out": ["head"]}, "left_out may name backbone and query_backbone once each"),
    ({"left_out": ["backbone", "backbone"]}, "left_out may name"),
    ({"left_out": ["query_backbone"]}, "does not give the source of its weights"),
    ({"left_out": ["backbone"], "backbone_weights": {}}, "does not give the source of its weights"),
    ({"backbone_weights": {"source": "x", "sha256": "12"}}, "64 digits of their sha256"),
    ({"backbone_weights": {"source": "x"}}, "64 digits of their sha256"),
    ({"classes_per_task": [HUGE]}, "classes_per_task adds up to"),
    ({"classes_per_task": [1] * 20_000}, "at most 10,000 tasks"),
    ({"classes_per_task": [-3, 2, 4]}, "at least one task of one class"),
    ({"prompt_method": "coda_prompt", "classes_per_task": []}, "at least one task"),
    ({"tasks_seen": -1}, "tasks_seen"),
    ({"pool_size": HUGE}, "pool_size must be at least 1 and at most"),
    ({"pool_size": 99_999, "prompt_length": 1000}, "the prompts are .* vectors"),
    ({"prompt_length": HUGE}, "prompt_length must be"),
    ({"prompt_blocks": [HUGE]}, "prompt_blocks must list blocks"),
    ({"prompt_blocks": [-1]}, "prompt_blocks must list blocks"),
    ({"g_prompt_blocks": [0.5]}, "g_prompt_blocks"),
    ({"g_prompt_length": HUGE}, "g_prompt_length must be"),
    ({"top_k": HUGE}, "top_k must be"),
    ({"ranpac_width": HUGE}, "ranpac_width must be"),
    ({"head": "ranpac", "ranpac_width": 100_000, "classes_per_task": [20_000]}, "times the number of classes"),
    ({"kd_prompt_blocks": HUGE}, "kd_prompt_blocks must be"),
    ({"kd_prompt_length": -2}, "kd_prompt_length must be"),
    ({"teacher_width": HUGE}, "teacher_width must be"),
    ({"teacher_width": 0}, "teacher_width must be"),
    ({"kd_alpha": float("nan")}, "kd_alpha must be between 0 and 1"),
    ({"ema_decay": float("inf")}, "ema_decay must be between 0 and 1"),
    ({"ortho_weight": float("inf")}, "ortho_weight must not be negative"),
    ({"num_labels": HUGE}, "num_labels must be at most"),
    ({"id2label": ["a"]}, "id2label must map class ids to names"),
    ({"dtype": "load"}, "dtype must be one of"),
    ({"attn_implementation": "someone/kernel"}, "attn_implementation must be"),
    ({"attribute_map": {"backbone": "head"}}, "attribute_map is not a field"),
    ({"seen_classes": 3}, "seen_classes is not a field"),
    ({"to_dict": 3}, "to_dict is not a field"),
    ({"transformers_weights": 3}, "transformers_weights is not a field"),
    ({"transformers_weights": "../x.safetensors"}, "transformers_weights is not a field"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantization_config is no"),
    ({"backbone": "x" * HUGE_TEXT}, "backbone must be the plain name"),
    ({"head": "x" * HUGE_TEXT}, "head is 'xxx"),
    ({"prompt_method": ["x" * HUGE_TEXT]}, "prompt_method"),
    ({"top_k": "x" * HUGE_TEXT}, "top_k"),
    ({"tasks_seen": 10**1000}, "tasks_seen is 100000"),
    ({"backbone_weights": weights("a\nb")}, "backbone_weights must hold"),
    ({"backbone_weights": weights("x" * HUGE_TEXT)}, "backbone_weights must hold"),
]


@pytest.mark.parametrize(("fields", "reason"), FIELDS)
def test_fields_out_of_their_bounds(rewritten, fields, reason):
    with pytest.raises(ValueError, match=rf"^[^\n]*{reason}[^\n]*$") as refused:
        AutoConfig.from_pretrained(rewritten(**fields))
    assert len(str(refused.value)) <= 1000


UNSUITABLE = [
    ({"backbone_args": {"depth": 100, "embed_dim": 8192, "num_heads": 8}}, "more than 3,000,000,000"),
    ({"backbone_args": {"img_size": 4096, "patch_size": 1}}, "and 16,777,216 patches"),
    ({"backbone_args": {**STUDENT, "in_chans": 4}}, "images of 4 channels, but images here have 3"),
    ({"backbone_args": {**STUDENT, "img_size": [32, 64]}}, "32 x 64 pixels, but images here are square"),
    ({"backbone_args": {**STUDENT, "class_token": False, "global_pool": "avg"}}, "shapes of its configuration"),
    ({"backbone": "resnet18", "backbone_args": {}}, "ResNet"),
    ({"backbone": "vit_tinny_patch16_224"}, "no model 'vit_tinny_patch16_224'"),
    ({"backbone_args": {**STUDENT, "embed_dim": 64}}, "do not have the shapes of its configuration"),
    ({"kd_prompt_blocks": 50, "kd_branch": "kdp"}, "the backbone has 2 blocks"),
    ({"prompt_blocks": [0, 7]}, "the backbone has blocks 0 to 1"),
]


@pytest.mark.parametrize(("fields", "reason"), UNSUITABLE)
def test_transformers_that_are_unsuitable(rewritten, fields, reason):
    began = time.monotonic()
    with pytest.raises(ValueError, match=reason):
        AutoModelForImageClassification.from_pretrained(rewritten(**fields))
    assert time.monotonic() - began < 20  # not minutes: nothing of that size is made


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (TAG, r"timm/vit_tiny_patch16_224\.augreg_in21k is not in the cache"),
        ("vit_small_patch16_224.augreg_in21k", "of another architecture"),
        ("vit_tiny_patch16_224.nonsense", "timm has no weights of that name"),
        ("hf-hub:someone/something", "someone/something is not in the cache"),
        ("hf_hub:../..", "Repo id must"),
        ("hf_hub:someone/something@main", "someone/something is not in the cache"),
        ("hf_hub:someone/something@../../../mine", "is not a revision"),
        ("hf_hub:someone/something@/etc/hostname", "is not a revision"),
        ("hf_hub:someone/something@refs/..", "is not a revision"),
        ("hf_hub:someone/something@a b", "is not a revision"),
        ("local-dir:mine", "it is not a timm name"),
        ("/etc", "it is not a timm name"),
        ("../mine", "it is not a timm name"),
        ("..", "it is not a timm name"),
        ("C:\\mine", "it is not a timm name"),
        ("mine", "there is no .*model.safetensors, and a checkpoint may not name another"),
    ],
)
def test_sources_of_weights_left_out(rewritten, tmp_path, monkeypatch, source, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with open(tmp_path / "mine" / "pytorch_model.bin", "wb") as file:
        pickle.dump(Unpickled(), file)
    (tmp_path / "mine" / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    folder = rewritten(left_out=["backbone"], backbone_weights=weights(source))
    with pytest.raises(ValueError, match=rf"saved without the weights of .*{reason}"):
        PromptViTForImageClassification.from_pretrained(folder, local_files_only=True)
    assert not (tmp_path / "unpickled").exists()


class Unpickled:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return open, ("unpickled", "w")


def test_a_stranger_is_refused_by_the_pipeline_and_by_predict(rewritten, tmp_path, capsys):
    url = {"pretrained_cfg": {"url": "https://example.org/x.pth"}, "cache_dir": str(tmp_path / "cache")}
    folder = rewritten(left_out=["backbone"], backbone=TAG, backbone_args=url, backbone_weights=weights(TAG))
    with pytest.raises(ValueError, match="has 'pretrained_cfg'"):
        pipeline("image-classification", model=str(folder))
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        run_recipe("predict", folder, tmp_path / "image.png")
    assert stop.value.code == 2 and "has 'pretrained_cfg'" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@torch.no_grad()
@pytest.mark.parametrize("source", [TAG, "hf_hub:someone/something"])
def test_weights_of_a_tag_or_repository_are_taken_from_the_cache(source, tmp_path, monkeypatch):
    """As the Hub's client leaves them there; their digest is compared, and no request is made."""
    backbone = tiny_backbone()
    name = f"timm/{TAG}" if source == TAG else "someone/something"
    snapshot = tmp_path / "cache" / f"models--{name.replace('/', '--')}" / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1" * 40)
    state = {name: tensor.contiguous() for name, tensor in backbone.module.state_dict().items()}
    save_file(state, snapshot / "model.safetensors")
    backbone.name, backbone.source = (TAG, TAG) if source == TAG else (backbone.name, source)
    model, x = tiny_model("l2p", backbone=backbone).eval(), images()
    model.save_pretrained(tmp_path / "saved", save_backbone=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    given = {"local_files_only": True, "cache_dir": tmp_path / "cache"}
    loaded = PromptViTForImageClassification.from_pretrained(tmp_path / "saved", **given)
    assert torch.equal(loaded(x).logits, model(x).logits)

    save_file({name: tensor + 1 for name, tensor in state.items()}, snapshot / "model.safetensors")
    with pytest.raises(ValueError, match="are not those that the prompts were trained on"):
        PromptViTForImageClassification.from_pretrained(tmp_path / "saved", **given)


def test_all_that_shapes_a_plain_transformer_may_be_said():
    args = {
        **{"img_size": [32, 32], "patch_size": 16, "in_chans": 3, "embed_dim": 32, "depth": 1, "num_heads": 2},
        **{"mlp_ratio": 3, "init_values": 1e-5, "reg_tokens": 4, "pos_embed": "learn", "global_pool": "token"},
        **{"class_token": True, "qkv_bias": False, "qk_norm": True, "pre_norm": True, "no_embed_class": True},
        **{"dynamic_img_size": True, "norm_layer": "LayerNorm", "act_layer": "gelu", "drop_path_rate": 0.1},
        **{"final_norm": True, "fc_norm": None, "proj_bias": True, "weight_init": "", "fix_init": False},
    }
    backbone = load_backbone("vit_tiny_patch16_224", pretrained=False, **args)
    model = PromptViTForImageClassification.from_backbone(backbone, classes_per_task=[2], prompt_method="apt")
    again = AutoConfig.for_model(**json.loads(model.config.to_json_string()))
    assert PromptViTForImageClassification(again).backbone.state_dict().keys() == backbone.module.state_dict().keys()


def test_timm_knows_all_names_that_may_be_said():
    for known, arg in ((create_norm._NORM_MAP, "norm_layer"), (create_act._ACT_LAYER_DEFAULT, "act_layer")):
        wanted = ARCHITECTURE_ARGS[arg][1]
        assert not [name for name in wanted.removeprefix("one of ").split(", ") if name.strip("'") not in known]
    assert timm.is_model(PromptViTConfig().backbone)


def test_what_loads_weights_is_not_part_of_a_transformer(tmp_path, monkeypatch):
    """A user may say where to keep files; the checkpoint does not repeat it."""
    made = backbones.timm.create_model
    monkeypatch.setattr(backbones.timm, "create_model", lambda *args, cache_dir, **kwargs: made(*args, **kwargs))
    backbone = load_backbone("vit_tiny_patch16_224", pretrained=False, cache_dir=tmp_path, **STUDENT)
    assert backbone.args == STUDENT
