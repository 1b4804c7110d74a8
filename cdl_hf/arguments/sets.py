"""The arguments of a run by their roles, and as runs of earlier versions have recorded them."""

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal

from .config import RUN, HubArguments
from .roles import Role
from .stream import StreamArguments

_PRESENT_NAMES = {
    alias: f.name for argument_class in RUN for f in fields(argument_class) for alias in f.metadata["aliases"]
}


def with_present_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a run has recorded, under the names that they have now."""
    return {_PRESENT_NAMES.get(name, name): value for name, value in record.items()}


def recorded_defaults() -> dict[str, Any]:
    """The values that arguments had in a run whose record is older than they are."""
    defaults = {name: value for argument_class in RUN for name, value in vars(argument_class()).items()}
    before = {f.name: f.metadata["before"] for f in _run_fields() if f.metadata["before"] is not MISSING}
    return defaults | before


def unused(arguments: Mapping[str, Any]) -> frozenset[str]:
    """Arguments that mean nothing with these arguments, such as those of a classifier that a run does not have."""

    def is_unused(role: Role) -> bool:
        return role.only_with is not None and arguments.get(role.only_with[0]) != role.only_with[1]

    return _names(is_unused)


def record_of_resumed(given: Mapping[str, Any]) -> str | None:
    """Path of the `args.yaml` that the run to be resumed has left, by the arguments given; None if there is none."""
    if not given.get("resume_from_checkpoint") or given.get("output_dir") is None:
        return None
    path = os.path.join(given["output_dir"], "args.yaml")
    return path if os.path.isfile(path) else None


def names_of(argument_class: type) -> frozenset[str]:
    """Names of the arguments of one dataclass."""
    return frozenset(f.name for f in fields(argument_class))


def not_of_the_run() -> frozenset[str]:
    """Arguments that are about one call, or about what is done with a finished run: pushing it."""
    of_call = {f.name for f in _run_fields() if f.metadata["of_call"]}
    return names_of(HubArguments) | of_call


def affecting(*what: Literal["result", "rounding", "files", "nothing"]) -> frozenset[str]:
    """Arguments of the run itself that affect one of these at most; see [`Role`]."""
    return _names(lambda role: role.affects in what) - not_of_the_run()


def paths() -> frozenset[str]:
    """Arguments that are the path of a file or folder, of which only the last part says anything elsewhere."""
    return _names(lambda role: role.is_path)


def planned() -> frozenset[str]:
    """Arguments that a comparison sets for each of its runs, so that its file cannot."""
    return _names(lambda role: role.planned)


def shown_in_labels() -> frozenset[str]:
    """Arguments that the label of an experiment shows in words of its own."""
    return _names(lambda role: role.in_label)


def found_content() -> dict[str, str]:
    """For each argument that only says where to find something, or how it is chosen: what is found; see [`Role`]."""
    found = dict.fromkeys((f.name for f in fields(StreamArguments)), "stream")
    return found | {f.name: content for f in _run_fields() if (content := f.metadata["role"].content) is not None}


def _run_fields() -> list[Field[Any]]:
    return [f for argument_class in RUN for f in fields(argument_class)]


def _names(has_role: Callable[[Role], bool]) -> frozenset[str]:
    return frozenset(f.name for f in _run_fields() if has_role(f.metadata["role"]))
