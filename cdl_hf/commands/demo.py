"""A web page with the predictions of a run's teacher and student side by side, as they were after each task.

    cdl-hf demo runs/my_run                     # opens http://127.0.0.1:7860
    cdl-hf demo runs/my_run --space my_space    # writes a folder that can be pushed as a Space

Draw (with models of the bundled drawings) or choose an image, and choose the task: both models predict as they did
after it. Needs the extra [demo]; the page loads nothing from other sites.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..cli import argument, cli_error, parse
from ..console import ends_with_reader


@dataclass
class DemoArguments:
    """The run and its page."""

    run: str = argument("Output folder of a finished run, or of `cdl-hf learn` or `forget`", positional=True)
    host: str = argument("Address to listen at; 0.0.0.0 for every address of this machine", "127.0.0.1")
    port: int = argument("Port of the page on this machine", 7860, min=1, max=65535)
    share: bool = argument(
        "Whether the page also gets a public address for a few days, through gradio's servers", False
    )
    space: str | None = argument("New folder to write as a Space for the Hub, instead of opening the page", None)


@ends_with_reader()
def main(argv: list[str] | None = None) -> None:
    (args,) = parse((DemoArguments,), argv, description=__doc__)
    if find_spec("gradio") is None:
        cli_error("gradio is not installed: pip install 'cdl_hf[demo]'")
    run = Path(args.run)
    try:
        if args.space is None:
            serve_run(run, args)
        else:
            write_run(run, Path(args.space))
    except ValueError as error:
        cli_error(str(error))
    except OSError as error:
        cli_error(f"cannot read or write {error.filename or run}: {error.strerror or error}")


def serve_run(run: Path, args: DemoArguments) -> None:
    from ..demo.server import check_port, serve

    check_port(args.host, args.port)  # before models are loaded

    from ..demo.page import build_page
    from ..demo.run_facts import read_facts
    from ..demo.run_models import RunModels

    models = RunModels(run)
    serve(build_page(models, read_facts(run, models)), args.host, args.port, args.share)


def write_run(run: Path, folder: Path) -> None:
    from ..demo.space import write_space

    write_space(run, folder)
    print(f"{folder} is ready: upload it with `hf upload <name> {folder} --repo-type space`")


if __name__ == "__main__":
    main()
