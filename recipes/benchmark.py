"""Speed and memory of training and evaluation, for any arguments of train.py, with random weights.

    python recipes/benchmark.py --teacher vit_small_patch16_224 --student vit_tiny_patch16_224 --batch_size 64
    python recipes/benchmark.py --roofline --batch_size 64     # upper bounds for an A100 and an H100, computed
    python recipes/benchmark.py --stream                       # building a stream over ten million rows
    python recipes/benchmark.py --long_stream                  # RanPAC over 100 tasks of one class of drawings
    python recipes/benchmark.py --input --dataloader_num_workers 2        # reading and augmenting images
    python recipes/benchmark.py --growth                       # steps of the last task against those of the first
    python recipes/benchmark.py --startup --teacher FOLDER --student FOLDER    # time until train.py's first step

Training and evaluation steps are compared with a plain implementation (cdl_hf/benchmark/plain.py): separate query
passes, gradients for all weights, attention written out, a full last block. The operations of a step are those of its
matrix products; the linear rate is that of the teacher's widest layer on this machine, measured in the same rounds.
On a CPU with one thread (`taskset -c 0 python ...`) the processor time is measured, which other load does not affect.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cdl_hf.arguments.config import CDLConfig, DistillationArguments, ModelArguments
from cdl_hf.arguments.stream import StreamArguments
from cdl_hf.cli import argument, cli_error, parse, to_yaml
from cdl_hf.utils import write_json

if TYPE_CHECKING:
    from cdl_hf.benchmark.pairs import MeasuredPair

TRAIN = Path(__file__).with_name("train.py")


@dataclass
class BenchmarkArguments:
    """What is measured."""

    precision: list[Literal["fp32", "bf16"]] = argument("Precisions of the steps", ["fp32", "bf16"])
    repeats: int = argument("Number of rounds; the median is reported", 5, min=1)
    roofline: bool = argument("Instead: upper bounds on the images a second of GPUs, computed", False)
    stream: bool = argument("Instead: building a stream over very many rows", False)
    rows: int = argument("Number of rows of that stream", 10_000_000, min=10_000)
    long_stream: bool = argument("Instead: RanPAC over tasks of one class, against 10 tasks", False)
    input: bool = argument("Instead: images read and augmented a second", False)
    growth: bool = argument("Instead: steps of the last task against the first's", False)
    startup: bool = argument("Instead: seconds until train.py's first step is done", False)
    json: str | None = argument("File for the figures", None)
    profile: str | None = argument("File for a trace of the steps, for Perfetto", None)


def main() -> None:
    arguments = parse(
        (StreamArguments, ModelArguments, DistillationArguments, CDLConfig, BenchmarkArguments),
        description=__doc__,
    )
    *of_run, args = arguments
    figures = measure(tuple(of_run), args)
    if args.json is not None:
        write_json(Path(args.json), figures)


def measure(of_run: tuple, args: BenchmarkArguments) -> dict[str, Any]:
    """Runs the benchmark that the arguments name and prints its table; the figures."""
    from cdl_hf.benchmark import inputs, long_streams, startup, streams  # seconds to import

    training_args = of_run[-1]
    if args.startup:
        try:
            figures = startup.measure(TRAIN, to_yaml(of_run), args.repeats)
        except ValueError as error:
            cli_error(str(error))
        print(f"train.py took {figures['seconds']:.1f} s until its first step was done")
        return figures
    if args.stream:
        figures = streams.measure(args.rows)
        print(
            f"a stream over {args.rows:,} rows: {figures['seconds']:.1f} s; on top of the table at most "
            f"{figures['peak_bytes_per_row']:.0f} bytes a row, {figures['kept_bytes_per_row']:.0f} at the end"
        )
        return figures
    if args.long_stream:
        stream_args, model_args, *_ = of_run
        try:
            figures = long_streams.measure(stream_args, model_args, training_args)
        except ValueError as error:
            cli_error(str(error))
        print(long_streams.table(figures))
        return figures
    if args.input:
        figures = inputs.measure(training_args.dataloader_num_workers, args.repeats)
        print(inputs.table(figures))
        return figures
    if args.roofline:
        return compute_roofline(of_run)
    return measure_growth(of_run, args) if args.growth else measure_steps(of_run, args)


def compute_roofline(of_run: tuple) -> dict[str, Any]:
    """Upper bounds in bf16 from arithmetic and memory traffic; `batch_size` images on each device."""
    import torch

    from cdl_hf.benchmark import roofline

    figures = roofline.compute(build_pair(of_run, torch.device("meta")), of_run[-1].batch_size)
    print(roofline.table(figures, f"computed, bf16, batch {of_run[-1].batch_size}"))
    return figures


def measure_growth(of_run: tuple, args: BenchmarkArguments) -> dict[str, Any]:
    """Steps of both stages in the last task against the first."""
    import torch

    from cdl_hf.benchmark import growth, steps
    from cdl_hf.benchmark.pairs import find_device
    from cdl_hf.training.dry_run import FakeSteps

    device, batch_size, figures = find_device(), of_run[-1].batch_size, {}
    for precision in args.precision:
        ends, fake = [], []
        for num_tasks in (1, -1):
            pair = build_pair(of_run, torch.device("cpu"), num_tasks)
            ends.append(steps.Steps(pair, pair.random_batch(batch_size, device), steps.DTYPES[precision]))
            pair = build_pair(of_run, torch.device("meta"), num_tasks)
            fake.append(FakeSteps(pair.objectives, pair.image_size, device, precision))
        figures[precision] = growth.measure(*ends, tuple(fake), args.repeats)
        print(growth.table(figures[precision], f"{precision}, batch {batch_size}"), flush=True)
    return figures


def measure_steps(of_run: tuple, args: BenchmarkArguments) -> dict[str, Any]:
    """Steps of both stages and of evaluation in each precision, and reading the images of the configured stream."""
    import torch

    from cdl_hf.benchmark import inputs, steps
    from cdl_hf.benchmark.pairs import find_device

    device, training_args = find_device(), of_run[-1]
    pair = build_pair(of_run, torch.device("cpu"))
    size, side = training_args.batch_size, pair.image_size
    batch = pair.random_batch(size, device)
    figures = {"device": str(device), "threads": torch.get_num_threads(), "batch_size": size, "image_size": side}
    figures["input_images_per_second"] = rate = inputs.rate(pair, training_args)
    print(f"{pair.stream}\ninput: {rate:,.0f} images/s with {training_args.dataloader_num_workers} workers")
    print(f"{device}, {figures['threads']} threads, batch {size}, {side} px, {type(pair.objective).__name__}")
    for precision in args.precision:
        measured = steps.Steps(pair, batch, steps.DTYPES[precision])
        figures[precision] = steps.measure(measured, args.repeats)
        print(f"\n{steps.table(figures[precision], f'{precision}, batch {size}')}", flush=True)
    if args.profile is not None:
        steps.profile(measured, args.profile)
    return figures


def build_pair(of_run: tuple, device, num_tasks: int = 1) -> "MeasuredPair":
    """The stream, and teacher and student with `num_tasks` tasks started; mistakes in arguments end the process."""
    from cdl_hf.benchmark import pairs

    try:
        return pairs.build_pair(of_run, device, num_tasks)
    except ValueError as error:
        cli_error(str(error))


if __name__ == "__main__":
    main()
