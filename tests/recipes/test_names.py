"""Names of the recipes: a script's folder comes first on sys.path, so its name hides a library of that name."""

import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted({path.stem for path in (*RECIPES.glob("*.py"), *(file.parent for file in RECIPES.glob("*/*.py")))})


@pytest.mark.parametrize("name", NAMES)
def test_no_recipe_hides_a_library(name):
    # where libraries are installed: some, such as onnxruntime, put further folders of theirs on sys.path when imported
    installed = [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
    assert name not in sys.stdlib_module_names
    assert PathFinder.find_spec(name, installed) is None


def test_a_library_is_found():
    assert PathFinder.find_spec("evaluate", [sysconfig.get_paths()["purelib"]]) is not None
