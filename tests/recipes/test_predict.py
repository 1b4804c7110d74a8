"""recipes/predict.py on a tiny model."""

import csv
import json
import shutil

import numpy as np
import PIL.Image
import pytest
from tiny_runs import run_recipe
from transformers import pipeline

import cdl_hf  # noqa: F401
from cdl_hf.commands.predict import as_csv


@pytest.fixture
def folder(drawings, tmp_path):
    """Four images, one of them of 16 bits, and a broken file."""
    place = tmp_path / "images"
    (place / "more").mkdir(parents=True)
    for i in range(3):
        shutil.copy(drawings / "test" / f"class_{i}" / "0.png", place / "more" / f"{i}.png")
    grey = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint16)
    PIL.Image.fromarray(grey * 257).save(place / "deep.png")
    (place / "broken.png").write_text("no image")
    return place


def predict(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        run_recipe("predict", *arguments)
    return stop.value.code


def test_answers_are_those_of_the_pipeline(finished_run, folder, tmp_path, capsys):
    arguments = (finished_run / "student", folder, "--top_k", "2", "--batch_size", "3")
    assert predict(*arguments, "--output", tmp_path / "answers.json") == 0
    told = json.loads((tmp_path / "answers.json").read_text())
    assert told["unreadable"] == {str(folder / "broken.png"): "not an image, or in a format that is not supported"}
    answers = {answer["file"]: answer["classes"] for answer in told["answers"]}
    assert list(answers) == [str(folder / name) for name in ("deep.png", "more/0.png", "more/1.png", "more/2.png")]
    classify = pipeline("image-classification", model=str(finished_run / "student"), device="cpu")
    for name in ("more/0.png", "more/1.png"):
        for ours, theirs in zip(answers[str(folder / name)], classify(str(folder / name), top_k=2), strict=True):
            assert ours["label"] == theirs["label"] and ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
    errors = capsys.readouterr().err
    assert "broken.png: not an image" in errors and "4 of 5 images classified; 1 cannot be read" in errors

    shallow = folder / "shallow.png"  # the same image in 8 bits
    PIL.Image.fromarray((np.asarray(PIL.Image.open(folder / "deep.png")) // 257).astype(np.uint8)).save(shallow)
    assert predict(finished_run / "student", shallow, "--output", tmp_path / "shallow.json") == 0
    (same,) = json.loads((tmp_path / "shallow.json").read_text())["answers"]
    assert same["classes"][0]["score"] == pytest.approx(answers[str(folder / "deep.png")][0]["score"])


def test_csv_to_a_file_and_to_the_terminal(finished_run, folder, tmp_path, capsys):
    assert predict(finished_run / "student", folder, "--output", tmp_path / "answers.csv", "--top_k", "9") == 0
    rows = list(csv.DictReader((tmp_path / "answers.csv").open()))
    assert len(rows) == 4 and len(rows[0]) == 1 + 2 * 6  # six classes, not nine
    for row in rows:
        scores = [float(row[f"score_{k}"]) for k in range(1, 7)]
        assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1, abs=1e-5)
    capsys.readouterr()
    assert predict(finished_run / "student", folder, "--top_k", "9") == 0
    assert capsys.readouterr().out == (tmp_path / "answers.csv").read_text()


def test_nothing_readable_is_a_failure(finished_run, folder, capsys):
    assert predict(finished_run / "student", folder / "broken.png") == 1
    assert "0 of 1 images classified; 1 cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{run}/student"], "error: files is required"),
        (["{run}/student", "nowhere.png"], "no file or folder 'nowhere.png'"),
        (["{run}", "{run}/accuracy.png"], "folder of a run"),
        (["{run}/student", "{run}/accuracy.png", "--output", "answers.txt"], ".csv or .json"),
        (["{run}/student", "{run}/accuracy.png", "--output", "nowhere/answers.csv"], "no folder nowhere"),
        (["{run}/student", "{run}/accuracy.png", "--top_k", "0"], "at least 1"),
    ],
)
def test_mistakes_are_told(finished_run, capsys, arguments, told):
    assert predict(*(argument.format(run=finished_run) for argument in arguments)) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_no_name_is_a_formula():
    answer = {
        "file": "=cmd|' /C calc'!A0.png",
        "classes": [{"label": "-x", "score": 0.5}, {"label": "-1", "score": 0.1}],
    }
    (row,) = csv.DictReader(as_csv([answer]).splitlines())
    assert row["file"] == "'=cmd|' /C calc'!A0.png"
    assert (row["label_1"], row["score_1"], row["label_2"]) == ("'-x", "0.500000", "-1")


def test_what_looks_inverted_is_reported_and_inverted_only_if_asked_for(finished_run, tmp_path, capsys):
    model = tmp_path / "student"
    shutil.copytree(finished_run / "student", model)
    results = json.loads((model / "results.json").read_text())
    results["stream"]["source"] = "quickdraw100"
    (model / "results.json").write_text(json.dumps(results))
    paper = PIL.Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    paper.paste((0, 0, 0, 255), (20, 20, 30, 50))
    paper.save(tmp_path / "ink.png")
    PIL.Image.fromarray(np.pad(np.full((30, 10), 255, np.uint8), 20)).save(tmp_path / "light.png")

    def scores(*options):
        files = (tmp_path / "ink.png", tmp_path / "light.png")
        assert predict(model, *files, *options, "--output", tmp_path / "answers.json") == 0
        return [answer["classes"] for answer in json.loads((tmp_path / "answers.json").read_text())["answers"]]

    as_it_is = scores()
    errors = capsys.readouterr().err
    assert "1 of 2 images, such as " in errors and "ink.png: each looks inverted: dark on light" in errors
    assert "--as_drawings makes them like those" in errors
    white = PIL.Image.new("L", (64, 64), 255)  # the same on white
    white.paste(0, (20, 20, 30, 50))
    expected = pipeline("image-classification", model=str(model), device="cpu")(white, top_k=1)[0]
    assert as_it_is[0][0] == {"label": expected["label"], "score": pytest.approx(expected["score"], abs=1e-4)}
    inverted = scores("--as_drawings")
    assert "inverted" not in capsys.readouterr().err and inverted[0] != as_it_is[0]
