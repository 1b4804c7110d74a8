"""How fast, and with how much memory? For any arguments of train.py, with random weights, so that none are needed.

    python recipes/benchmark.py --teacher vit_small_patch16_224 --student vit_tiny_patch16_224 --batch_size 64
    python recipes/benchmark.py --roofline --batch_size 64     # what an A100 and an H100 could do at best, computed
    python recipes/benchmark.py --stream                       # a stream over ten million rows
    python recipes/benchmark.py --input --dataloader_num_workers 2        # reading and augmenting images
    python recipes/benchmark.py --growth                       # steps of the last task against those of the first
    python recipes/benchmark.py --startup --teacher FOLDER --student FOLDER    # until train.py has done a step

Steps of training and evaluation are measured against a plain implementation (benchmarks/plain.py): separate query
passes, gradients for all weights, attention written out, a full last block. Operations are those of the matrix
products that a step needs; the linear rate is that of the teacher's widest layer here, measured in the same rounds.
On a CPU with one thread (`taskset -c 0 python ...`) processor time counts, which other work does not lengthen.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cdl_hf.cli import cli_error, parse, to_yaml
from cdl_hf.training.arguments import CDLConfig, DistillationArguments, ModelArguments, StreamArguments
from cdl_hf.utils import num_cores


@dataclass
class BenchmarkArguments:
    """What is measured."""

    precision: list[Literal["fp32", "bf16"]] = field(
        default_factory=lambda: ["fp32", "bf16"], metadata={"help": "precisions of the steps"}
    )
    repeats: int = field(default=5, metadata={"help": "rounds, of which the median counts", "min": 1})
    roofline: bool = field(
        default=False, metadata={"help": "instead: images a second of GPUs at best, computed from what a step needs"}
    )
    stream: bool = field(default=False, metadata={"help": "instead: a stream over very many rows"})
    rows: int = field(default=10_000_000, metadata={"help": "of that stream", "min": 10_000})
    input: bool = field(default=False, metadata={"help": "instead: images a second that are read and augmented"})
    growth: bool = field(default=False, metadata={"help": "instead: steps of the last task against the first's"})
    startup: bool = field(default=False, metadata={"help": "instead: seconds until train.py has done its first step"})
    json: str | None = field(default=None, metadata={"help": "file to write the figures to"})
    profile: str | None = field(default=None, metadata={"help": "file for a trace of the steps, for Perfetto"})


def main() -> None:
    arguments = parse(
        (StreamArguments, ModelArguments, DistillationArguments, CDLConfig, BenchmarkArguments),
        description=__doc__,
    )
    *_, training_args, args = arguments
    from benchmarks import inputs, startup, streams

    if args.startup:
        try:
            figures = startup.measure(to_yaml(list(arguments)[:-1]), args.repeats)
        except RuntimeError as error:
            cli_error(str(error))
        print(f"train.py took {figures['seconds']:.1f} s until its first step was done")
    elif args.stream:
        figures = streams.measure(args.rows)
        print(
            f"a stream over {args.rows:,} rows: {figures['seconds']:.1f} s; beyond the table at most "
            f"{figures['peak_bytes_per_row']:.0f} bytes a row, {figures['kept_bytes_per_row']:.0f} in the end"
        )
    elif args.input:
        figures = inputs.measure(training_args.dataloader_num_workers, args.repeats)
        print(inputs.table(figures))
    elif args.roofline:
        figures = compute_roofline(*arguments)
    elif args.growth:
        figures = measure_growth(*arguments)
    else:
        figures = measure_steps(*arguments)
    if args.json is not None:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def compute_roofline(stream_args, model_args, distillation_args, training_args, args) -> dict:
    """Steps in bf16, by arithmetic and memory traffic; `batch_size` images on each device."""
    import torch
    from benchmarks import roofline

    stream, learners = build_pair(stream_args, model_args, distillation_args, training_args, torch.device("meta"))
    figures = roofline.compute(learners, training_args.batch_size)
    print(roofline.table(figures, f"computed, bf16, batch {training_args.batch_size}"))
    return figures


def build_pair(stream_args, model_args, distillation_args, training_args, device, tasks: int = 1) -> tuple:
    """The stream, and teacher and student with random weights and the first `tasks` tasks begun (-1: all)."""
    from cdl_hf.training import build

    if training_args.stages != "both":
        cli_error("the benchmark measures teacher and student: leave stages out")
    try:
        stream = build.build_stream(stream_args)
        with device:
            learners = build.build_learners(stream, model_args, distillation_args, training_args, pretrained=False)
    except ValueError as error:
        cli_error(str(error))
    for model in (learners.teacher, learners.method.model):
        for task in stream[: tasks if tasks > 0 else None]:
            model.start_task(task.class_names)
    return stream, learners


def find_device():
    """The accelerator, or the CPU with all cores that this process may use."""
    import torch

    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator()
    torch.set_num_threads(num_cores())
    return torch.device("cpu")


def make_batch(learners, size: int, device) -> dict:
    """Random images of the task begun last, on the device to which the models go with them."""
    import torch

    learners.teacher.to(device), learners.method.to(device)
    side, columns = learners.image_processor.crop_size["height"], learners.teacher.config.current_classes
    labels = columns.start + torch.arange(size, device=device) % (columns.stop - columns.start)
    return {"pixel_values": torch.rand(size, 3, side, side, device=device), "labels": labels}


def measure_growth(stream_args, model_args, distillation_args, training_args, args) -> dict:
    """Steps of both stages in the last task against the first."""
    import torch
    from benchmarks import growth, steps

    from cdl_hf.distillation import TrainingObjective
    from cdl_hf.training.dry_run import FakeSteps

    device, figures = find_device(), {}
    for precision in args.precision:
        ends, fake = [], []
        for tasks in (1, -1):
            given = (stream_args, model_args, distillation_args, training_args)
            _, learners = build_pair(*given, torch.device("cpu"), tasks)
            batch = make_batch(learners, training_args.batch_size, device)
            ends.append(steps.Steps(learners, batch, steps.DTYPES[precision]))
            _, learners = build_pair(*given, torch.device("meta"), tasks)
            modules = {"teacher": TrainingObjective(learners.teacher), "student": learners.method}
            fake.append(FakeSteps(modules, batch["pixel_values"].shape[-1], device, precision))
        figures[precision] = growth.measure(*ends, tuple(fake), args.repeats)
        print(growth.table(figures[precision], f"{precision}, batch {training_args.batch_size}"), flush=True)
    return figures


def measure_steps(stream_args, model_args, distillation_args, training_args, args) -> dict:
    """Steps of both stages and of evaluation in each precision, and reading the images of the configured stream."""
    import torch
    from benchmarks import inputs, steps

    device = find_device()
    stream, learners = build_pair(stream_args, model_args, distillation_args, training_args, torch.device("cpu"))
    batch = make_batch(learners, training_args.batch_size, device)
    size, side = training_args.batch_size, batch["pixel_values"].shape[-1]
    figures = {"device": str(device), "threads": torch.get_num_threads(), "batch_size": size, "image_size": side}
    figures["input_images_per_second"] = rate = inputs.rate(stream[0], stream, learners, training_args)
    print(f"{stream}\ninput: {rate:,.0f} images/s with {training_args.dataloader_num_workers} workers")
    print(f"{device}, {figures['threads']} threads, batch {size}, {side} px, {type(learners.method).__name__}")
    for precision in args.precision:
        measured = steps.Steps(learners, batch, steps.DTYPES[precision])
        figures[precision] = steps.measure(measured, args.repeats)
        print(f"\n{steps.table(figures[precision], f'{precision}, batch {size}')}", flush=True)
    if args.profile is not None:
        steps.profile(measured, args.profile)
    return figures


if __name__ == "__main__":
    main()
