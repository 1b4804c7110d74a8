"""Every preset is one that the command line takes."""

from pathlib import Path

import pytest

from cdl_hf.training.arguments import RUN
from cdl_hf.training.parser import parse

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
