"""Runs of recipes/train.py over prompt methods, distillation methods and seeds, and a table of what they came to.

    python recipes/compare.py --distillation none kd kdp --seeds 0 1 2 --output_dir runs/compare

A teacher is trained once and serves all its students. Finished runs are skipped, so that the same command goes on
where it was stopped, and only prints the table when all are there.
"""

import itertools
import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cdl_hf.training.parser import parse, refuse

TRAIN = Path(__file__).with_name("train.py")


@dataclass
class CompareArguments:
    """The grid."""

    output_dir: str = field(metadata={"help": "folder of all runs"})
    prompt_methods: list[str] = field(
        default_factory=lambda: ["coda_prompt"], metadata={"help": "prompt methods, each with a preset in --presets"}
    )
    distillation: list[str] = field(
        default_factory=lambda: ["none", "kd", "kdp"], metadata={"help": "distillation methods"}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "seeds"})
    presets: str = field(
        default=str(TRAIN.parent / "quickdraw100"), metadata={"help": "folder of the presets, <prompt method>.yaml"}
    )
    extra: str = field(
        default="", metadata={"help": "further arguments of train.py, in one text: --extra='--num_tasks 5'"}
    )


def main() -> None:
    (grid,) = parse((CompareArguments,), description=__doc__)
    missing = [m for m in grid.prompt_methods if not (Path(grid.presets) / f"{m}.yaml").is_file()]
    if missing:
        refuse(f"--presets {grid.presets} has no {missing[0]}.yaml")
    for method, seed in itertools.product(grid.prompt_methods, grid.seeds):
        preset = [
            "--config",
            str(Path(grid.presets) / f"{method}.yaml"),
            "--seed",
            str(seed),
            *shlex.split(grid.extra),
        ]
        teacher = folder_of(grid, method, "teacher", seed)
        run(teacher, [*preset, "--stages", "teacher"])
        for distillation in grid.distillation:
            taught = [] if distillation == "none" else ["--teacher_from", str(teacher)]
            run(
                folder_of(grid, method, distillation, seed),
                [*preset, "--stages", "student", "--distillation", distillation, *taught],
            )
    table = compare(grid)
    (Path(grid.output_dir) / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def folder_of(grid: CompareArguments, prompt_method: str, learner: str, seed: int) -> Path:
    return Path(grid.output_dir) / f"{prompt_method}-{learner}-seed{seed}"


def run(folder: Path, arguments: list[str]) -> None:
    """One run of train.py, unless it is finished; a stopped one goes on from its checkpoint."""
    if (folder / "results.json").is_file():
        return
    begun = (folder / "checkpoints").is_dir()
    command = [sys.executable, str(TRAIN), *arguments, "--output_dir", str(folder)]
    print(shlex.join(command), flush=True)
    done = subprocess.run([*command, "--resume" if begun else "--overwrite"])
    if done.returncode:
        sys.exit(f"Stopped: the run above failed (exit code {done.returncode}); the finished ones are kept.")


def compare(grid: CompareArguments) -> str:
    """A Markdown table: mean and standard deviation over the seeds."""
    lines = ["| prompts | learner | A_N (%) | forgetting (cdl, points) | seeds |", "|---|---|---:|---:|---:|"]
    for method in grid.prompt_methods:
        for learner in ("teacher", *grid.distillation):
            role = "teacher" if learner == "teacher" else "student"
            results = [
                json.loads((folder_of(grid, method, learner, seed) / "results.json").read_text())[role]
                for seed in grid.seeds
            ]
            accuracy = spread([r["average_accuracy"] for r in results])
            forgetting = spread([r["forgetting"]["cdl"] for r in results])
            name = "teacher" if role == "teacher" else f"student, {learner}"
            lines.append(f"| {method} | {name} | {accuracy} | {forgetting} | {len(results)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
