"""The command `cdl-hf`: its subcommands, each a module of the same name with a `main(argv=None)`.

A recipe of a checkout, such as recipes/train.py, calls the same `main`; for several processes there is
`accelerate launch -m cdl_hf.commands.train`. Nothing heavy is imported here, so that `cdl-hf --help` takes no time.
"""

import sys
from importlib import import_module
from pathlib import Path

from ..cli import cli_error, did_you_mean
from ..console import ends_with_reader
from ..version import __version__

COMMANDS = {
    "train": "train a teacher and a student on a stream of tasks",
    "compare": "train over a grid of methods, class orders and seeds",
    "report": "make a report with tables and plots of finished runs",
    "evaluate": "measure accuracy, confusion, calibration and speed of a run or a saved model",
    "learn": "teach a finished model further classes, without its earlier images",
    "forget": "remove classes from a finished model",
    "predict": "classify image files with a saved model",
    "export": "export a saved model to ONNX and torch.export",
    "push": "push the models of a finished run to the Hub",
    "demo": "show teacher and student of a run side by side on a web page",
    "pretrain": "pre-train a backbone, for a domain that has none",
}


@ends_with_reader()
def main() -> None:
    """Calls the subcommand that the command line names; it sees `cdl-hf NAME` as its program's name."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(_help_page())
    elif name == "--version":
        print(__version__)
    elif name in COMMANDS:
        sys.argv = [str(Path(sys.argv[0]).with_name(f"cdl-hf {name}")), *arguments]
        import_module(f".{name}", __name__).main()
    else:
        cli_error(f"unknown command {name!r}{did_you_mean(name, COMMANDS)} (cdl-hf --help lists all commands)")


def _help_page() -> str:
    lines = [f"  {name:<12}{described}" for name, described in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cdl-hf COMMAND [arguments]",
            "",
            "Continual distillation learning with prompted Vision Transformers. `cdl-hf train` makes a first run.",
            "",
            "commands (cdl-hf COMMAND --help lists the arguments of each):",
            *lines,
            "",
            "options:",
            "  -h, --help  show this page",
            "  --version   show the version of the package",
        ]
    )
