"""Checkpoints of a run: written whole or not at all, verified when read, the newest valid one is resumed from."""

import hashlib
import io
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.computed import Computed
from ..models.modeling_prompt_vit import LOGIT_SCALE, frozen_networks
from ..utils import UNFINISHED, atomic_folder, remove

NUM_KEPT = 2
STATE, _DIGEST = "state.pt", "sha256"
_NAME = re.compile(r"task_(\d{3,})-stage_(\d+)-step_(\d{8,})")
_NUMBER = re.compile(r"\d{12}")


def trained_state(module: nn.Module, *, statistics: bool = False) -> dict[str, Tensor]:
    """The trained state: the state of `module` without its frozen transformers, on the CPU.

    Args:
        statistics: Whether with what computed classifiers keep for further classes, and no prediction needs.
    """
    frozen = tuple(f"{name}." for name, _ in frozen_networks(module))
    state = {
        name: value.detach().cpu()
        for name, value in module.state_dict().items()
        if not name.startswith(frozen or "\0")
    }
    for name, computed in _computed(module) if statistics else ():
        state |= {f"{name}.{key}": value for key, value in computed.statistics().items()}
    return state


def load_trained_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts back what [`trained_state`] took, with statistics or without.

    An objective of version 0.1.0 called its model `student`, and its probabilities were not scaled.

    Raises:
        ValueError: The state is of another module.
    """
    state = {re.sub(r"^student\.", "model.", name): value for name, value in state.items()}
    statistics = {
        name: {key: state[f"{name}.{key}"] for key in computed.for_further_classes if f"{name}.{key}" in state}
        for name, computed in _computed(module)
    }
    beside = {f"{name}.{key}" for name, kept in statistics.items() for key in kept}
    state = {name: value for name, value in state.items() if name not in beside}
    expected = trained_state(module)
    scales = {name: torch.ones(()) for name in expected if name.endswith(LOGIT_SCALE)}
    state = scales | state
    differing = sorted(expected.keys() ^ state.keys()) or sorted(
        name for name in expected if expected[name].shape != state[name].shape
    )
    if differing:
        raise ValueError(f"the saved state is of another model: {', '.join(differing[:5])} do not fit")
    module.load_state_dict(state, strict=False)
    for name, computed in _computed(module):
        computed.load_statistics(statistics[name])


def _computed(module: nn.Module) -> list[tuple[str, Computed]]:
    return [(name, child) for name, child in module.named_modules() if isinstance(child, Computed)]


def checkpoint_name(task: int, stage: int, step: int) -> str:
    """Name of the checkpoint from which the run continues in this stage of this task.

    Args:
        task, stage: From 0; after the last stage of a task the classifiers and the evaluation follow.
        step: Optimizer steps of the whole run that are done.
    """
    return f"task_{task:03d}-stage_{stage}-step_{step:08d}"


def save_checkpoint(folder: Path, name: str, state: dict[str, Any]) -> Path:
    """Writes `state` (tensors and plain values) as a checkpoint and removes all earlier ones but [`NUM_KEPT`] - 1.

    A crash leaves the earlier ones untouched. Later ones are damaged, for the run has continued from before them: they
    are removed. Other files in the folder are left alone.

    Args:
        name: From [`checkpoint_name`].

    Raises:
        OSError: It cannot be written, such as for want of space; the earlier ones are kept.
    """
    target = folder / name
    # In memory first: the checksum is of what was meant, and torch's own writer reports a full disk in riddles.
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_folder(target) as temporary:
        (temporary / STATE).write_bytes(content.getbuffer())
        (temporary / _DIGEST).write_text(hashlib.sha256(content.getbuffer()).hexdigest())
    checkpoints = list_checkpoints(folder)
    kept = checkpoints[: checkpoints.index(target) + 1][-NUM_KEPT:]
    hidden = {path: path.name.removeprefix(".").removesuffix(UNFINISHED) for path in folder.glob(".*")}
    unfinished = [path for path, name in hidden.items() if _position(name) is not None]
    for path in {*checkpoints, *unfinished} - {*kept}:  # unfinished: of a run that was killed while saving
        remove(path)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in the order in which a run writes them."""
    folders = [path for path in folder.glob("*") if path.is_dir()]
    positions = {path: position for path in folders if (position := _position(path.name)) is not None}
    return sorted(positions, key=positions.__getitem__)


def _position(name: str) -> tuple[int, ...] | None:
    """Where in the run a checkpoint stands; `None` for a name that is none."""
    if match := _NAME.fullmatch(name):
        return tuple(map(int, match.groups()))
    return (-1, 0, int(name)) if _NUMBER.fullmatch(name) else None  # a number: of version 0.1.0


def load_newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or `None` where there is none; a damaged one is passed over with a warning.

    Nothing but tensors and plain values is unpickled: one with code in it counts as damaged.

    Raises:
        ValueError: There are checkpoints, but none of them is whole, or one cannot be read for now.
    """
    damaged = []
    for path in reversed(list_checkpoints(folder)):
        try:
            if (path / _DIGEST).read_bytes() != _file_digest(path / STATE).encode():
                raise ValueError("its checksum does not fit")
            return torch.load(path / STATE, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            reason = "it holds more than tensors and plain values"
        except FileNotFoundError as error:
            reason = f"{Path(error.filename).name} is missing"
        except OSError as error:  # no right to read it, a disk that does not answer: it may be whole
            raise ValueError(f"checkpoint {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            reason = str(error)
        damaged.append(f"{path.name}: {reason}")
        warnings.warn(f"checkpoint {path} is damaged ({reason}); trying the one before it", stacklevel=2)
    if damaged:
        raise ValueError(
            f"no checkpoint in {folder} is whole ({'; '.join(damaged)}): put back a copy of one, or start the run "
            "again with --overwrite_output_dir"
        )
    return None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
