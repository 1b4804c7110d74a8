"""Results of finished runs, read from their folders or from the `runs.jsonl` of a report, and latencies.

`runs.jsonl` has a line for each run, sorted by name: `{"name": ..., "results": ..., "latency": ...}` with the content
of its `results.json`, and where they were measured the latencies by role. Arguments keep the names that they had when
the run was made; [`with_present_names`] reads them.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments.sets import paths, recorded_defaults, with_present_names
from ..escaping import portable, portable_arguments
from ..evaluation import METRICS, metric_in
from ..evaluation.accuracy_matrix import learning_accuracy
from ..utils import write_text
from .experiments import Experiment

if TYPE_CHECKING:
    from ..models import PromptViTForImageClassification

RUNS, RESULTS = "runs.jsonl", "results.json"
ROLES = ("teacher", "student")


@dataclass(frozen=True)
class RunResults:
    """Results of one run.

    Args:
        name: Name of its folder.
        results: Content of its `results.json`.
        latency: `milliseconds` of one image and the `device`, by role.

    Raises:
        ValueError: The latencies are not such.
    """

    name: str
    results: dict[str, Any]
    latency: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        try:
            of_roles = [(of["milliseconds"], of["device"]) for of in self.latency.values()]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.name}: these are not the latencies of a run ({error!r})") from error
        if not all(_is_number(milliseconds) and isinstance(device, str) for milliseconds, device in of_roles):
            raise ValueError(f"{self.name}: these are not the latencies of a run ({self.latency!r})")

    def portable(self) -> "RunResults":
        """Without passwords, and with the last part alone of the paths of this machine.

        Raises:
            ValueError: The results are not those of a run.
        """
        try:
            args = portable_arguments(self.results["args"])
            args |= {name: Path(args[name]).name for name in paths() if args.get(name) is not None}
            stream = self.results["stream"]
            stream = stream | {"source": portable(stream["source"] or "images")}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.name}: these are not the results of a run ({error!r})") from error
        return replace(self, results=self.results | {"args": args, "stream": stream})


def read_runs(path: Path) -> list[RunResults]:
    """Runs sorted by name.

    Args:
        path: A `runs.jsonl`, the folder of a report that has one, a folder with the folders of runs, the folder of a
            run, or its `results.json`, which may have another name.

    Raises:
        ValueError: There are no runs, or a file cannot be read as results.
    """
    if path.is_dir() and (path / RUNS).is_file():
        path = path / RUNS
    if path.name == "runs" and not path.exists():  # the folder of runs in a report of version 0.1.0
        path = path.with_name(RUNS)
    if path.suffix == ".json" or (path / RESULTS).is_file():
        runs = [_from_folder(path)] if path.is_dir() else [RunResults(_name(path), _read_json(path))]
    elif path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        runs = [_from_line(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    else:
        runs = [_from_folder(file.parent) for file in path.glob(f"*/{RESULTS}")]
    if not runs:
        raise ValueError(f"{path} has no folder of a finished run, with a results.json, and no {RUNS}")
    return sorted(runs, key=lambda run: run.name)


def folder_of_runs(path: Path) -> Path:
    """The folder that holds the folders of the runs which [`read_runs`] reads, or a report."""
    if path.is_file():
        return path.parent.parent if path.name == RESULTS else path.parent
    return path.parent if (path / RESULTS).is_file() else path


def write_runs(folder: Path, runs: Iterable[RunResults]) -> None:
    """Writes `runs.jsonl`."""
    lines = []
    for run in sorted(runs, key=lambda run: run.name):
        content = {"name": run.name, "results": run.results, **({"latency": run.latency} if run.latency else {})}
        lines.append(json.dumps(content, separators=(",", ":")) + "\n")
    write_text(folder / RUNS, "".join(lines))


def merge_runs(earlier: Iterable[RunResults], later: Iterable[RunResults]) -> list[RunResults]:
    """The runs of both by name: the later results, with latencies of both where the results are the same.

    Raises:
        ValueError: A run from elsewhere has two results, which may be those of two people whose folders share a name.
    """
    merged = {run.name: run for run in earlier}
    for run in later:
        if "/" in run.name and run.name in merged and merged[run.name].results != run.results:
            raise ValueError(
                f"{run.name} is in the report already, with other results: give the folder of the later ones another "
                "name, or make a new report"
            )
        is_known = run.name in merged and merged[run.name].results == run.results
        latency = merged[run.name].latency if is_known else {}
        merged[run.name] = replace(run, latency=latency | run.latency)
    return list(merged.values())


def complete_results(runs: Iterable[RunResults]) -> dict[str, dict[str, Any]]:
    """Results by the name of the run, with present argument names and defaults for arguments newer than the run.

    Raises:
        ValueError: A run does not say how large its classifier is, or names a method as none can be named.
    """
    defaults, complete = recorded_defaults(), {}
    for run in runs:
        args = defaults | with_present_names(run.results["args"])
        _check_figures(run, args)
        models = [run.results[role] for role in ROLES if role in run.results]
        if args["classifier"] != "linear" and not all("classifier_values" in of_model for of_model in models):
            raise ValueError(f"{run.name}: its results.json lacks the size of the classifier: run it again")
        of_roles = {role: run.results[role] for role in ROLES if role in run.results}
        for role, of_model in of_roles.items():  # earlier versions do not have it, and others may have another
            of_roles[role] = of_model | {"learning_accuracy": learning_accuracy(of_model["accuracy_matrix"])}
        complete[run.name] = run.results | of_roles | {"args": args}
    return complete


def _check_figures(run: RunResults, args: Mapping[str, Any]) -> None:
    """Checks what a report reads, as the file may come from anybody.

    Args:
        run: A run.
        args: Its arguments, complete.

    Raises:
        ValueError: Something is missing or of another kind.
    """
    results = run.results
    try:
        _check_arguments(args)
        _check_stream(results["stream"], results["tested_on"])
        trained = ROLES if args["stages"] == "both" else (args["stages"],)
        for role in ROLES:
            if role in results or role in trained:
                _check_model(results[role], role)
        for role in trained:
            _require(_is_number(results["seconds"][role]), f"seconds.{role}", results["seconds"][role])
        for name, version in results["versions"].items():
            _require(version is None or isinstance(version, str), f"versions.{name}", version)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{run.name}: these are not the results of a run ({reason})") from error


def _check_arguments(args: Mapping[str, Any]) -> None:
    _require(args["stages"] in ("both", *ROLES), "stages", args["stages"])
    for name in ("prompt_method", "distillation", "classifier"):  # also one of a user's own, which is registered
        _require(isinstance(args[name], str) and args[name].isidentifier(), name, args[name])
    of_teacher = args.get("teacher_prompt_method")  # None: as of the student
    _require(of_teacher is None or str(of_teacher).isidentifier(), "teacher_prompt_method", of_teacher)
    for name in ROLES:
        _require(isinstance(args[name], str), name, args[name])
    order = args["class_order"]
    _require(isinstance(order, str) or _are(str, order), "class_order", order)
    for name in ("seed", "stream_seed", "num_train_epochs", "batch_size"):
        _require(type(args[name]) is int, name, args[name])


def _check_stream(stream: Mapping[str, Any], tested_on: str) -> None:
    for name in ("train", tested_on, "classes_per_task"):
        _require(_are(int, stream[name]) and all(map(_is_number, stream[name])), f"stream.{name}", stream[name])
    num_classes, num_tasks = stream["classes_per_task"], stream["num_tasks"]
    _require(sum(num_classes) > 0, "stream.classes_per_task", num_classes)
    _require(type(num_tasks) is int and num_tasks == len(num_classes), "stream.num_tasks", num_tasks)
    for name in ("class_names", *(["domains"] if "domains" in stream else [])):
        _require(_are(str, stream[name]), f"stream.{name}", stream[name])
    _require(isinstance(stream.get("blurry", {}), dict), "stream.blurry", stream.get("blurry"))


def _check_model(of_model: Mapping[str, Any], role: str) -> None:
    for name in ("average_accuracy", "parameters", "trainable_parameters"):
        _require(_is_number(of_model[name]), f"{role}.{name}", of_model[name])
    _require(_is_number(of_model["forgetting"]["cdl"]), f"{role}.forgetting.cdl", of_model["forgetting"]["cdl"])
    for name in METRICS:
        value = metric_in(of_model, name)
        _require(value is None or _is_number(value), f"{role}.{name}", value)
    for name in ("classifier_values", "num_tasks"):  # earlier versions do not have them
        _require(_is_number(of_model.get(name, 0)), f"{role}.{name}", of_model.get(name))
    rows = of_model["accuracy_matrix"]
    is_matrix = _are(list, rows) and rows and all(row and all(map(_is_number, row)) for row in rows)
    _require(is_matrix, f"{role}.accuracy_matrix", rows)


def _require(is_right: object, name: str, value: object) -> None:
    if not is_right:
        raise ValueError(f"{name} cannot be {value!r}")


def _are(kind: type, values: object) -> bool:
    """Whether it is a list of values of this very type: a boolean is no number."""
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _is_number(value: object) -> bool:
    """Whether it is a number that can be added and printed: finite, and not of hundreds of digits."""
    return type(value) in (int, float) and abs(value) < 1e15  # type: ignore[arg-type]


def measure_latencies(
    runs: Iterable[RunResults],
    experiments: Iterable[Experiment],
    folder: Path,
    load_model: Callable[[Path], "PromptViTForImageClassification"],
) -> list[RunResults]:
    """Times one image on a saved model of each experiment, of the first seed that has one.

    Args:
        runs: The runs of the experiments.
        experiments: Made of these runs.
        folder: The folder with the folders of the runs.
        load_model: Loads a saved model from its folder.

    Returns:
        The runs with their latencies.

    Raises:
        ValueError: There is no saved model in the folder, or one cannot be loaded.
    """
    import torch

    from ..evaluation.speed import latency

    by_name, is_measured = {run.name: run for run in runs}, False
    for experiment in experiments:
        role = experiment.role
        names = [name for name in experiment.runs.values() if (folder / name / role / "config.json").is_file()]
        if names:
            model = load_model(folder / names[0] / role)
            side = model.network.image_size
            milliseconds = latency(model, torch.zeros(1, 3, side, side, device=model.device), repeats=100)
            device = f"{model.device.type}, {torch.get_num_threads()} thread(s)"
            measured = {"milliseconds": round(milliseconds, 3), "device": device}
            run, is_measured = by_name[names[0]], True
            by_name[run.name] = replace(run, latency=run.latency | {role: measured})
    if not is_measured:
        raise ValueError(f"{folder} has no saved models to measure: name the folder with the folders of runs")
    return list(by_name.values())


def latencies(runs: Iterable[RunResults], experiments: Iterable[Experiment]) -> dict[tuple[str, str], dict[str, Any]]:
    """The latency of each experiment for which there is one, by its name and role."""
    by_name: Mapping[str, RunResults] = {run.name: run for run in runs}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for experiment in experiments:
        for name in experiment.runs.values():
            if experiment.role in by_name[name].latency:
                found.setdefault((experiment.name, experiment.role), by_name[name].latency[experiment.role])
    return found


def _from_folder(folder: Path) -> RunResults:
    """A run's folder; reports of version 0.1.0 kept such folders, with `latency.json` beside the results."""
    latency = folder / "latency.json"
    return RunResults(
        folder.name or folder.resolve().name,
        _read_json(folder / RESULTS),
        _read_json(latency) if latency.is_file() else {},
    )


def _name(file: Path) -> str:
    """Of a run, by the file of its results."""
    return file.absolute().parent.name if file.name == RESULTS else file.stem


def _from_line(line: str, place: str) -> RunResults:
    try:
        content = json.loads(line)
        return RunResults(str(content["name"]), content["results"], content.get("latency", {}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{place}: this is not a stored run ({error!r})") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: cannot read this file as JSON ({error})") from error
