"""What the settings of a report are called, and their order."""

from collections.abc import Callable
from typing import Any

from cdl_hf.catalogue import DISTILLATION_METHODS, PROMPT_METHODS
from cdl_hf.comparison.experiments import Setting

PROMPTS = tuple(PROMPT_METHODS)
DISTILLATION = tuple(DISTILLATION_METHODS)
HEADS = ("linear", "aligned", "ncm", "ranpac")
HEAD_NAMES = {"linear": "trained head", "aligned": "aligned head", "ncm": "nearest class mean", "ranpac": "RanPAC"}


def order(setting: Setting) -> tuple:
    place = -1 if setting.distillation is None else DISTILLATION.index(setting.distillation)
    prompts = (PROMPTS.index(setting.prompts) + 1) % len(PROMPTS)  # frozen transformers, none, come first
    return (
        setting.scene,
        -setting.stream["num_tasks"],
        prompts,
        place,
        setting.taught_at_once,
        setting.note,
        HEADS.index(setting.head),
    )


def baseline_name(s: Setting) -> str:
    """What a baseline is, in words."""
    how = {
        "linear": "the head trained task after task",
        "aligned": "the head trained task after task and aligned",
        "ncm": "nearest class mean",
        "ranpac": "RanPAC",
    }
    if s.at_once:
        how = {"linear": "linear probe of all classes at once"} if s.prompts == "none" else {"linear": ""}
        how = {**{head: f"{name}, all classes at once" for head, name in HEAD_NAMES.items()}, **how}
    words = ["frozen" if s.prompts == "none" else s.prompts, how[s.head] or "all classes at once"]
    return ", ".join(words if s.distillation in (None, "none") else [*words, s.learner])


def full_name(s: Setting) -> str:
    words = ["frozen" if s.prompts == "none" else s.prompts, s.learner]
    return ", ".join(words if s.head == "linear" else [*words, HEAD_NAMES[s.head]])


def seeds_of(s: Setting) -> str:
    return " ".join(map(str, s.results))


def grouped(settings: list[Setting], key: Callable[[Setting], Any]) -> dict[Any, list[Setting]]:
    groups: dict[Any, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(key(setting), []).append(setting)
    return groups
