"""Runs of `cdl-hf train` over a grid of axes (a YAML file), and a table of their results.

    cdl-hf compare quickdraw100/grid --output_dir runs/compare
    cdl-hf compare quickdraw100/grid --output_dir runs/look --only coda_prompt none kdp seed0

A teacher is trained once and serves all its students; computed classifiers reuse what was trained. Finished runs are
skipped and interrupted ones resumed, so the same command continues where it was stopped. Runs that another process is
making, such as the same command on another machine, are left to it: the others come first, and they are waited for at
the end. A failed run is listed at the end (exit code 1) and does not stop the others.
table.md in the output folder is updated after every run. `cdl-hf report` makes a report of the runs.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from ..cli import argument, cli_error, parse, program_name
from ..comparison.grid import read_grid
from ..comparison.runner import GridRunner, Interrupted, describe_jobs
from ..console import ends_with_reader
from ..presets import preset_or_file
from ..runs.interruptions import EX_TEMPFAIL


@dataclass
class CompareArguments:
    """The grid."""

    grid: str = argument(
        "YAML file of axes, or quickdraw100/grid; cdl_hf/comparison/grid.py describes its form", positional=True
    )
    output_dir: str = argument("Folder of all runs")
    only: list[str] = argument(
        "Values of axes to keep (seeds as seed0); an axis without any of them is kept whole", []
    )
    list_jobs: bool = argument("List the jobs and stop", False)
    job: int | None = argument(
        "Run only this job of --list_jobs, a teacher and what depends on it; for job arrays", None, min=1
    )


@ends_with_reader()
def main(argv: list[str] | None = None) -> None:
    (args,) = parse((CompareArguments,), argv, description=__doc__)
    folder = Path(args.output_dir)
    try:
        jobs = read_grid(preset_or_file(args.grid), args.only)
        if args.job is not None and args.job > len(jobs):
            raise ValueError(f"--job {args.job}: there are {len(jobs)} jobs (--list_jobs lists them)")
    except ValueError as error:
        cli_error(str(error))
    runs = [run for job in jobs.values() for run in job]
    for run in runs:
        run.resolved(folder)  # mistakes in the file are reported before anything is trained
    if args.list_jobs:
        print("\n".join(f"{number:3d}  {line}" for number, line in enumerate(describe_jobs(jobs, folder), 1)))
        return

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cli_error(f"output_dir {folder} cannot be made: {error.strerror}")
    runner = GridRunner(folder, runs)
    try:
        runner.run(runs if args.job is None else list(jobs.values())[args.job - 1])
    except Interrupted as error:
        print(f"{program_name()}: {error}; resume with the same command", file=sys.stderr)
        sys.exit(EX_TEMPFAIL)
    print(runner.table())
    for kind in ("refused", "left out", "failed"):
        names = [name for name, problem in runner.problems.items() if problem.kind == kind]
        if names:
            print(f"\n{kind}:", *(f"  {name}: {runner.problems[name].reason}" for name in names), sep="\n")
    if any(problem.kind != "refused" for problem in runner.problems.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
