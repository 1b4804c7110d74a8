"""Pushes the teacher and the student of a finished run to the Hub, as <name>-teacher and <name>-student.

    hf auth login
    cdl-hf push runs/my_run --hub_model_id me/drawings

Exit code: 0 all is pushed; 2 a mistake in the arguments; 69 (EX_UNAVAILABLE) the Hub did not accept it, try again.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from ..arguments.config import RepositoryArguments
from ..cli import argument, cli_error, parse
from ..console import ends_with_reader
from ..runs.interruptions import EX_UNAVAILABLE


@dataclass
class PushArguments:
    """The run."""

    output_dir: str = argument("Output folder of the run", positional=True)


@ends_with_reader()
def main(argv: list[str] | None = None) -> None:
    args, hub_args = parse((PushArguments, RepositoryArguments), argv, description=__doc__)

    from ..hub.push import PushError, push_run  # takes seconds

    try:
        addresses = push_run(
            Path(args.output_dir),
            hub_args.hub_model_id,
            private=hub_args.hub_private,
            task_revisions=hub_args.hub_task_revisions,
        )
    except PushError as error:
        print(error, file=sys.stderr)
        sys.exit(EX_UNAVAILABLE)
    except ValueError as error:
        cli_error(str(error))
    for role, address in addresses.items():
        print(f"{role}: {address}")


if __name__ == "__main__":
    main()
