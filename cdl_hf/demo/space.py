"""A Space for the Hub: the models and states of a run, the package without its data, and its requirements."""

import json
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import yaml

import cdl_hf

from ..escaping import portable
from ..utils import atomic_folder
from .run_facts import RESULTS, read_results
from .run_models import RunModels

PACKAGES = (  # that a Space needs besides gradio
    *("accelerate", "datasets", "filelock", "huggingface_hub", "jinja2", "numpy", "pyyaml", "safetensors", "timm"),
    *("torch", "torchvision", "transformers"),
)
APP = """\
from pathlib import Path

from cdl_hf.demo.page import build_page
from cdl_hf.demo.run_facts import read_facts
from cdl_hf.demo.run_models import RunModels
from cdl_hf.demo.server import launch

run = Path("run")
models = RunModels(run)
launch(build_page(models, read_facts(run, models)))
"""
PAGE = """\
---
title: A teacher and its student, task by task
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
---

A teacher and a student that have learned a stream of tasks (continual distillation learning).
Choose a task to see what both knew after it.
"""


def write_space(run: Path, folder: Path) -> None:
    """Writes a folder that can be pushed as a Space.

    Raises:
        ValueError: The folder has files, or the run cannot be shown.
        OSError: It cannot be written; nothing of it is left.
    """
    models = RunModels(run)
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise ValueError(f"{folder} exists; name a new folder")
    if find_spec("gradio") is None:
        raise ValueError("gradio is not installed, and a Space must name its version: pip install 'cdl_hf[demo]'")
    with atomic_folder(folder) as place:
        _fill(place, run, models)


def _fill(folder: Path, run: Path, models: RunModels) -> None:
    package = Path(cdl_hf.__file__).parent
    unwanted = shutil.ignore_patterns("__pycache__", "assets", "*.png", "checkpoints")
    shutil.copytree(package, folder / "cdl_hf", ignore=unwanted)
    (folder / "run").mkdir()
    for part in (*models.saved, "states"):
        if (run / part).is_dir():
            shutil.copytree(run / part, folder / "run" / part, ignore=shutil.ignore_patterns("*.npy", "README.md"))
    # Only what the page reads, without the path of the data.
    args = {**models.args, "dataset": portable(models.args["dataset"])}
    (folder / "run" / "args.yaml").write_text(yaml.safe_dump(args), encoding="utf-8")
    if results := read_results(run):
        shown = {name: results[name] for name in ("name", "date", *models.saved) if name in results}
        (folder / "run" / RESULTS).write_text(json.dumps(shown), encoding="utf-8")
    (folder / "app.py").write_text(APP, encoding="utf-8")
    lines = (f"{name}=={version(name).split('+')[0]}\n" for name in PACKAGES)
    (folder / "requirements.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "README.md").write_text(PAGE.format(gradio=version("gradio")), encoding="utf-8")
