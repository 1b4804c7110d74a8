"""The files that an addition changes: toy ones are registered as a contributor would, and run from end to end."""

import contextlib
import dataclasses
import inspect
import io
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import run_recipe
from torch.nn import Parameter
from torch.nn import functional as F
from transformers import initialization as init

from cdl_hf import catalogue
from cdl_hf.arguments import config as arguments
from cdl_hf.arguments import sets as argument_sets
from cdl_hf.catalogue import Method
from cdl_hf.comparison.experiments import group_runs
from cdl_hf.comparison.rendering import as_csv
from cdl_hf.comparison.results import complete_results, read_runs
from cdl_hf.distillation import logit_methods, methods
from cdl_hf.evaluation import Metric, accuracy_matrix
from cdl_hf.models import classifiers, configuration_prompt_vit, prompt_pools
from cdl_hf.models.prefix_attention import Prefix
from cdl_hf.runs import fingerprint

ROOT = Path(__file__).parents[1]
PACKAGE = Path(catalogue.__file__).parent


class ToyPrompt(prompt_pools.PromptPool):
    needs_query = False

    def __init__(self, config, embed_dim, query_dim, depth):
        super().__init__(config, embed_dim, query_dim, depth)
        self.prompts = Parameter(torch.empty(len(self.blocks), config.prompt_length, embed_dim))

    def init_weights(self):
        init.uniform_(self.prompts)

    def forward(self, query, block, task_id):
        if block not in self.blocks:
            return None, None
        key, value = self.prompts[self.blocks.index(block)].chunk(2)
        return Prefix(key[None], value[None]), None


class ToyKD(logit_methods.KD):
    def soft_loss(self, student_logits, teacher_logits, labels):
        return F.mse_loss(student_logits, teacher_logits)


class ToyClassifier(classifiers.Classifier):
    def __init__(self, config, embed_dim):
        super().__init__()
        self.register_buffer("sums", torch.empty(config.num_classes, embed_dim))

    def init_weights(self):
        init.zeros_(self.sums)

    @torch.no_grad()
    def fit(self, features, labels):
        self.sums.index_add_(0, labels, features.float())

    def forward(self, features, num_classes):
        return features.float() @ self.sums[:num_classes].T


