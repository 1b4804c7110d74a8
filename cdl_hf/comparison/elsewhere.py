"""Runs from elsewhere: how they are named, and what keeps them from being compared with the others.

The name of such a run starts with where it comes from, `anna/l2p-kd-seed0`; a folder's name has no slash.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..escaping import portable
from .effects import grouped, listed, student_alone
from .experiments import Benchmark, Experiment
from .results import RunResults, folder_of_runs, read_runs

_DIFFERENCES = {  # by the field of a benchmark
    "source": "data set {} instead of {}",
    "class_order": "class order {} instead of {}",
    "teacher": "teacher {} instead of {}",
    "student": "student {} instead of {}",
    "tested_on": "tested on {} instead of {} images",
    "classes": "other classes",
    "num_train": "{:,} instead of {:,} training images",
    "num_tested_on": "{:,} instead of {:,} images to test on",
}


def read_elsewhere(paths: Iterable[Path]) -> list[RunResults]:
    """Runs of others, each name starting with the folder that it comes from, as it was given.

    Args:
        paths: As for [`read_runs`].

    Raises:
        ValueError: A path has no runs, two folders go by the same name, or two runs.
    """
    folders: dict[str, Path] = {}
    runs: dict[str, RunResults] = {}
    for path in paths:
        folder = folder_of_runs(path)
        given = "/".join(part for part in folder.parts if part not in (".", ".."))
        origin = portable(folder.as_posix() if folder.is_absolute() else given or folder.resolve().name)
        if folders.setdefault(origin, folder.resolve()) != folder.resolve():
            raise ValueError(f"two folders of runs from elsewhere are called {origin!r}: give one another name")
        for run in read_runs(path):
            name = f"{origin}/{run.name}"
            if name in runs:
                raise ValueError(f"two runs from elsewhere are called {name!r}: give one another name")
            runs[name] = replace(run, name=name)
    return list(runs.values())


def check_streams(experiments: Iterable[Experiment]) -> None:
    """Checks that runs have the tasks and classes of the others that they share tables with.

    Raises:
        ValueError: One has tasks of other sizes or domains, or another order of the classes for the same seed.
    """
    for members in grouped(experiments, lambda e: (e.benchmark, e.stream["num_tasks"])).values():
        members = sorted(members, key=lambda e: e.origin)  # those that are not from elsewhere first
        orders: dict[int, list[str]] = {}
        for e in members:
            for unit, result in e.results.items():
                order = orders.setdefault(unit.order, result["stream"].get("class_names"))
                differs = ""
                if _tasks(e) != _tasks(members[0]):
                    differs = f"other tasks than {members[0].name}"
                elif order != result["stream"].get("class_names"):
                    differs = f"another order of the classes than other runs of stream seed {unit.order}"
                if differs:
                    raise ValueError(f"{e.runs[unit]} has {differs} and cannot be compared: report it apart")


def where_from(experiments: Sequence[Experiment], every: Iterable[Experiment]) -> list[str]:
    """A sentence on the runs from each place elsewhere, among the experiments of a benchmark.

    Args:
        experiments: The experiments of the benchmark.
        every: All experiments of the report.
    """
    here = [e for e in experiments if not e.origin]
    own = {e.benchmark: None for e in every if not e.origin}
    lengths = sorted({e.stream["num_tasks"] for e in here if not e.is_joint})
    sentences = []
    for origin, members in grouped((e for e in experiments if e.origin), lambda e: e.origin).items():
        count = len({name for e in members for name in e.runs.values()})
        reasons = min((differences(members[0].benchmark, each) for each in own), key=len, default=[])
        other = sorted({e.stream["num_tasks"] for e in members if not e.is_joint} - set(lengths))
        if lengths and other:
            reasons = [f"{listed(other)} instead of {listed(lengths)} tasks"]
        text = f"From elsewhere: {count} run{'s' if count > 1 else ''} of {origin}, marked by that name"
        if reasons:
            text += f"; not compared with the runs here where they have {listed(reasons)}"
        if any(_lacks_student_alone(e, members) for e in members):
            text += ". Where it has no student alone of its own, no difference to one is shown"
        sentences.append(f"{text}.")
    return sentences


def _lacks_student_alone(e: Experiment, members: Iterable[Experiment]) -> bool:
    def column(each: Experiment) -> tuple[object, ...]:
        return each.prompts, each.classifier, each.stream["num_tasks"]

    is_taught = e.distillation not in (None, "none")
    return is_taught and student_alone(e, [each for each in members if column(each) == column(e)]) is None


def differences(one: Benchmark, other: Benchmark) -> list[str]:
    """What sets two benchmarks apart."""
    if one.class_order != other.class_order:  # then the order in which the classes are listed says nothing more
        one, other = (each._replace(classes=tuple(sorted(each.classes))) for each in (one, other))
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in _DIFFERENCES}
    return [_DIFFERENCES[name].format(*pair) for name, pair in pairs.items() if pair[0] != pair[1]]


def _tasks(e: Experiment) -> tuple[object, ...]:
    """What the streams of a table must share beside the number of their tasks."""
    blurry = e.stream.get("blurry", {})
    ratios = tuple(value for name, value in blurry.items() if name.endswith("_ratio"))
    return e.stream["classes_per_task"], e.stream.get("domains"), ratios
