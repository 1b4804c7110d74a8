"""The runs of a comparison, as planned by a YAML file of axes.

    arguments: {num_train_epochs: 4}                 # of every run
    seeds: [0, 1, 2]
    grids:
      distillation:                                  # a name for the reader
        teachers:                                    # axes: their values are combined, each is some arguments
          prompts: {l2p: {prompt_method: l2p}, apt: {prompt_method: apt}}
          order: {natural: {}, drawn: {class_order: seeded}}
        students: {none: {distillation: none}, kdp: {distillation: kdp}}     # of every teacher
        classifiers: {ncm: {classifier: ncm}}        # computed for every teacher and student

A run is named by its values, such as `l2p-natural-kdp-seed0`. A teacher depends on all axes but `students` and
`classifiers`, and serves all its students. Runs of two grids with the same name are one run. A value may be
`{config: FILE}`, a file of arguments beside the grid, or a preset such as `quickdraw100/l2p`.

Where each seed has arguments of its own, such as its class order, the seeds are an axis too:

    arguments: {class_order: seeded}
    seeds: {0: {stream_seed: 0}, 1: {stream_seed: 1}}
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..arguments.config import RUN
from ..arguments.sets import planned, with_present_names
from ..cli import parse, to_dict
from ..presets import preset_or_file

TEACHER, STUDENT = "teacher", "student"
STUDENTS, CLASSIFIERS = "students", "classifiers"  # axes that teachers do not depend on
_EARLIER = {"heads": CLASSIFIERS}  # keys of earlier versions
_KEYS = {"arguments", "seeds", "grids"}
_GRID_KEYS = {"teachers", STUDENTS, CLASSIFIERS}

Values = dict[str, str | list[str]]


@dataclass(frozen=True)
class PlannedRun:
    """A run of train.py.

    Args:
        experiment: Its name without the seed.
        seed: The seed.
        role: `"teacher"` or `"student"`: the model that it trains, or computes a classifier for.
        arguments: Arguments as written in the file, strings or lists of strings by name.
        source: The run whose states it reads.
    """

    experiment: str
    seed: int
    role: str
    arguments: Values = field(hash=False)
    source: "PlannedRun | None" = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.experiment}-seed{self.seed}"

    @property
    def kind(self) -> str:
        """`teacher`, `student`, or `classifier` where nothing else is trained."""
        return "classifier" if self.source is not None and self.source.role == self.role else self.role

    def command_line(self, runs: Path) -> list[str]:
        """Arguments of train.py, except for the output folder.

        Args:
            runs: Folder of all runs.
        """
        values = {**self.arguments, "seed": str(self.seed), "stages": self.role}
        if self.source is None:
            values["cache_teacher_outputs"] = "true"
        else:
            values[f"{self.source.role}_run"] = str(runs / self.source.name)
            # Distillation in closed form computes another classifier for a student from its teacher, too.
            if self.source.source is not None and values.get("distillation") == "analytic":
                values["teacher_run"] = str(runs / self.source.source.name)
        return [token for name, value in values.items() for token in (f"--{name}", *_listed(value))]

    def resolved(self, runs: Path) -> dict[str, Any]:
        """All arguments of train.py in their types; a mistake ends the process, as it would end the run."""
        return to_dict(parse(RUN, self.command_line(runs)))


def read_grid(path: Path, only: Sequence[str] = ()) -> dict[str, list[PlannedRun]]:
    """The runs of a file by the name of the teacher that they share; sources come before the runs that read them.

    All teachers of a seed come before those of the next, so that each experiment soon has a result.

    Args:
        path: The YAML file.
        only: Values to keep (seeds as `seed0`). An axis without any of them is kept whole. Axes of the same name in
            several grids are one; a grid that has none of the values to keep is left out.

    Raises:
        ValueError: The file is not a grid; the message says where.
    """
    content = _read(path)
    grids: list[dict[str, dict[str, Values]]] = [
        {"seeds": {f"seed{seed}": values for seed, values in content["seeds"].items()}, **_axes(grid)}
        for grid in content["grids"].values()
    ]
    known = {name for grid in grids for axis in grid.values() for name in axis}
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"{path} has no {unknown[0]!r}: choose among {', '.join(sorted(known))}")
    restricted = {axis for grid in grids for axis, values in grid.items() if values.keys() & set(only)}
    groups: dict[str, dict[str, PlannedRun]] = {}
    for seed, of_seed in content["seeds"].items():
        for grid in grids:
            kept = {
                axis: {name: v for name, v in values.items() if axis not in restricted or name in only}
                for axis, values in grid.items()
            }
            if f"seed{seed}" not in kept.pop("seeds") or (grid[STUDENTS] and not kept[STUDENTS]):
                continue
            students, classifiers = kept.pop(STUDENTS), kept.pop(CLASSIFIERS)
            for values in itertools.product(*(axis.items() for axis in kept.values())):
                arguments = _relative(content["arguments"], path) | _relative(of_seed, path)
                for _, more in values:
                    arguments |= _relative(more, path)
                name = "-".join(name for name, _ in values)
                for run in _runs_of(name, arguments, int(seed), students, classifiers):
                    teacher = f"{name}-teacher-seed{seed}"
                    known_run = groups.setdefault(teacher, {}).setdefault(run.name, run)
                    if known_run != run:
                        raise ValueError(f"{path}: two grids have a run {run.name}, with different arguments")
    return {teacher: list(runs.values()) for teacher, runs in groups.items()}


def _runs_of(
    name: str, arguments: Values, seed: int, students: dict[str, Values], classifiers: dict[str, Values]
) -> Iterator[PlannedRun]:
    teacher = PlannedRun(f"{name}-teacher", seed, TEACHER, arguments)
    learners = [teacher]
    for learner, more in students.items():
        learners.append(PlannedRun(f"{name}-{learner}", seed, STUDENT, {**arguments, **more}, teacher))
    yield from learners
    for run in learners:
        for classifier, more in classifiers.items():
            yield PlannedRun(f"{run.experiment}-{classifier}", seed, run.role, {**run.arguments, **more}, run)


def _axes(grid: dict[str, Any]) -> dict[str, dict[str, Values]]:
    """All axes of a grid by name: those of its teachers, students and classifiers."""
    return {**grid["teachers"], STUDENTS: grid.get(STUDENTS, {}), CLASSIFIERS: grid.get(CLASSIFIERS, {})}


def _relative(values: Values, path: Path) -> Values:
    """A copy in which `config` is the file that it names from the grid's folder, or stays the name of a preset."""
    preset = values.get("config")
    if not isinstance(preset, str):
        return dict(values)
    file = path.parent / Path(preset).expanduser()
    return values | {"config": preset if not file.exists() and preset_or_file(preset).is_file() else str(file)}


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


