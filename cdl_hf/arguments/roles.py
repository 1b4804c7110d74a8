"""What an argument means for a run, said by its field."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from ..cli_arguments import argument as plain_argument


@dataclass(frozen=True)
class Role:
    """What an argument means for a run. What it belongs to is its dataclass: the stream, the models, the Hub ...

    Args:
        affects: What differs between two runs that differ in it: their `result`, only the `rounding` of it, only the
            `files` other than the results, or `nothing` that is kept.
        content: Where it only says where to find something, what is found there: `stream`, `backbones`,
            `images without labels`, or `states of the teacher` or `student`. Where the same is found, it is the same
            argument.
        is_path: Whether it is the path of a file or folder, and nothing else.
        planned: Whether a comparison sets it for each of its runs.
        in_label: Whether the label of an experiment shows it in words of its own.
        only_with: Another argument and its value, without which it means nothing.
    """

    affects: Literal["result", "rounding", "files", "nothing"] = "result"
    content: str | None = None
    is_path: bool = False
    planned: bool = False
    in_label: bool = False
    only_with: tuple[str, str] | None = None


def argument(default: Any, help: str, **more: Any) -> Any:
    """As [`cdl_hf.cli_arguments.argument`], with the fields of its [`Role`] beside the other keywords."""
    role = {f.name: more.pop(f.name) for f in fields(Role) if f.name in more}
    return plain_argument(help, default, role=Role(**role), **more)
