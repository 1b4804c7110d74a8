"""Every preset is one that the command line takes."""

from pathlib import Path

import pytest

from cdl_hf.cli import parse
from cdl_hf.training.arguments import RUN

RECIPES = Path(__file__).parents[2] / "recipes"
PRESETS = sorted(path for path in RECIPES.glob("*/*.yaml") if path.stem != "grid")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_preset_is_read(preset):
    stream, model, _, training, _ = parse(RUN, ["--config", str(preset)])
    assert stream.dataset == preset.parent.name
    assert training.learning_rate > 0
    assert "." in model.teacher or model.teacher.endswith("quickdraw")


def test_defaults_are_the_bundled_preset():
    """`accelerate launch recipes/train.py` runs what coda_prompt.yaml says."""
    preset = parse(RUN, ["--config", str(RECIPES / "quickdraw100" / "coda_prompt.yaml"), "--num_tasks", "none"])
    assert list(preset) == list(parse(RUN, []))


def test_all_pairs_of_the_papers_have_a_preset():
    names = {f"{path.parent.name}/{path.stem}" for path in PRESETS}
    for data_set in ("cifar100", "imagenet_r"):
        assert {f"{data_set}/{pair}" for pair in ("base_to_small", "large_to_base", "base_to_tiny")} <= names
    assert {f"quickdraw100/{method}" for method in ("l2p", "dualprompt", "coda_prompt", "apt")} <= names


@pytest.mark.parametrize(
    "preset", [path for path in PRESETS if "quickdraw" not in str(path)], ids=lambda p: str(p)[-30:]
)
def test_presets_of_the_papers_run_as_the_authors_did(preset):
    stream, model, distillation, training, _ = parse(RUN, ["--config", str(preset)])
    assert stream.class_order == ("split_file" if stream.dataset == "imagenet_r" else "natural")
    assert (model.normalization, model.interpolation) == ("none", "bilinear")
    assert training.teacher_merge == "after_student" and distillation.kd_alpha == 0.5
    for stages in ("teacher", "student"):
        parse(RUN, ["--config", str(preset), "--stages", stages])  # of a model alone
