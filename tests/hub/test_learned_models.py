"""Records of models that have learned or forgotten classes, which may come from someone else."""

import json
import shutil

import pytest
from huggingface_hub import constants

from cdl_hf.escaping import portable_arguments
from cdl_hf.hub.learned_models import LearnedModels


@pytest.mark.parametrize(
    "rest",
    [
        '"role": "pupil"',
        '"model": ["a"]',
        '"learned": ["cat"]',
        '"learned": [{"new_classes": "cat"}]',
        '"learned": [{"images": "7 | 8"}]',
        '"learned": [{"correct": {"student": [1, "2"]}}]',
        '"learned": [{"correct": 1}]',
    ],
)
def test_a_record_of_other_types_is_refused(tmp_path, rest):
    (tmp_path / "learned.json").write_text(f'{{"arguments": {{}}, {rest}}}')
    with pytest.raises(ValueError, match=r"learned\.json is damaged: .* is not what `cdl-hf` writes"):
        LearnedModels.load(str(tmp_path))


@pytest.fixture
def on_the_hub(finished_run, tmp_path, monkeypatch):
    """The student of a finished run on the Hub, as its cache has it: its name and its folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--me--run-student"
    folder = repository / "snapshots" / ("0" * 40)
    shutil.copytree(finished_run / "student", folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return "me/run-student", folder


def test_a_model_on_the_hub_has_the_record_of_what_it_has_learned(on_the_hub):
    name, folder = on_the_hub
    record = {"model": "run", "dataset": "", "arguments": {"seed": 1}, "learned": [{"new_classes": ["cat"]}]}
    (folder / "learned.json").write_text(json.dumps({**record, "role": "student"}))
    assert LearnedModels.load(name).record == {**record, "role": "student"}


def test_a_model_of_a_run_on_the_hub_has_the_arguments_of_the_run(on_the_hub, finished_run):
    name, _ = on_the_hub
    record, of_folder = (LearnedModels.load(source).record for source in (name, str(finished_run / "student")))
    assert record is not None and of_folder is not None
    assert {**record["arguments"], **portable_arguments(of_folder["arguments"])} == record["arguments"]
