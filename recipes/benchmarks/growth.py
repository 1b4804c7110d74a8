"""Whether a step of the last task costs more than one of the first."""

import statistics

from .machine import peak_growth
from .steps import Steps, timed

NAMES = ("teacher step", "student step")


def measure(first: Steps, last: Steps, repeats: int) -> dict[str, dict[str, float | None]]:
    """Medians over `repeats` rounds, in each of which every step is taken once in the first and in the last task.

    Args:
        first, last: The same models, with the first task begun and with all.

    Returns:
        For each step `seconds_first` and `seconds_last`, their ratio `time`, and the ratio `memory` of the peaks of
        what a step needs beyond the weights; None where nothing tells.
    """
    figures = {}
    for name in NAMES:
        tasks = [(end.ours[name], end.device) for end in (first, last)]
        for step, _ in tasks:
            step(lambda part: None)  # the optimizer's state comes to life
        peaks = [peak_growth(lambda step=step: step(lambda part: None), device) for step, device in tasks]
        rounds = [[sum(timed(step, device).values()) for step, device in tasks] for _ in range(repeats)]
        figures[name] = {
            "seconds_first": statistics.median(seconds for seconds, _ in rounds),
            "seconds_last": statistics.median(seconds for _, seconds in rounds),
            "time": statistics.median(late / early for early, late in rounds),
            "memory": None if peaks[0] is None else peaks[1] / peaks[0],
        }
    return figures


def table(figures: dict[str, dict[str, float | None]], title: str) -> str:
    lines = [f"| {title} | first task, seconds | last task | time | memory |", "|---|---:|---:|---:|---:|"]
    for name, row in figures.items():
        memory = "" if row["memory"] is None else f"{row['memory']:.3f}"
        seconds = f"{row['seconds_first']:.3f} | {row['seconds_last']:.3f}"
        lines.append(f"| {name} | {seconds} | {row['time']:.3f} | {memory} |")
    return "\n".join(lines)
