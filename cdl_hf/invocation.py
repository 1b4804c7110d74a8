"""How this program was started, and how to start the other commands in the same way: for hints and model cards."""

import sys
from pathlib import Path

# A script's folder comes first on sys.path, where evaluate.py would hide the library `evaluate`.
_SCRIPTS = {"evaluate": "evaluate_run"}


def how_to_start(command: str) -> list[str]:
    """The words that start a command: `python recipes/predict.py` if a recipe is running, else `cdl-hf predict`."""
    script = Path(sys.argv[0])
    if _is_recipe(script):
        return ["python", str(script.with_name(f"{_SCRIPTS.get(command, command)}.py"))]
    return ["cdl-hf", command]


def how_it_started(arguments: list[str]) -> list[str]:
    """The words that start this program with these arguments, for others.

    Of a recipe, paths below its checkout are relative to it, wherever the program was started.
    """
    script = Path(sys.argv[0]).absolute()
    if script.name.startswith("cdl-hf "):
        return [*script.name.split(), *arguments]
    if script.parent == Path(__file__).parent / "commands":
        return ["accelerate", "launch", "-m", f"cdl_hf.commands.{script.stem}", *arguments]
    words = ["accelerate", "launch", sys.argv[0], *arguments]
    if not _is_recipe(script):
        return words
    root = script.parents[1]
    return [str(Path(word).relative_to(root)) if Path(word).is_relative_to(root) else word for word in words]


def _is_recipe(script: Path) -> bool:
    return script.absolute().parent.name == "recipes"
