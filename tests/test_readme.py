"""What README says can be done, can be done."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from pages import ROOT, block, blocks

from cdl_hf.catalogue import ALIGNED_HEAD, CLASSIFIERS, DISTILLATION_METHODS, PROMPT_METHODS

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_example_trains_and_its_model_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cdl_hf.training.results.baseline_accuracies", lambda *args: {})  # half of the time
    names = {}
    exec(block("README.md", "trainer.train()"), names)
    assert 10 < float(capsys.readouterr().out.splitlines()[-1]) <= 100  # a guess is right once in a hundred

    from cdl_hf import load_image_dataset

    load_image_dataset("quickdraw100")["test"][0]["image"].save("drawing.png")
    exec(block("README.md", "pipeline("), {})
    assert capsys.readouterr().out.count("'score'") == 3

    names["model"] = names["student"]
    exec(block("cdl_hf/README.md", "save_backbone=False"), names)
    assert names["model"] is not names["student"] and not names["model"].config.left_out


def test_the_python_example_is_reproducible():
    """Its models, which are made before the trainer, are drawn from a seed."""
    models = block("README.md", "trainer.train()").split("trainer = ")[0]
    made = []
    for state in (1, 2):
        torch.manual_seed(state)
        names = {}
        exec(models, names)
        made.append([p for role in ("teacher", "student") for p in names[role].parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


@pytest.mark.slow
def test_the_command_for_own_images_trains(tmp_path):
    """README's command, but with the bundled backbones, which are there offline, and for one epoch."""
    from cdl_hf import load_image_dataset

    drawings = load_image_dataset("quickdraw100")["train"]
    for row in range(0, 400, 8):  # five classes of ten drawings, as the data set has them in the order of its labels
        image, label = drawings[row]["image"], drawings[row]["label"]
        (tmp_path / "my_images" / f"class {label}").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "my_images" / f"class {label}" / f"{row}.png")
    section = README.split("### Your own images")[1]
    words = shlex.split(re.search(r"```\n(accelerate launch .*?)```", section, re.DOTALL)[1].replace("\\\n", " "))
    for backbone in ("--teacher", "--student"):
        place = words.index(backbone)
        del words[place : place + 2]
    words[words.index("recipes/train.py")] = str(ROOT / "recipes" / "train.py")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
    more = ["--num_train_epochs", "1", "--dataloader_num_workers", "0", "--output_dir", "run"]
    done = subprocess.run([*launcher, *more], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert sum(results["stream"]["train"]) == 40 and sum(results["stream"]["test"]) == 10
    assert len(results["student"]["accuracy_matrix"]) == 5
    assert results["args"]["normalization"] == "backbone"
    assert (tmp_path / "run" / "split.yaml").read_text().count("class ") == 40
    assert "pixels mean" in done.stdout


def test_the_promised_commands_are_there():
    for command in ("pip install . && accelerate launch recipes/train.py", "pip install '.[tests]' && pytest"):
        assert command in "".join(blocks("README.md", "")).splitlines()


def test_the_tables_of_methods_are_those_of_the_catalogue():
    section = README.split("## Methods")[1].split("## Results")[0]
    tables = [re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|", table, re.MULTILINE) for table in section.split("|---|")]
    methods = [{f"`{key}`": each for key, each in table.items()} for table in (PROMPT_METHODS, DISTILLATION_METHODS)]
    linear, *computed = {f"`{key}`": each for key, each in CLASSIFIERS.items()}.items()
    methods.append(dict([linear, ("`linear` with `--classifier_alignment`", ALIGNED_HEAD), *computed]))
    assert [rows for rows in tables if rows] == [
        [
            (name, f"[{each.title}]({each.paper.url})" if each.paper else each.title, each.description)
            for name, each in table.items()
        ]
        for table in methods
    ]


def test_what_is_checked_against_the_authors_code_has_their_figures():
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| (authors' code|paper)?[^|]*\|$", README.split("## Methods")[1], re.MULTILINE
    )
    checked = {name for name, against in rows if against == "authors' code"} - {"linear"}
    figures = {file.stem for file in (ROOT / "tests" / "reference_figures").glob("*.npz")}
    recorded = {name for file in figures for name in file.split("-")[:2]} - {"cdl_prompt"}  # computed from the paper
    assert checked == recorded


def test_the_results_are_those_of_the_report():
    report = (ROOT / "recipes" / "quickdraw100" / "report" / "report.md").read_text(encoding="utf-8")
    results = re.findall(r"\d+\.\d+ ± \d+\.\d+", README.split("## Results")[1])
    assert len(results) == 15 and all(re.search(rf"\| (\*\*)?{re.escape(each)}", report) for each in results)
