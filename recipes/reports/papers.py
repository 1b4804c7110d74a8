"""Figures that the papers report, from the pages in the folders of the presets."""

import re
from pathlib import Path

from cdl_hf.cli import parse, to_dict
from cdl_hf.training.arguments import RUN

RECIPES = Path(__file__).parents[1]


def reported_figures(source: str, teacher: str, student: str) -> dict[tuple[str, str | None], str]:
    """`A_N / F_N` by prompt method and learner (`None`: the teacher), from the page in the folder of the presets."""
    folder, found = RECIPES / source, {}
    for path in sorted(folder.glob("*_to_*.yaml")):
        preset = to_dict(parse(RUN, ["--config", str(path)]))
        if (preset["teacher"], preset["student"]) == (teacher, student):
            large, small = (size[0].upper() for size in path.stem.split("_to_"))
            alone = {f"ViT-{large} alone": None, f"ViT-{small} alone": "none"}
            row = rf"^\| {path.stem} \| `(\w+)` \| (?:`(\w+)`[^|]*|([^|`]+)) \| ([\d.]+ / [\d.]+) \|"
            page = (folder / "README.md").read_text(encoding="utf-8")
            for prompts, method, model, reported in re.findall(row, page, re.MULTILINE):
                found.setdefault((prompts, method or alone[model]), reported)
    return found
