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
        run(teacher, [*preset, "--stages", "teacher", "--store_answers"])
        for distillation in grid.distillation:
            taught = ["--stages", "student", "--teacher_from", str(teacher), "--distillation", distillation]
            run(folder_of(grid, method, distillation, seed), [*preset, *taught])
    floors = nearest_class_mean(grid)
    table = compare(grid, floors)
    (Path(grid.output_dir) / "table.md").write_text(table + "\n", encoding="utf-8")
    for method in grid.prompt_methods:
        picture(grid, method, floors)
    print(table)


def folder_of(grid: CompareArguments, prompt_method: str, learner: str, seed: int) -> Path:
    return Path(grid.output_dir) / f"{prompt_method}-{learner}-seed{seed}"


def run(folder: Path, arguments: list[str]) -> None:
    """One run of train.py, unless it is finished; a stopped one goes on from its checkpoint."""
    if (folder / "results.json").is_file():
        return
    begun = (folder / "args.yaml").is_file()
    command = [sys.executable, str(TRAIN), *arguments, "--output_dir", str(folder)]
    print(shlex.join(command), flush=True)
    done = subprocess.run([*command, "--resume" if begun else "--overwrite"])
    if done.returncode:
        sys.exit(f"Stopped: the run above failed (exit code {done.returncode}); the finished ones are kept.")


def read(grid: CompareArguments, prompt_method: str, learner: str) -> list[dict]:
    """`results.json` of every seed."""
    folders = [folder_of(grid, prompt_method, learner, seed) for seed in grid.seeds]
    return [json.loads((folder / "results.json").read_text()) for folder in folders]


def nearest_class_mean(grid: CompareArguments) -> dict[str, float]:
    """Accuracy (%) on the frozen backbones without prompts: what learning must beat."""
    from probe import probe

    from cdl_hf.models import load_backbone

    args = read(grid, grid.prompt_methods[0], "teacher")[0]["args"]
    return {
        f"{role}'s backbone": probe(load_backbone(args[role]).module, args["dataset"])["nearest_class_mean"]
        for role in ("teacher", "student")
    }


def compare(grid: CompareArguments, floors: dict[str, float]) -> str:
    """A Markdown table: mean and standard deviation over the seeds."""
    lines = ["| prompts | learner | A_N (%) | forgetting (cdl, points) | seeds |", "|---|---|---:|---:|---:|"]
    for method in grid.prompt_methods:
        for learner in ("teacher", *grid.distillation):
            role = "teacher" if learner == "teacher" else "student"
            results = [result[role] for result in read(grid, method, learner)]
            accuracy = spread([r["average_accuracy"] for r in results])
            forgetting = spread([r["forgetting"]["cdl"] for r in results])
            lines.append(f"| {method} | {label(learner)} | {accuracy} | {forgetting} | {len(results)} |")
    lines += [f"| none | nearest class mean, {name} | {value:.2f} | | |" for name, value in floors.items()]
    return "\n".join(lines)


def picture(grid: CompareArguments, prompt_method: str, floors: dict[str, float]) -> None:
    """Accuracy over the tasks of every learner, all seeds' answers counted together."""
    from cdl_hf.evaluation import AccuracyMatrix
    from cdl_hf.evaluation.plots import plot_accuracy_over_tasks

    curves = {}
    for learner in ("teacher", *grid.distillation):
        role = "teacher" if learner == "teacher" else "student"
        for result in read(grid, prompt_method, learner):
            stream = result["stream"]
            matrix = curves.setdefault(label(learner), AccuracyMatrix(stream["num_tasks"]))
            for after, row in enumerate(result[role]["accuracy_matrix"]):
                for task, accuracy in enumerate(row):
                    total = stream[result["tested_on"]][task]
                    matrix.update(after, task, round(accuracy * total / 100), total)
    plot_accuracy_over_tasks(
        curves,
        Path(grid.output_dir) / f"{prompt_method}.png",
        f"{stream['source']}: {prompt_method}, mean of {len(grid.seeds)} seeds",
        classes_per_task=stream["classes_per_task"],
        references={f"class means, {name}": value for name, value in floors.items()},
    )


def label(learner: str) -> str:
    return {"teacher": "teacher", "none": "student alone"}.get(learner, f"student, {learner}")


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
