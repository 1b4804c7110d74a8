"""Fields of dataclasses as command-line arguments: what a field's annotation and metadata say."""

import types
import typing
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def argument(
    help: str,
    default: Any = MISSING,
    *,
    unset: str | None = None,
    choices: Collection[Any] | None = None,
    min: float | None = None,
    max: float | None = None,
    positional: bool = False,
    of_call: bool = False,
    aliases: tuple[str, ...] = (),
    before: Any = MISSING,
    role: Any = None,
) -> Any:
    """A field of an argument dataclass.

    Args:
        help: What it is, for `--help`: a phrase that begins with a capital and has no full stop.
        default: Without one the argument is required. A list is copied.
        unset: What the default `None` or `[]` means, in a few words; "not given" without.
        choices: The values that it may have; a mapping also holds what `--help` says of each. Instead of a `Literal`
            as annotation, where they are kept elsewhere.
        min, max: Bounds of numbers, both inclusive.
        positional: Whether its value may come without its name, before all arguments with one; a list takes the rest.
        of_call: Whether it is about this call only, so that a record of the arguments leaves it out.
        aliases: Earlier names, still read on the command line and in files.
        before: The value that a record means which is older than the argument; the default without.
        role: For the module of the argument class.
    """
    metadata = {"help": help, "unset": unset, "choices": choices, "min": min, "max": max, "positional": positional}
    metadata |= {"of_call": of_call, "aliases": aliases, "before": before, "role": role}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Argument:
    """A field of an argument dataclass, its annotation and metadata taken apart."""

    kind: type
    is_list: bool
    is_single: bool  # a single value is one; both this and `is_list` where either will do
    is_optional: bool
    default: Any
    help: str
    unset: str | None
    choices: Collection[Any] | None
    min: float | None
    max: float | None
    positional: bool
    of_call: bool
    aliases: tuple[str, ...]
    before: Any

    @property
    def is_switch(self) -> bool:
        return self.kind is bool and not self.is_list

    @property
    def range(self) -> str:
        if self.min is None:
            return "" if self.max is None else f"at most {self.max}"
        return f"at least {self.min}" if self.max is None else f"from {self.min} to {self.max}"


def collect(argument_classes: tuple[type, ...]) -> dict[str, Argument]:
    """The arguments of dataclasses by name, in order.

    Raises:
        TypeError: Two have the same name, or an annotation is none that an argument can have.
    """
    arguments: dict[str, Argument] = {}
    for argument_class in argument_classes:
        hints = typing.get_type_hints(argument_class)
        for f in fields(argument_class):
            if f.name in arguments or f.name in ("config", "help"):
                raise TypeError(f"{argument_class.__name__}.{f.name}: another argument has this name")
            kind, is_list, is_single, is_optional, literals = _take_apart(hints[f.name])
            known = {key: value for key, value in f.metadata.items() if key != "role"}
            known["choices"] = literals if known["choices"] is None else known["choices"]
            default = f.default if f.default_factory is MISSING else f.default_factory()
            arguments[f.name] = Argument(kind, is_list, is_single, is_optional, default, **known)
    return arguments


def _take_apart(hint: Any) -> tuple[type, bool, bool, bool, tuple[Any, ...] | None]:
    """An annotation as (type of a single value, may it be a list, a single value, None; choices)."""
    hints = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    is_optional = type(None) in hints
    lists = [typing.get_args(each)[0] for each in hints if typing.get_origin(each) is list]
    singles = [each for each in hints if each is not type(None) and typing.get_origin(each) is not list]
    kinds = set(lists + singles)
    if len(kinds) != 1:
        raise TypeError(f"{hint} is not a type that an argument can have")
    (single,) = kinds
    choices = typing.get_args(single) if typing.get_origin(single) is Literal else None
    kind = type(choices[0]) if choices else single
    if kind not in KINDS:
        raise TypeError(f"{hint} is not a type that an argument can have")
    return kind, bool(lists), bool(singles), is_optional, choices
