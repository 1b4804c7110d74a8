"""The public names: what `dir`, `help`, `import *` and a type checker see of the package."""

import ast
import importlib
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import cdl_hf

PACKAGES = ["cdl_hf", "cdl_hf.models", "cdl_hf.training"]


@pytest.mark.parametrize("name", PACKAGES)
def test_the_type_checker_sees_the_names_that_python_imports(name):
    package = importlib.import_module(name)
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {alias.name: "." * (line.level - 1) + line.module for line in block.body for alias in line.names}
    (homes,) = (ast.literal_eval(node) for node in ast.walk(block.orelse[0]) if isinstance(node, ast.Dict))
    assert typed == homes
    assert set(package.__all__) == {*homes, *(["__version__"] if name == "cdl_hf" else [])}
    assert set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert getattr(package, public) is not None
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_import_star():
    names = {}
    exec("from cdl_hf import *", names)
    assert set(cdl_hf.__all__) <= names.keys()
    assert names["METHODS"]["kd"].__name__ == "KD"


def test_help_shows_the_public_classes():
    page = pydoc.plain(pydoc.render_doc(cdl_hf))
    for name in ("class ContinualDistillationTrainer", "class CDLConfig", "class TaskStream", "load_backbone("):
        assert name in page


def test_the_import_is_light():
    code = (
        "import sys, cdl_hf, cdl_hf.cli, cdl_hf.arguments.config; print(*{'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
