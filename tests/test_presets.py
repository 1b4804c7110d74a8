"""Presets: each is one that the command line takes, by its name and by its path in earlier versions."""

import pytest

from cdl_hf.arguments.config import RUN
from cdl_hf.cli import parse
from cdl_hf.presets import preset_names, preset_or_file

PRESETS = [name for name in preset_names() if not name.endswith("/grid")]


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_is_read(preset):
    stream, model, _, training, _ = parse(RUN, ["--config", preset])
    assert stream.dataset == preset.split("/")[0]
    assert training.learning_rate > 0
    assert "." in model.teacher or model.teacher.endswith("quickdraw")


def test_defaults_are_the_bundled_preset():
    """`accelerate launch recipes/train.py` runs what coda_prompt.yaml says."""
    preset = parse(RUN, ["--config", "quickdraw100/coda_prompt", "--num_tasks", "none"])
    assert list(preset) == list(parse(RUN, []))


def test_all_pairs_of_the_papers_have_a_preset():
    for data_set in ("cifar100", "imagenet_r"):
        assert {f"{data_set}/{pair}" for pair in ("base_to_small", "large_to_base", "base_to_tiny")} <= set(PRESETS)
    assert {f"quickdraw100/{method}" for method in ("l2p", "dualprompt", "coda_prompt", "apt")} <= set(PRESETS)


@pytest.mark.parametrize("preset", [name for name in PRESETS if "quickdraw" not in name])
def test_presets_of_the_papers_run_as_the_authors_did(preset):
    stream, model, distillation, training, _ = parse(RUN, ["--config", preset])
    assert stream.class_order == ("split_file" if stream.dataset == "imagenet_r" else "natural")
    assert (model.normalization, model.interpolation) == ("none", "bilinear")
    assert training.teacher_merge == "after_student" and distillation.kd_alpha == 0.5
    for stages in ("teacher", "student"):
        parse(RUN, ["--config", preset, "--stages", stages])  # of a model alone


def test_presets_keep_the_paths_of_earlier_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    preset = preset_or_file("quickdraw100/l2p")
    assert preset.is_file()
    for path in ("recipes/quickdraw100/l2p.yaml", "/some/checkout/recipes/quickdraw100/l2p.yaml"):
        assert preset_or_file(path) == preset
    for path in ("mine/quickdraw100/l2p.yaml", "quickdraw100/l3p", "l2p.yaml"):  # not another file than the one named
        assert str(preset_or_file(path)) == path


def test_a_file_goes_before_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipes" / "quickdraw100" / "l2p.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("seed: 7")
    assert parse(RUN, ["--config", "recipes/quickdraw100/l2p.yaml"]).instances[3].seed == 7


def test_the_nearest_preset_is_suggested(capsys):
    with pytest.raises(SystemExit):
        parse(RUN, ["--config", "quickdraw100/l2"])
    assert (
        "cannot read this file (No such file or directory); did you mean quickdraw100/l2p?" in capsys.readouterr().err
    )
