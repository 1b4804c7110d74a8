"""Pushes the teacher and the student of a finished run to the Hub, as <name>-teacher and <name>-student.

    hf auth login
    python recipes/push.py runs/my_run --hub_model_id me/drawings

Exit code: 0 all is there; 2 a mistake in the arguments; 69 (EX_UNAVAILABLE) the Hub did not take it, try again.
"""

import argparse
import sys
from pathlib import Path

from cdl_hf.cli import cli_error
from cdl_hf.training.interruptions import EX_UNAVAILABLE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="output folder of the run")
    parser.add_argument("--hub_model_id", help="owner/name or name; the folder's name if not given")
    parser.add_argument("--hub_private", action="store_true", help="make the repositories private")
    parser.add_argument(
        "--hub_task_revisions",
        action="store_true",
        help="push the models as they were after each task, too, as branches task-01, task-02, ...",
    )
    args = parser.parse_args()

    from cdl_hf.hub.push import PushError, push_run  # takes seconds

    try:
        addresses = push_run(
            args.output_dir, args.hub_model_id, private=args.hub_private, task_revisions=args.hub_task_revisions
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
