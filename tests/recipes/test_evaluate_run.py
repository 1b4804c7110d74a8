"""recipes/evaluate_run.py on a tiny run."""

import json
import shutil

import numpy as np
import pytest
from tiny_runs import run_recipe


def refusal(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        run_recipe("evaluate_run", *arguments)
    assert stop.value.code == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    return message


def test_a_run_is_judged_as_it_judged_itself(finished_run, tmp_path, capsys):
    run_recipe("evaluate_run", finished_run, "--output_dir", tmp_path / "evaluation", "--batch_size", "5")
    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    results = json.loads((finished_run / "results.json").read_text())
    table = capsys.readouterr().out
    assert table.startswith("24 test images") and "calibration error" in table and "taken for" in table
    assert "images assigned to the right task" in table
    for role in ("teacher", "student"):
        told = report["models"][role]
        assert told["accuracy_by_task"] == pytest.approx(results[role]["accuracy_matrix"][-1])
        for name in ("average_accuracy", "task_known_accuracy", "right_task_share"):
            assert told[name] == pytest.approx(results[role][name])
        assert told["task_known_accuracy"] == results[role]["task_known_accuracies"][-1]
        assert results[role]["right_task_shares"][0] == 100 and len(results[role]["right_task_shares"]) == 3
        assert told["average_accuracy"] <= min(told["task_known_accuracy"], told["right_task_share"])
        confusion = np.array(told["confusion"])
        assert confusion.sum() == 24 and (confusion.sum(1) == 4).all()
        assert told["average_accuracy_by_image"] == pytest.approx(100 * np.trace(confusion) / 24)
        assert told["latency_ms"] > 0 and told["images_per_second"] > 0
        assert (tmp_path / "evaluation" / f"confusion_{role}.png").stat().st_size > 0


def test_a_model_on_a_data_set_that_has_other_classes_too(finished_run, drawings, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(drawings / "test" / "class_5", folder / "test" / "class_5")
    shutil.copytree(drawings / "test" / "class_1", folder / "test" / "class_1")
    shutil.copytree(drawings / "test" / "class_0", folder / "test" / "another")
    shutil.copytree(folder / "test", folder / "train")
    run_recipe("evaluate_run", finished_run / "student", "--dataset", folder, "--output_dir", tmp_path / "out")
    assert "4 images of classes that the model does not know are left out: another" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"]["model"]
    confusion = np.array(told["confusion"])
    assert confusion.sum(1).tolist() == [0, 4, 0, 0, 0, 4]  # by name, not by the numbers of this data set
    assert told["accuracy_by_task"][1] is None and told["accuracy_by_class"]["class_2"] is None


def test_images_that_were_trained_on_are_left_out_of_other_data(finished_run, drawings, tmp_path, capsys):
    shutil.copytree(drawings / "test" / "class_5", tmp_path / "images" / "class_5")
    shutil.copytree(drawings / "train" / "class_1", tmp_path / "images" / "class_1")
    for k, file in enumerate((drawings / "test" / "class_1").iterdir()):
        shutil.copy(file, tmp_path / "images" / "class_1" / f"another_{k}.png")
    run_recipe(
        "evaluate_run", finished_run / "student", "--dataset", tmp_path / "images", "--output_dir", tmp_path / "out"
    )
    assert "7 of the 15 images of" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert np.array(told["models"]["model"]["confusion"]).sum(1).tolist() == [0, 4, 0, 0, 0, 4]
    assert any("trained on them" in note for note in told["notes"])
    assert "trained on all" in refusal(capsys, finished_run, "--dataset", drawings / "train")


@pytest.mark.parametrize(
    "option", [("--split_file", "a.yaml"), ("--test_split", "a"), ("--image_column", "a"), ("--label_column", "a")]
)
def test_options_without_effect_are_refused(finished_run, capsys, option):
    assert f"{option[0][2:]} needs dataset" in refusal(capsys, finished_run, *option)


def test_mistakes_are_told(finished_run, drawings, tmp_path, capsys):
    assert "--dataset is needed" in refusal(capsys, finished_run / "student")
    assert "error: checkpoint is required" in refusal(capsys)
    assert "no such folder" in refusal(capsys, "nowhere")
    assert "named data set" in refusal(capsys, finished_run, "--dataset", "quikdraw")
    shutil.copytree(drawings / "test" / "class_0", tmp_path / "images" / "strange")
    message = refusal(capsys, finished_run / "student", "--dataset", tmp_path / "images")
    assert "knows none of the classes of the data set" in message and "strange" in message
    (tmp_path / "file").write_text("mine")
    assert "cannot be written to" in refusal(capsys, finished_run, "--output_dir", tmp_path / "file")
