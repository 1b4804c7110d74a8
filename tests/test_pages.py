"""Every page of the project: its links, its Python, its commands and its lists."""

import json
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from pages import PAGES, ROOT, block, blocks, name_of, prose
from tiny_runs import load_recipe

import cdl_hf
from cdl_hf.arguments.config import RUN
from cdl_hf.cli import parse, to_yaml
from cdl_hf.comparison.statistics import MeanStd, paired_difference

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
COMMAND = re.compile(r"^ *(\w+=\S+ +)*(python|accelerate|torchrun) .*$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in words}


def exists(target: Path) -> bool:
    """A module of the package may be where the package is installed, without sources next to the tests."""
    installed = Path(cdl_hf.__file__).parents[1]
    target = target.resolve()
    return target.exists() or (target.is_relative_to(ROOT) and (installed / target.relative_to(ROOT)).exists())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    links = [link.partition("#") for link in LINK.findall(prose(page)) if not link.startswith("http")]
    missing = []
    for path, _, anchor in links:
        target = page.parent / path if path else page
        if not exists(target) or (anchor and anchor not in anchors(target)):
            missing.append(f"{path}#{anchor}")
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_is_closed_and_compiles(page):
    assert page.read_text(encoding="utf-8").count("```") % 2 == 0
    for code in blocks(name_of(page)):
        compile(code, name_of(page), "exec")


def commands() -> list:
    """Each command on a page that runs a recipe, as (environment and launcher, recipe, arguments)."""
    found = []
    for page in PAGES:
        for code in blocks(name_of(page), "") + blocks(name_of(page), "bash"):
            for line in (match[0].strip() for match in COMMAND.finditer(code.replace("\\\n", " "))):
                words = shlex.split(line, comments=True)
                place = next((i for i, word in enumerate(words) if re.fullmatch(r"recipes/\w+\.py", word)), None)
                if place is not None:
                    found.append(pytest.param(words[:place], words[place], words[place + 1 :], id=line))
    return found


class Parsed(Exception):
    """The arguments of a recipe are read, and right."""


@pytest.mark.parametrize(("launcher", "recipe", "arguments"), commands())
def test_commands_are_understood(launcher, recipe, arguments, tmp_path, monkeypatch):
    """Up to where a recipe has read its arguments."""
    for name in ("recipes", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs" / "my_run").mkdir(parents=True)
    (tmp_path / "runs" / "my_run" / "args.yaml").write_text(to_yaml(parse(RUN, [])))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "recipes")
    module = load_recipe(Path(recipe).stem)

    def parse_and_stop(*given, **options):
        parse(*given, **options)
        raise Parsed

    monkeypatch.setattr(sys.modules[module.main.__module__], "parse", parse_and_stop)
    monkeypatch.setattr("sys.argv", [recipe, *arguments])
    if "--config_file" in launcher:
        assert Path(launcher[launcher.index("--config_file") + 1]).is_file()
    with pytest.raises(Parsed):
        module.main()


def test_commands_are_found():
    assert len(commands()) > 30


def test_recipes_are_listed():
    listed = set(re.findall(r"^\|.*\| `(\w+\.py)` \|", (ROOT / "recipes" / "README.md").read_text(), re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "recipes").glob("*.py")}


def test_earlier_names_of_arguments_are_listed():
    text = (ROOT / "cdl_hf" / "README.md").read_text(encoding="utf-8")
    aliases = {
        (alias, field.name)
        for argument_class in RUN
        for field in fields(argument_class)
        for alias in field.metadata.get("aliases", ())
    }
    listed = re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", text.split("## Stored formats")[1], re.MULTILINE)
    assert set(listed) == aliases and len(listed) == len(aliases)


def test_the_metric(monkeypatch, capsys):
    monkeypatch.chdir(Path(cdl_hf.__file__).parents[1])  # the checkout, or where the package is installed
    metric = block("cdl_hf/README.md", "evaluate.load")
    exec(metric, {})
    assert capsys.readouterr().out.strip() == metric.strip().splitlines()[-1].split("# ")[1]


def test_the_callback():
    names = {}
    exec(block("cdl_hf/README.md", "ContinualCallback"), names)
    assert len(names["callbacks"]) == 2


def test_figures_of_drift_compensation_are_the_stored_ones():
    folder = ROOT / "recipes" / "quickdraw100"
    accuracy = json.loads((folder / "drift_compensation.json").read_text(encoding="utf-8"))["accuracy"]
    page = (folder / "README.md").read_text(encoding="utf-8")
    for method, prompts in (("l2p", "L2P"), ("coda_prompt", "CODA-Prompt")):
        for head, title in (("aligned", "aligned"), ("ncm", "nearest class mean")):
            plain, compensated = (accuracy[method][name] for name in (head, f"{head}, compensated"))
            difference = paired_difference(compensated, plain)
            row = f"| {prompts}, {title} | {MeanStd.of(plain)} | {MeanStd.of(compensated)} | {difference} |"
            assert row in page
