"""Command-line arguments from plain dataclasses: a YAML file sets defaults, the command line overrides them.

    model_arguments, data_arguments = parse((ModelArguments, DataArguments))

Every field is an argument, made by [`argument`]. Its annotation is `str`, `int`, `float`, `bool`, a `Literal`, or a
`list` of one of them, each optionally `| None`; or `str | list[str]`, where one value makes a text and several make a
list. Checks of several fields together belong in the dataclass's `__post_init__`, which raises a ValueError that names
them.

Only the standard library and yaml are imported, so that `--help` takes no time.
"""

import difflib
import io
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, NoReturn

import yaml

from .cli_arguments import KINDS, Argument, argument, collect
from .cli_help import help_page, shown, title
from .console import show_messages
from .presets import preset_names, preset_or_file

__all__ = ["ParsedArguments", "argument", "cli_error", "did_you_mean", "parse", "program_name", "to_dict", "to_yaml"]

_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NOTHING = ("none", "null", "~", "")
_COMMAND_LINE = "command line"
# Launchers end all processes with the first that ends: for so many seconds the others let one of them speak.
PATIENCE = 5


@dataclass(frozen=True)
class ParsedArguments:
    """What `parse` returns: unpacks into one instance for each argument class, and keeps what the user gave.

    `command_line` holds the arguments as typed, `config` the entries of the YAML file as written (texts or lists of
    texts) and `config_file` its path; without `--config` both are None.
    """

    instances: tuple[Any, ...]
    command_line: list[str]
    config_file: str | None
    config: dict[str, str | list[str]] | None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.instances)

    @property
    def given(self) -> dict[str, Any]:
        """The arguments as given, ready for JSON or YAML; for those resolved see [`to_dict`] and [`to_yaml`]."""
        return {"command_line": self.command_line, "config_file": self.config_file, "config": self.config}


def parse(
    argument_classes: tuple[type, ...],
    argv: list[str] | None = None,
    description: str | None = None,
    record: Callable[[Mapping[str, Any]], str | None] | None = None,
) -> ParsedArguments:
    """Reads `argv` (this process's own if None). Mistakes end the process through [`cli_error`], `--help` with code 0.

    From then on, what the terminal cannot show, such as a class's name under LANG=C, is printed as an escape.

    Args:
        description: What `--help` says first.
        record: From the values that the user gave, by name, to the path of a file that [`to_yaml`] wrote, whose
            entries are taken where the user gave none; or to None.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    show_messages()
    arguments = collect(argument_classes)
    command_line = list(sys.argv[1:] if argv is None else argv)
    if "--help" in command_line or "-h" in command_line:
        print(help_page(argument_classes, arguments, description))
        raise SystemExit(0)

    config_file, typed = _read_command_line(command_line, arguments)
    written = _read_yaml(config_file, arguments, _header(argument_classes[0])) if config_file is not None else {}
    # The file is checked in full: an entry that the command line overrides may still not be wrong.
    values = {name: _convert(entry, arguments[name]) for name, entry in written.items()}
    values |= {name: _convert(entry, arguments[name]) for name, entry in typed.items()}
    earlier: dict[str, _Entry] = {}
    if record is not None and (path := record(values)) is not None:
        earlier = _read_yaml(path, arguments, header="")
        if not any(f.name in earlier for f in fields(argument_classes[-1])):
            cli_error(f"{path} is empty or cut off: put back a copy of it, or delete it and give all arguments")
        newer = {name: a.before for name, a in arguments.items() if a.before is not MISSING}
        values = newer | {name: _convert(entry, arguments[name]) for name, entry in earlier.items()} | values

    instances = []
    for argument_class in argument_classes:
        names = [f.name for f in fields(argument_class)]
        for name in names:
            if name not in values and arguments[name].default is MISSING:
                option = name if arguments[name].positional else f"--{name}"
                cli_error(f"{option} is required ({arguments[name].help})")
        try:
            instances.append(argument_class(**{name: values[name] for name in names if name in values}))
        except ValueError as error:
            cli_error(f"{_one_line(error)}{_origins(str(error), arguments, earlier | written | typed, values)}")
    config = {name: entry.raw for name, entry in written.items()} if config_file is not None else None
    return ParsedArguments(tuple(instances), command_line, config_file, config)


def to_dict(instances: Iterable[Any]) -> dict[str, Any]:
    """The arguments as resolved, in one flat dictionary."""
    return {name: value for instance in instances for name, value in asdict(instance).items()}


def to_yaml(instances: Iterable[Any]) -> str:
    """The arguments as resolved, but for those of one call, as a file that `--config` takes."""

    def section(instance: Any) -> str:
        of_call = {f.name for f in fields(instance) if f.metadata["of_call"]}
        values = {name: value for name, value in asdict(instance).items() if name not in of_call}
        return f"{_header(type(instance))}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"

    return "\n".join(map(section, instances))


def cli_error(message: str) -> NoReturn:
    """Ends the process as every mistake of the user's does: a message on stderr, exit code 2, no traceback.

    The message is one line, unless it has lines of its own, such as a list of files.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one message from each node, not one from each process
        print(f"{program_name()}: error: {message.strip()}", file=sys.stderr, flush=True)
    else:
        time.sleep(PATIENCE)  # a launcher kills all when the first one ends: it must be the one with the message
    raise SystemExit(2)


