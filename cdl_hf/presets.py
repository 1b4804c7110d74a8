"""Presets: arguments and grids that come with the package, each by the name of its data set and its own."""

import re
from collections.abc import Iterable
from pathlib import Path

_FOLDER = Path(__file__).parent / "assets" / "presets"
# Earlier versions had them in a checkout, at recipes/quickdraw100/l2p.yaml.
_NAME = re.compile(r"(?:(?:.*[/\\])?recipes[/\\])?(\w+)[/\\](\w+)(?:\.yaml)?")


def preset_or_file(name: str) -> Path:
    """The file at this path; where there is none, the preset of this name, such as `quickdraw100/l2p`."""
    if not Path(name).exists() and (match := _NAME.fullmatch(name)) is not None:
        preset = _FOLDER / match[1] / f"{match[2]}.yaml"
        if preset.is_file():
            return preset
    return Path(name)


def preset_names() -> list[str]:
    """The names of all presets; `quickdraw100/grid` is a grid for `cdl-hf compare`."""
    return [f"{file.parent.name}/{file.stem}" for file in sorted(_FOLDER.glob("*/*.yaml"))]


def reported_files() -> Iterable[Path]:
    """The files with the figures that papers report, each beside its presets."""
    return sorted(_FOLDER.glob("*/reported.csv"))
