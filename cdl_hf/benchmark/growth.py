"""Time and memory of a training step in the last task, relative to the first."""

import statistics

from ..training.dry_run import FakeSteps
from .steps import Steps, timed

NAMES = {"teacher": "teacher step", "student": "student step"}


def measure(first: Steps, last: Steps, fake: tuple[FakeSteps, FakeSteps], repeats: int) -> dict[str, dict[str, float]]:
    """Medians over `repeats` rounds, each with one step in the first and one in the last task.

    Args:
        first, last: The same models with the first task started, and with all tasks started.
        fake: The same on fake tensors, which give the peak memory of all tensors.

    Returns:
        For each step `seconds_first` and `seconds_last`, the ratios last/first of the
        seconds, `time`, and of the peak memory, `memory`.
    """
    figures = {}
    for role, name in NAMES.items():
        tasks = [(end.ours[name], end.device) for end in (first, last)]
        for step, _ in tasks:
            step(lambda part: None)  # allocates the optimizer's state
        rounds = [[sum(timed(step, device).values()) for step, device in tasks] for _ in range(repeats)]
        peaks = [end.training([role], len(first.batch["labels"])).peak_bytes for end in fake]
        figures[name] = {
            "seconds_first": statistics.median(seconds for seconds, _ in rounds),
            "seconds_last": statistics.median(seconds for _, seconds in rounds),
            "time": statistics.median(late / early for early, late in rounds),
            "memory": peaks[1] / peaks[0],
        }
    return figures


def table(figures: dict[str, dict[str, float]], title: str) -> str:
    lines = [f"| {title} | first task, seconds | last task | time | memory |", "|---|---:|---:|---:|---:|"]
    for name, row in figures.items():
        seconds = f"{row['seconds_first']:.3f} | {row['seconds_last']:.3f}"
        lines.append(f"| {name} | {seconds} | {row['time']:.3f} | {row['memory']:.3f} |")
    return "\n".join(lines)