def program_name() -> str:
    """The name of this program in its messages, such as `train.py` or `cdl-hf train`."""
    return os.path.basename(sys.argv[0])


@dataclass(frozen=True)
class _Entry:
    """A value as somebody wrote it, and where."""

    name: str
    raw: str | list[str]
    place: str = _COMMAND_LINE

    @property
    def label(self) -> str:
        return f"--{self.name}" if self.place == _COMMAND_LINE else f"{self.name} ({self.place})"


def _present_name(name: str, arguments: dict[str, Argument]) -> str:
    """The argument's name now, where `name` is an earlier one or its `no_` form; else `name`."""
    bare = name.removeprefix("no_")
    for present, known in arguments.items():
        if name in known.aliases:
            return present
        if bare in known.aliases:
            return f"no_{present}"
    return name


def _read_command_line(
    command_line: list[str], arguments: dict[str, Argument]
) -> tuple[str | None, dict[str, _Entry]]:
    """The path that --config gives, and the other entries; of an argument given twice the last one counts."""
    first_named = next((i for i, token in enumerate(command_line) if token.startswith("--")), len(command_line))
    given = _by_position(command_line[:first_named], arguments)
    for token in command_line[first_named:]:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            name = _present_name(name, arguments)
            given.append((name, [value] if equals else []))
        else:
            given[-1][1].append(token)

    config_file, entries = None, {}
    for name, values in given:
        opposite = name.removeprefix("no_")
        if name == "config":
            if len(values) != 1 or not values[0]:
                cli_error("--config needs the path of one YAML file, or the name of a preset")
            config_file = values[0]
        elif name in arguments:
            argument = arguments[name]
            values = values or ["true"] * argument.is_switch
            if not values:
                cli_error(f"--{name} needs a value ({argument.help})")
            if len(values) > 1 and not argument.is_list:
                cli_error(f"--{name} takes one value, but {len(values)} are given: {' '.join(values)}")
            is_list = argument.is_list and not (argument.is_single and len(values) == 1)
            entries[name] = _Entry(name, values if is_list else values[0])
        elif opposite != name and opposite in arguments and arguments[opposite].is_switch:
            if values:
                cli_error(f"--{name} takes no value, but {' '.join(values)} is given: write --{name} alone")
            entries[opposite] = _Entry(opposite, "false")
        else:
            nearest = did_you_mean(name, (*arguments, "config"), prefix="--")
            cli_error(f"unknown argument --{name}{nearest} (--help lists all arguments)")
    return config_file, entries


def _by_position(values: list[str], arguments: dict[str, Argument]) -> list[tuple[str, list[str]]]:
    """The values that come before all names, each with the name of its argument."""
    given, rest = [], list(values)
    for name, known in arguments.items():
        if known.positional and rest:
            taken = len(rest) if known.is_list else 1
            given.append((name, rest[:taken]))
            rest = rest[taken:]
    if rest:
        cli_error(f"{rest[0]!r} is not an argument: write --name value (--help lists all arguments)")
    return given


