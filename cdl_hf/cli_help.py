"""The page that `--help` prints."""

import argparse
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from .cli_arguments import Argument


def help_page(argument_classes: tuple[type, ...], arguments: Mapping[str, Argument], description: str | None) -> str:
    """Positional arguments first, then a group for each class, under the first line of its docstring.

    argparse only lays out the page: as a parser it would take `-1e-3` for an option.
    """
    positional = {name: argument for name, argument in arguments.items() if argument.positional}
    usage = [f"{name.upper()}{' ...' * argument.is_list}" for name, argument in positional.items()]
    page = argparse.ArgumentParser(
        usage=" ".join(["%(prog)s", *usage, "[--config FILE.yaml] [--argument value ...]"]),
        description=description,
        formatter_class=lambda prog: _Formatter(prog, max_help_position=36, width=119),
        add_help=False,
    )
    group = page.add_argument_group("positional arguments")
    for name, argument in positional.items():
        group.add_argument(name, metavar=name.upper(), help=_described(argument))
    group = page.add_argument_group("options")
    group.add_argument("-h, --help", action="store_true", help="Show this page and stop")
    group.add_argument(
        "--config", metavar="FILE.yaml", help="File of arguments or name of a preset, which the command line overrides"
    )
    for argument_class in argument_classes:
        group = page.add_argument_group(title(argument_class))
        for f in fields(argument_class):
            argument = arguments[f.name]
            if argument.is_switch:
                group.add_argument(f"--[no_]{f.name}", action="store_true", help=_described(argument))
            elif not argument.positional:
                nargs = "+" if argument.is_list else None
                group.add_argument(f"--{f.name}", metavar=_metavar(argument), nargs=nargs, help=_described(argument))
    return page.format_help().rstrip()


def title(argument_class: type) -> str:
    """The first line of its docstring."""
    return (argument_class.__doc__ or "").strip().splitlines()[0].rstrip(".")


def shown(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, list):
        return " ".join(shown(each) for each in value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _metavar(argument: Argument) -> str:
    if argument.choices is None:
        return argument.kind.__name__.upper()
    return "NAME" if isinstance(argument.choices, Mapping) else f"{{{','.join(map(str, argument.choices))}}}"


def _described(argument: Argument) -> str:
    """Its help, range and default, and a line for each choice that has a description."""
    notes = [argument.range] if argument.range else []
    if argument.default is MISSING:
        notes += [] if argument.positional else ["required"]
    elif argument.default in (None, []):
        notes.append(f"default: {argument.unset or 'not given'}")
    else:
        notes.append(f"default: {shown(argument.default)}")
    lines = [f"{argument.help} ({'; '.join(notes)})" if notes else argument.help]
    if isinstance(argument.choices, Mapping):
        width = max(map(len, argument.choices))
        lines += [f"  {value:{width}}  {described}" for value, described in argument.choices.items()]
    return "\n".join(lines).replace("%", "%%")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a help text apart, and wraps each of them."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [
            wrapped
            for line in text.splitlines()
            for wrapped in textwrap.wrap(line, width, subsequent_indent="  " * line.startswith("  ") * 2)
        ]
