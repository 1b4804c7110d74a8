"""What a run is made of, so that a resumed one is the same: arguments, data, weights, processes."""

from dataclasses import fields
from typing import Any

from accelerate import Accelerator

from ..data import TaskStream
from .arguments import HubArguments
from .build import Learners
from .parser import ParsedArguments, to_dict

_OF_THE_CALL = {"dry_run", "overwrite", "resume", *(field.name for field in fields(HubArguments))}  # not of the run
# What a run may be resumed with differently: the first change nothing in the result, the others its rounding.
HARMLESS = {"output_dir", "checkpoint_every", "report_to", "num_workers", "eval_batch_size"}
ROUNDING = {"num_processes", "gradient_accumulation_steps", "auto_batch_size"}


def fingerprint(
    arguments: ParsedArguments, stream: TaskStream, learners: Learners, accelerator: Accelerator
) -> dict[str, Any]:
    """The resolved arguments, and what they found: images, classes, weights, processes, precision."""
    given = {name: value for name, value in to_dict(arguments).items() if name not in _OF_THE_CALL}
    sizes = {name: stream.describe()[name] for name in ("train", "validation", "test", "class_names")}
    digests = {f"weights of the {role}": b.digest for role, b in learners.backbones.items()}
    return {
        **given,
        **sizes,
        **digests,
        "num_processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What differs between two fingerprints, each told in words, by its name."""
    return {
        name: f"{name} was {_short(before.get(name))}, is now {_short(now.get(name))}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
