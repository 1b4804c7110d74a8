"""The Markdown pages of the project, and the blocks of code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("cdl_hf", "recipes", "accelerate_configs", "tests", ".github")
PAGES = sorted({*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))})
PAGES = [page for page in PAGES if not page.name.endswith("_template.md")]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: str, language: str = "python") -> list[str]:
    """The code in this language on a page; `""` for the blocks without a language, which are commands."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [code for _, written, code in BLOCK.findall(text) if written == language]


def block(page: str, words: str) -> str:
    """The first block of Python on a page with these words."""
    return next(code for code in blocks(page) if words in code)


def prose(page: Path) -> str:
    """A page without its code, in blocks or in lines."""
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text(encoding="utf-8")))
