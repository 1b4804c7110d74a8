"""What a run was made with: versions of the packages, and the commit of this one's code."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from .. import __version__

PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "timm")


def versions() -> dict[str, str | None]:
    """Name -> version of this package, of Python and of [`PACKAGES`]; `commit` is that of the code."""
    packages = {package: version(package) for package in PACKAGES}
    return {"cdl_hf": __version__, "python": platform.python_version(), **packages, "commit": code_commit()}


def code_commit(folder: Path = Path(__file__).parents[1]) -> str | None:
    """The commit of the code, with `-dirty` after it where tracked files differ; None if it is no Git checkout.

    Args:
        folder: The package's. One that merely lies in somebody's repository, as in a virtual environment there, is
            no checkout.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):  # no Git, no repository, or not one of ours
        return None


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()
