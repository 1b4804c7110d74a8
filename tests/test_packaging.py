"""setup.cfg names what is imported, and the extras that pages and messages name."""

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import cdl_hf

ROOT = Path(__file__).parents[1]
PACKAGE = Path(cdl_hf.__file__).parent
SETUP = configparser.ConfigParser(interpolation=None)
SETUP.read(ROOT / "setup.cfg")


def requirements(text: str) -> dict[str, str]:
    """Versions by distribution."""
    lines = [re.fullmatch(r"([\w-]+)(.*)", line.strip()).groups() for line in text.splitlines() if line.strip()]
    return {re.sub("[-_]+", "-", name.lower()): versions for name, versions in lines}


EXTRAS = {name: requirements(text) for name, text in SETUP["options.extras_require"].items()}
NEEDED = requirements(SETUP["options"]["install_requires"])


def imported(folder: Path) -> dict[str, Path]:
    """Names of the packages that are imported, each with a file that does."""
    found = {}
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.split(".")[0]: file for name in names}
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names}


@pytest.mark.parametrize("folder", [PACKAGE, ROOT / "recipes"], ids=lambda folder: folder.name)
def test_what_is_imported_is_required(folder):
    declared = NEEDED.keys() | {name for extra in EXTRAS.values() for name in extra}
    of_module = {
        module: {re.sub("[-_]+", "-", name.lower()) for name in names}
        for module, names in packages_distributions().items()
    }
    own = {"cdl_hf"} | {path.stem for path in folder.iterdir()}
    for name, file in imported(folder).items():
        if name not in own:
            assert of_module.get(name, {name}) & declared, f"{file} imports {name}"


def test_the_next_major_version_is_not_taken_untried():
    without = {name for name, versions in NEEDED.items() if not re.fullmatch(r" >= [\d.]+, < \d+", versions)}
    assert without == {"pyarrow"}  # four major versions a year; datasets bounds it


def test_extras_that_are_named_are_there():
    files = [ROOT / "README.md", *(ROOT / "accelerate_configs").glob("*.md"), *(ROOT / "recipes").rglob("*.py")]
    files += [*(ROOT / "recipes").rglob("*.md"), *PACKAGE.rglob("*.py")]
    named = {
        extra for file in files for extra in re.findall(r"(?:\.|cdl_hf)\[(\w+)\]'", file.read_text(encoding="utf-8"))
    }
    assert {"demo", "export", "report", "tests"} <= named <= EXTRAS.keys()


def test_the_wheel_holds_all_files_of_the_package():
    """CI runs this on the installed package too, where each pattern must have found something."""
    patterns = SETUP["options.package_data"]["cdl_hf"].split()
    packed = {pattern: set(PACKAGE.glob(pattern)) for pattern in patterns}
    assert all(packed.values()), packed
    files = {file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    pages = {PACKAGE / "README.md", PACKAGE / "distillation" / "README.md"}  # for those who read the code
    assert files - pages == set().union(*packed.values())
    assert not [file for file in files if file.parent in (PACKAGE / "data", PACKAGE / "models")]


def test_the_tests_need_what_the_extras_need():
    tested = [EXTRAS[name] for name in ("export", "report", "tensorboard")]
    assert all(EXTRAS["tests"].items() >= extra.items() for extra in tested)