class _Loader(yaml.BaseLoader):
    """Refuses a name that is written twice in one place, of which YAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        if twice := [key for i, (key, _) in enumerate(node.value) if key.value in names[:i]]:
            raise yaml.MarkedYAMLError(problem=f"{twice[0].value} is set twice", problem_mark=twice[0].start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    """The content of the file; all values are the strings that are written there."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ValueError(f"{path}: cannot read this file ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: this file is not valid YAML ({' '.join(str(error).split())})") from error
    _check_keys(content, _KEYS, {"seeds", "grids"}, path, "the file")
    content = {"arguments": {}, **content}
    _check_values(content["arguments"], path, "arguments")
    seeds = content["seeds"]
    if not isinstance(seeds, list | dict) or not seeds or not all(isinstance(s, str) and s.isdigit() for s in seeds):
        raise ValueError(f"{path}: seeds must be a list of whole numbers, or whole numbers with their arguments")
    content["seeds"] = seeds if isinstance(seeds, dict) else {seed: {} for seed in seeds}
    for seed, arguments in content["seeds"].items():
        _check_values(arguments, path, f"seeds, {seed}")
    if not isinstance(content["grids"], dict) or not content["grids"]:
        raise ValueError(f"{path}: grids must name at least one grid")
    content["grids"] = {title: _with_present_keys(grid) for title, grid in content["grids"].items()}
    for title, grid in content["grids"].items():
        _check_keys(grid, _GRID_KEYS, {"teachers"}, path, title)
        if not isinstance(grid["teachers"], dict) or not grid["teachers"]:
            raise ValueError(f"{path}: the teachers of {title} must have at least one axis")
        named = {**{f"{title}, {name}": axis for name, axis in grid["teachers"].items()}}
        named |= {f"{title}, {name}": grid[name] for name in (STUDENTS, CLASSIFIERS) if name in grid}
        for name, axis in named.items():
            if not isinstance(axis, dict) or not axis:
                raise ValueError(f"{path}: {name} must be values with their arguments, as in a: {{kd_alpha: 0.5}}")
            for value, arguments in axis.items():
                _check_values(arguments, path, f"{name}, {value}")
        if strange := sorted(grid["teachers"].keys() & {"seeds", STUDENTS, CLASSIFIERS}):
            raise ValueError(f"{path}: an axis of the teachers of {title} is named {strange[0]}; choose another name")
        if TEACHER in grid.get(STUDENTS, {}):
            raise ValueError(f"{path}: a student of {title} is named teacher; choose another name")
    return content


def _with_present_keys(grid: Any) -> Any:
    return {_EARLIER.get(key, key): value for key, value in grid.items()} if isinstance(grid, dict) else grid


def _check_keys(content: Any, known: set[str], needed: set[str], path: Path, place: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {place} must consist of {', '.join(sorted(known))}")
    if strange := sorted(content.keys() - known):
        raise ValueError(f"{path}: {place} has an unknown entry {strange[0]!r}; known are {', '.join(sorted(known))}")
    if missing := sorted(needed - content.keys()):
        raise ValueError(f"{path}: {place} has no {missing[0]}")


def _check_values(arguments: Any, path: Path, place: str) -> None:
    if not isinstance(arguments, dict) or not all(
        isinstance(value, str) or isinstance(value, list) and all(isinstance(each, str) for each in value)
        for value in arguments.values()
    ):
        raise ValueError(f"{path}: {place} must be arguments of train.py, as in {{kd_alpha: 0.5}}")
    if fixed := sorted(with_present_names(arguments).keys() & planned()):
        raise ValueError(f"{path}: {place} sets {fixed[0]}, which compare.py sets itself")
