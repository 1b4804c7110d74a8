"""Runs of recipes/train.py over a grid of axes (a YAML file), and a table of their results.

    python recipes/compare.py recipes/quickdraw100/grid.yaml --output_dir runs/compare
    python recipes/compare.py recipes/quickdraw100/grid.yaml --output_dir runs/look --only coda_prompt none kdp seed0

A teacher is trained once and serves all its students; computed classifiers reuse what was trained. Finished runs are
skipped and interrupted ones resumed, so the same command continues where it was stopped. Runs that another process is
making, such as the same command on another machine, are left to it: the others come first, and they are waited for at
the end. A failed run is listed at the end (exit code 1) and does not stop the others.
table.md in the output folder is updated after every run. recipes/report.py makes a report of the runs.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from cdl_hf.cli import argument, cli_error, parse
from cdl_hf.comparison.grid import read_grid
from cdl_hf.comparison.runner import GridRunner, Interrupted, describe_jobs
from cdl_hf.training.interruptions import EX_TEMPFAIL

TRAIN = Path(__file__).with_name("train.py")


@dataclass
class CompareArguments:
    """The grid."""

    grid: str = argument("YAML file of axes; cdl_hf/comparison/grid.py describes its form", positional=True)
    output_dir: str = argument("Folder of all runs")
    only: list[str] = argument(
        "Values of axes to keep (seeds as seed0); an axis without any of them is kept whole", []
    )
    list_jobs: bool = argument("List the jobs and stop", False)
    job: int | None = argument(
        "Run only this job of --list_jobs, a teacher and what depends on it; for job arrays", None, min=1
    )


def main() -> None:
    (args,) = parse((CompareArguments,), description=__doc__)
    folder = Path(args.output_dir)
    try:
        jobs = read_grid(Path(args.grid), args.only)
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

    folder.mkdir(parents=True, exist_ok=True)
    runner = GridRunner(TRAIN, folder, runs)
    try:
        runner.run(runs if args.job is None else list(jobs.values())[args.job - 1])
    except Interrupted as error:
        print(f"compare.py: {error}; resume with the same command", file=sys.stderr)
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
