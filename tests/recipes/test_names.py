"""Names of the recipes: a script's folder comes first on sys.path, so its name hides a library of that name."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted({path.stem for path in (*RECIPES.glob("*.py"), *(file.parent for file in RECIPES.glob("*/*.py")))})


@pytest.mark.parametrize("name", NAMES)
def test_no_recipe_hides_a_library(name):
    elsewhere = [place for place in sys.path if Path(place).resolve() != RECIPES]
    assert name not in sys.stdlib_module_names
    assert PathFinder.find_spec(name, elsewhere) is None


def test_a_library_is_found():
    assert PathFinder.find_spec("evaluate", sys.path) is not None