class Additions:
    """Registers toy entries, and keeps the files in which a contributor would have written them."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self._patch = patch
        self.files: dict[str, set[str]] = {}

    def define(self, addition: str, base: type) -> None:
        """A class stands beside the one that it extends."""
        self._note(addition, inspect.getmodule(base))

    def register(self, addition: str, module: ModuleType, table: str, name: str, entry: object) -> None:
        entries = getattr(module, table)
        if isinstance(entries, dict):
            self._patch.setitem(entries, name, entry)
        else:
            self._patch.setattr(module, table, (*entries, name))
        self._note(addition, module)

    def _note(self, addition: str, module: ModuleType) -> None:
        file = Path(module.__file__).relative_to(PACKAGE).as_posix()
        self.files.setdefault(addition, set()).add(file)


@pytest.fixture(scope="module")
def additions():
    with pytest.MonkeyPatch.context() as patch:
        added = Additions(patch)
        added.define("prompt method", prompt_pools.PromptPool)
        added.register("prompt method", prompt_pools, "POOLS", "toy_prompt", ToyPrompt)
        defaults = {"prompt_length": 4, "prompt_blocks": [1]}
        added.register("prompt method", configuration_prompt_vit, "PROMPT_DEFAULTS", "toy_prompt", defaults)
        added.register("prompt method", catalogue, "PROMPT_METHODS", "toy_prompt", Method("Toy", "a test"))

        added.define("distillation method", logit_methods.KD)
        added.register("distillation method", methods, "METHODS", "toy_kd", ToyKD)
        added.register("distillation method", catalogue, "DISTILLATION_METHODS", "toy_kd", Method("ToyKD", "a test"))

        added.define("classifier", classifiers.Classifier)
        added.register("classifier", classifiers, "CLASSIFIERS", "toy_sums", ToyClassifier)
        added.register("classifier", configuration_prompt_vit, "HEADS", "toy_sums", None)
        added.register("classifier", catalogue, "CLASSIFIERS", "toy_sums", Method("toy sums", "a test"))

        worst = Metric("worst task", "%", lambda matrix: min(matrix.rows[-1]), is_headline=True)
        added.register("metric", accuracy_matrix, "METRICS", "worst_task", worst)
        yield added


@pytest.fixture(scope="module")
def run(additions, pair, drawings, tmp_path_factory) -> Path:
    """The folder of a run of train.py with all of them."""
    folder = tmp_path_factory.mktemp("toys") / "run"
    teacher, student = pair
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_recipe(
            "train",
            *("--dataset", drawings, "--teacher", teacher, "--student", student, "--num_tasks", 2),
            *("--prompt_method", "toy_prompt", "--distillation", "toy_kd", "--classifier", "toy_sums"),
            *("--num_train_epochs", 1, "--batch_size", 7, "--output_dir", folder),
        )
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder


def documented(addition: str) -> set[str]:
    """Files that the page on how the package is built names for an addition; a folder stands for one of its files."""
    page = (ROOT / "cdl_hf" / "README.md").read_text(encoding="utf-8")
    (files,) = re.findall(rf"^\| {addition} \| (.+) \|$", page, re.MULTILINE)
    return set(re.findall(r"`([\w/]+(?:\.py|/))`", files))


@pytest.mark.parametrize(
    ("addition", "count"), [("prompt method", 3), ("distillation method", 3), ("classifier", 3), ("metric", 1)]
)
def test_an_addition_changes_the_files_that_the_pages_name(additions, addition, count):
    files = additions.files[addition]
    assert len(files) == count
    named = documented(addition)
    assert len(named) == count and all(any(file.startswith(name) for name in named) for file in files)
    contributing = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (told,) = re.findall(rf"^\|[^|]*{addition}[^|]*\| (\d)", contributing, re.MULTILINE)
    assert int(told) == count


def test_toy_methods_are_trained_saved_and_described(run):
    results = json.loads((run / "results.json").read_text())
    for role in ("teacher", "student"):
        assert results[role]["worst_task"] == min(results[role]["accuracy_matrix"][-1])
        assert json.loads((run / role / "config.json").read_text())["prompt_method"] == "toy_prompt"
    terms = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("soft_loss" in line for line in terms)
    card = (run / "student" / "README.md").read_text(encoding="utf-8")
    for words in ("steered by Toy prompts", "ToyKD (a test)", "toy sums (a test)", "| Worst task (%) |"):
        assert words in card
    assert re.search(r"^worst task \(%\) +\d+\.\d\d +\d+\.\d\d$", (run / "printed.txt").read_text(), re.MULTILINE)


def test_reports_read_toy_methods(run):
    (teacher, student) = group_runs(complete_results(read_runs(run.parent)))
    header, *rows = as_csv([teacher, student], {}).splitlines()
    assert "worst_task" in header.split(",")
    assert all("toy_prompt" in row and "toy_sums" in row for row in rows) and "toy_kd" in rows[1]


def test_toy_prompts_are_refused_where_they_do_not_fit(additions):
    with pytest.raises(ValueError, match="'cdl_prompt' maps prompts .* and 'toy_prompt' takes no query"):
        tiny_model("toy_prompt", "cdl_prompt")


def test_the_help_names_toy_methods(additions, capsys):
    with pytest.raises(SystemExit):
        run_recipe("train", "--help")
    page = capsys.readouterr().out
    for words in ("toy_prompt +Toy: a test", "toy_kd +ToyKD: a test", "toy_sums +toy sums: a test"):
        assert re.search(words, page)


def test_an_option_without_effect_on_the_result_is_one_field(monkeypatch, drawings):
    """Its field and the place that reads it are all that it takes: no list names it."""
    option = arguments.argument(1, "A toy", affects="nothing")
    config = dataclasses.make_dataclass("Config", [("toy_option", int, option)], bases=(arguments.CDLConfig,))
    monkeypatch.setattr(argument_sets, "RUN", (*arguments.RUN[:3], config, *arguments.RUN[4:]))
    assert argument_sets.affecting("nothing") >= {"toy_option", "report_to"}
    (note,) = fingerprint.compare({"toy_option": 1}, {"toy_option": 2})[:1]
    assert "without effect on the result: toy_option was 1, is now 2" in note
    assert documented("option") == {"arguments/config.py", "arguments/stream.py"}  # and where it is used
