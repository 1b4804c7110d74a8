"""Exported files give the model's logits, whatever the batch."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from tiny_models import STUDENT, images, tiny_model
from torch.nn import functional as F

from cdl_hf.data import image_processor_for
from cdl_hf.hub.export import OnnxModel, export_program, save_int8, save_onnx, save_program
from cdl_hf.hub.saved_models import SavedModel
from cdl_hf.models.classifiers import CLASSIFIERS
from cdl_hf.models.kd_branches import BRANCHES
from cdl_hf.models.prompt_pools import POOLS

# Every prompt method, KD branch and head at least once, as each takes seconds; all pairs were tried once by hand.
PAIRS = [
    ("l2p", "none", "linear"),
    ("l2p", "cdl_prompt", "linear"),
    ("dualprompt", "cdl_prompt", "linear"),
    ("dualprompt", "deit", "linear"),
    ("coda_prompt", "cdl_prompt", "linear"),
    ("coda_prompt", "kdp", "ranpac"),
    ("apt", "deit", "linear"),
    ("apt", "kdp", "linear"),
    ("lora", "kdp", "ncm"),
    ("none", "none", "ncm"),
    ("none", "analytic", "ranpac"),
]
QUICK = PAIRS[2]  # selection, all tasks' prompts, and joined prefixes


def test_none_is_forgotten():
    methods, branches, heads = map(set, zip(*PAIRS, strict=True))
    assert methods == {*POOLS} and branches == {"none", "analytic", *BRANCHES} and heads == {"linear", *CLASSIFIERS}


@torch.no_grad()
def learnt_model(prompt_method: str, kd_branch: str, head: str, x: torch.Tensor) -> SavedModel:
    """A model of three tasks in which everything acts: heads and prompts are large, and each image has its own key."""
    widths = {"ranpac_width": 32, "analytic_width": 16, "teacher_width": 24} if kd_branch == "analytic" else {}
    model = tiny_model(prompt_method, kd_branch, tasks=3, head=head, **{"ranpac_width": 32, **widths}).eval()
    model.end_task()
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if any(part in name for part in ("prompts", "merged", "kd_branch.token", "head.weight", "attention")):
            parameter.normal_()
    if head != "linear":
        columns = model.config.seen_classes
        width = model.network.width(model.readout)
        features, labels = torch.randn(60, 1 if model.kd_branch is None else 2, width), torch.arange(60) % columns
        features[torch.arange(60), :, labels] += 9  # so that there is something to tell apart
        model.fit_classifier(features, labels, None if model.analytic is None else 9 * F.one_hot(labels, 24).float())
    if model.prompt_pool.needs_query:
        pools = [model.prompt_pool, *([model.kd_branch.teacher_pool] if kd_branch == "cdl_prompt" else [])]
        queries = model.query(x)
        for pool in pools:
            number = min(pool.keys.shape[1], len(queries))
            pool.keys[:, :number] = F.normalize(queries[:number] - queries.mean(0), dim=1)
    return SavedModel(model, image_processor_for({"input_size": (3, STUDENT["img_size"], STUDENT["img_size"])}))


@pytest.fixture(scope="module")
def exported(request, tmp_path_factory) -> tuple[SavedModel, torch.Tensor, Path]:
    """A model, seven images, and the folder of its files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    x = images(7) + 3 * torch.randn(7, 3, 1, 1)  # of a color each
    saved = learnt_model(*request.param, x)
    program = export_program(saved)
    save_program(program, saved, folder / "model.pt2")
    save_onnx(program, saved, folder / "model.onnx")
    return saved, x, folder


@pytest.mark.parametrize(
    "exported",
    [pytest.param(p, marks=[] if p == QUICK else pytest.mark.slow) for p in PAIRS],
    indirect=True,
    ids="-".join,
)
def test_logits_are_those_of_the_model(exported):
    saved, x, folder = exported
    expected = saved.logits(x)
    assert (expected - expected.mean(0)).abs().max() > 0.01
    if saved.model.config.prompt_method in ("l2p", "dualprompt"):  # the images do take different prompts
        similarity = saved.model.query(x) @ saved.model.prompt_pool.keys[0].T
        assert len(set(similarity.argmax(1).tolist())) > 1
    for model in (OnnxModel(folder / "model.onnx"), torch.export.load(folder / "model.pt2").module()):
        for batch in (x, x[:1], x[[5, 0, 3]]):
            assert torch.allclose(model(batch), saved.logits(batch), atol=1e-4, rtol=0)
            assert model(batch).shape == (len(batch), 9)


@pytest.mark.parametrize("exported", [QUICK], indirect=True, ids="-".join)
def test_files_tell_classes_and_preparation_and_int8_stays_close(exported, tmp_path):
    saved, x, folder = exported
    save_int8(folder / "model.onnx", tmp_path / "int8.onnx")
    for path in (folder / "model.onnx", tmp_path / "int8.onnx"):
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert json.loads(metadata["labels"]) == saved.class_names
        assert json.loads(metadata["preprocessor_config"])["crop_size"] == {"height": 32, "width": 32}
    extra = {"labels": "", "preprocessor_config": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    assert json.loads(extra["labels"]) == saved.class_names

    operators = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert operators.count("MatMulInteger") >= 2 * 2 * 3  # of each block, in both passes: qkv, proj and the MLP's two
    exact, rounded = saved.logits(x), OnnxModel(tmp_path / "int8.onnx")(x)
    assert 0 < (rounded - exact).abs().max() < 0.2 * exact.abs().max()
