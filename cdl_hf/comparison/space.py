"""A static Space for the Hub: the page of a report, and the README that says so."""

from pathlib import Path

import yaml

from ..utils import write_text


def make_new(folder: Path) -> None:
    """Makes a folder, before the work whose result it gets; an empty one may be there from an earlier try.

    Raises:
        ValueError: The folder has files, or is a file.
        OSError: It cannot be made.
    """
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise ValueError(f"{folder} exists; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)


def write_space(report: Path, folder: Path) -> None:
    """Writes a folder that can be pushed as a Space.

    Args:
        report: Folder of a finished report.
        folder: A new folder: see [`make_new`].
    """
    title = (report / "report.md").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    about = {
        **{"title": title.replace("\\", ""), "colorFrom": "blue", "colorTo": "yellow", "sdk": "static"},
        **{"app_file": "index.html", "pinned": False},
    }
    header = yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=1000)
    text = (
        "A comparison of teachers and students that have learned streams of tasks (continual distillation learning)."
    )
    write_text(folder / "README.md", f"---\n{header}---\n\n{text}\n")
    write_text(folder / "index.html", (report / "report.html").read_text(encoding="utf-8"))
