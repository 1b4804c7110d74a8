"""Report of finished runs: report.md with pictures, results.csv, and report.html, one self-contained page.

    cdl-hf report runs/compare --output_dir runs/report
    cdl-hf report runs/report --output_dir runs/report    # the same bytes
    cdl-hf report runs/compare --others anna/report bob/run/results.json --output_dir runs/report
    cdl-hf report runs/compare --output_dir runs/report --space my_space    # a folder that can be pushed as a Space

RUNS is a folder with the folders of runs, one such folder or its results.json, a report, or its runs.jsonl. Runs of
--others are in the same tables, marked by the folder that they come from, but in a chapter of their own where data,
backbones or images are not those of RUNS. All results are stored in the runs.jsonl of
the output folder, together with those that are there already, and the report is made of that file. If the output
folder has a findings.md, the report includes it; HTML in it is shown as text. Needs the extra [report].
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..cli import argument, cli_error, parse
from ..comparison.elsewhere import check_streams, read_elsewhere
from ..comparison.experiments import group_runs
from ..comparison.results import (
    RUNS,
    complete_results,
    latencies,
    measure_latencies,
    merge_runs,
    read_runs,
    write_runs,
)
from ..comparison.space import make_new, write_space
from ..console import ends_with_reader
from ..presets import reported_files


@dataclass
class ReportArguments:
    """The report."""

    runs: str = argument("Folder of the folders of runs, results.json of one, or a report", positional=True)
    output_dir: str = argument("Folder of the report")
    others: list[str] = argument("Runs from elsewhere, each as RUNS, to show beside the runs", [], unset="none")
    space: str | None = argument("New folder to write the page to as a static Space for the Hub, too", None)
    measure_latency: bool = argument(
        "Time one image on a saved model of each experiment, and store the latencies", False
    )


@ends_with_reader()
def main(argv: list[str] | None = None) -> None:
    (args,) = parse((ReportArguments,), argv, description=__doc__)
    if find_spec("markdown_it") is None:
        cli_error("markdown-it-py not installed: pip install 'cdl_hf[report]'")
    from ..comparison.rendering import write_report  # matplotlib takes a second

    source, output = Path(args.runs), Path(args.output_dir)
    try:
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output} is a file: name a folder with --output_dir")
        if args.space is not None:
            make_new(Path(args.space))
        runs = [run.portable() for run in (*read_runs(source), *read_elsewhere(map(Path, args.others)))]
        runs = merge_runs(read_runs(output / RUNS) if (output / RUNS).is_file() else [], runs)
        experiments = group_runs(complete_results(runs))
        check_streams(experiments)
        if args.measure_latency:
            from ..hub.saved_models import load_saved_model  # torch takes seconds

            runs = measure_latencies(runs, experiments, source, lambda folder: load_saved_model(folder).model)
        write_report(experiments, latencies(runs, experiments), output, reported_files())
        write_runs(output, runs)  # last: what cannot be reported is not kept
        if args.space is not None:
            write_space(output, Path(args.space))
    except ValueError as error:
        cli_error(str(error))
    except OSError as error:
        cli_error(f"cannot read or write {error.filename or output}: {error.strerror or error}")
    print(f"{output / 'report.md'}, report.html and results.csv report {len(experiments)} experiments")
    if args.space is not None:
        print(f"{args.space} is ready: upload it with `hf upload <name> {args.space} --repo-type space`")


if __name__ == "__main__":
    main()
