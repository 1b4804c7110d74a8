"""recipes/export.py on a tiny run."""

import onnxruntime
import pytest
from tiny_runs import run_recipe

from cdl_hf.commands import export


@pytest.mark.slow
def test_files_are_compared_and_measured(finished_run, drawings, tmp_path, capsys):
    run_recipe("export", finished_run / "student", "--output_dir", tmp_path, "--int8", "--dataset", drawings)
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    accuracy = table["PyTorch"][-1]
    for name in ("model.pt2", "model.onnx"):
        megabytes, difference, *_, its_accuracy = table[name]
        assert float(megabytes) == pytest.approx((tmp_path / name).stat().st_size / 1e6, abs=0.006)
        assert float(difference) < 1e-4 and its_accuracy == accuracy
    assert float(table["model_int8.onnx"][1]) > 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model_int8.onnx")
    assert [put.name for put in (*session.get_inputs(), *session.get_outputs())] == ["pixel_values", "logits"]


@pytest.mark.parametrize("difference", [0.2, float("nan")])
def test_files_that_differ_are_a_failure(difference):
    export.stop_if_wrong({"model.pt2": 0.0, "model.onnx": 9e-5})
    with pytest.raises(SystemExit, match="^model.onnx differ from the model by more than 0.0001"):
        export.stop_if_wrong({"model.pt2": 0.0, "model.onnx": difference})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{run}/student"], "--output_dir is required"),
        (["{run}/student", "--output_dir", "{new}/out", "--int8"], "give a dataset"),
        (["{run}/student", "--output_dir", "{new}/out", "--label_column", "a"], "label_column needs dataset"),
        (["{run}/student", "--output_dir", "{new}/out", "--domain_column", "a"], "domain_column needs dataset"),
        (
            ["{run}/student", "--output_dir", "{new}/out", "--dataset", "{drawings}", "--domain_column", "a"],
            "domains are the folders above those of the classes",
        ),
        (["{run}", "--output_dir", "{new}/out"], "give one of its models"),
        (["{run}/student", "--output_dir", "{run}/results.json"], "cannot be written to"),
    ],
)
def test_mistakes_are_told(finished_run, drawings, tmp_path, capsys, arguments, told):
    with pytest.raises(SystemExit) as stop:
        run_recipe(
            "export", *(argument.format(run=finished_run, new=tmp_path, drawings=drawings) for argument in arguments)
        )
    assert stop.value.code == 2 and told in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_told(finished_run, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else "found")
    with pytest.raises(SystemExit):
        run_recipe("export", finished_run / "student", "--output_dir", "nowhere")
    assert "onnxscript not installed: pip install 'cdl_hf[export]'" in capsys.readouterr().err