def _read_yaml(path: str, arguments: dict[str, Argument], header: str) -> dict[str, _Entry]:
    """The file's entries as texts, so that `2e-3`, `010` and `no` mean what they mean on the command line.

    A file that begins with `header` is the record of an earlier call, which [`to_yaml`] wrote. It does not say what
    this one is to do: earlier versions wrote `overwrite: true` into it.
    """
    where = f"--config {path}" if header else path
    try:
        with open(preset_or_file(_expanded(path)), encoding="utf-8") as file:
            is_record = file.readline().startswith(header)
            file.seek(0)
            root = yaml.compose(file, Loader=yaml.BaseLoader)
    except OSError as error:
        cli_error(f"{where}: cannot read this file ({error.strerror}){did_you_mean(path, preset_names())}")
    except UnicodeDecodeError:
        cli_error(f"{where}: this file is not a text in UTF-8")
    except yaml.YAMLError as error:
        cli_error(f"{where}: this file is not valid YAML ({_one_line(error)})")
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        cli_error(f"{where}: this file must consist of lines 'name: value'")

    entries: dict[str, _Entry] = {}
    for key, node in root.value:
        name, place = _present_name(str(key.value), arguments), f"{path}, line {key.start_mark.line + 1}"
        if name == "config":
            cli_error(f"config ({place}): a YAML file cannot name another one; give --config on the command line")
        if name not in arguments:
            cli_error(f"unknown key {name!r} ({place}){did_you_mean(name, arguments)} (--help lists all arguments)")
        if name in entries:
            cli_error(f"{name} is set twice ({entries[name].place} and {place}): keep one of them")
        values = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(value, yaml.ScalarNode) for value in values):
            cli_error(f"{name} ({place}) must be a single value or a plain list: nothing can be nested in it")
        raw = [value.value for value in values]
        if not (is_record and arguments[name].of_call):
            entries[name] = _Entry(name, raw if isinstance(node, yaml.SequenceNode) else raw[0], place)
    return entries


def _convert(entry: _Entry, argument: Argument) -> Any:
    """The entry's value in the argument's type."""
    raw = entry.raw
    try:
        if argument.is_optional and _means_none(raw, argument):
            return None
        if not (argument.is_list if isinstance(raw, list) else argument.is_single):
            wanted = "a list such as [a, b]" if argument.is_list else f"{KINDS[argument.kind]}, not a list"
            raise ValueError(f"must be {wanted}, got {raw!r}")
        return [_convert_one(text, argument) for text in raw] if isinstance(raw, list) else _convert_one(raw, argument)
    except ValueError as error:
        cli_error(f"{entry.label} {error}")


def _means_none(raw: str | list[str], argument: Argument) -> bool:
    text = raw[0] if isinstance(raw, list) and len(raw) == 1 else raw
    return isinstance(text, str) and text.lower() in _NOTHING and text not in (argument.choices or ())


def _convert_one(text: str, argument: Argument) -> Any:
    try:
        if not text.strip():
            raise ValueError
        value: Any = _TRUTH[text.lower()] if argument.kind is bool else argument.kind(text)
        value = _expanded(value) if argument.kind is str else value
    except (KeyError, ValueError):
        raise ValueError(f"must be {KINDS[argument.kind]}, got {text!r}") from None
    if argument.kind is float and not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {text!r}")
    if argument.choices and value not in argument.choices:
        choices = [str(choice) for choice in argument.choices]
        raise ValueError(f"must be one of {', '.join(choices)}, got {text!r}{did_you_mean(text, choices)}")
    if argument.min is not None and value < argument.min or argument.max is not None and value > argument.max:
        raise ValueError(f"must be {argument.range}, got {text}")
    return value


def _expanded(text: str) -> str:
    """The text with a home folder in front of what is a path in it."""
    return os.path.expanduser(text) if re.match(r"~[^/\\]*[/\\]", text) else text


def did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    """A question that names the nearest of the names, to be added to a message; empty if none is near."""
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""


def _origins(message: str, arguments: dict[str, Argument], entries: dict[str, _Entry], values: dict[str, Any]) -> str:
    """The value of every argument that the message names, and where it comes from."""
    origins = []
    for name in dict.fromkeys(re.findall(r"\w+", message)):
        if name in entries:
            origins.append(f"{name} = {shown(values[name])} ({entries[name].place})")
        elif name in arguments:
            origins.append(f"{name} = {shown(arguments[name].default)} (default)")
    return f" [{', '.join(origins)}]" if origins else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _header(argument_class: type) -> str:
    return f"# {title(argument_class)}"
