"""What the README says can be done, can be done."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cdl_hf

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "accelerate_configs" / "README.md", *sorted((ROOT / "recipes").rglob("*.md"))]


def example(words: str):
    """The first block of Python with these words."""
    return next(block for block in EXAMPLES if words in block)


@pytest.mark.slow
def test_the_python_example_trains_and_its_model_answers(tmp_path, monkeypatch, capsys):
    training, using, saving = (example(words) for words in ("trainer.train()", "pipeline(", "save_backbone=False"))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(training, names)
    assert 10 < float(capsys.readouterr().out.splitlines()[-1]) <= 100  # a guess is right once in a hundred

    from cdl_hf import load_image_dataset

    load_image_dataset("quickdraw100")["test"][0]["image"].save("drawing.png")
    exec(using, {})
    assert capsys.readouterr().out.count("'score'") == 3

    names["model"] = names["student"]
    exec(saving, names)
    assert names["model"] is not names["student"] and not names["model"].config.left_out


def test_the_python_example_is_reproducible():
    """Its models, which are made before the trainer, are drawn from a seed."""
    models = example("trainer.train()").split("trainer = ")[0]
    made = []
    for state in (1, 2):
        torch.manual_seed(state)
        names = {}
        exec(models, names)
        made.append([p for role in ("teacher", "student") for p in names[role].parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_the_metric_and_the_callback(monkeypatch, capsys):
    monkeypatch.chdir(Path(cdl_hf.__file__).parents[1])  # the checkout, or where the package is installed
    metric = example("evaluate.load")
    exec(metric, {})
    assert capsys.readouterr().out.strip() == metric.strip().splitlines()[-1].split("# ")[1]
    names = {}
    exec(example("ContinualCallback"), names)
    assert len(names["callbacks"]) == 2


@pytest.mark.slow
def test_the_walk_through_trains_on_a_folder_of_images(tmp_path):
    """The README's command, but with the bundled backbones, which are there offline, and for one epoch."""
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    assert not missing


def test_code_blocks_are_closed_and_are_python():
    assert README.count("```") % 2 == 0
    for example in EXAMPLES:
        compile(example, "README.md", "exec")
