"""Checkpoints of a run: written whole or not at all, verified when read, the newest valid one is resumed from."""

import hashlib
import io
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

KEPT = 2
_STATE, _DIGEST = "state.pt", "sha256"


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """What was learnt: the state of `module` without its frozen transformers, on the CPU."""
    frozen = tuple(f"{name}." for name, child in module.named_modules() if isinstance(child, VisionTransformer))
    return {
        name: value.detach().cpu()
        for name, value in module.state_dict().items()
        if not name.startswith(frozen or "\0")
    }


def load_trained_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts back what [`trained_state`] took.

    Raises:
        ValueError: The state is of another module.
    """
    expected = trained_state(module)
    differing = sorted(expected.keys() ^ state.keys()) or sorted(
        name for name in expected if expected[name].shape != state[name].shape
    )
    if differing:
        raise ValueError(f"the saved state is of another model: {', '.join(differing[:5])} do not fit")
    module.load_state_dict(state, strict=False)


def save_checkpoint(folder: Path, number: int, state: dict[str, Any]) -> Path:
    """Writes `state` (tensors and plain values) as checkpoint `number` and removes all but the newest [`KEPT`].

    It is written to a temporary folder, flushed to disk and renamed: a crash leaves the earlier ones untouched.

    Raises:
        OSError: It cannot be written, such as for want of space; nothing of it is left, and the earlier ones are.
    """
    target = folder / f"{number:012d}"
    temporary = folder / f".{target.name}"
    for unfinished in folder.glob(".*"):  # of a run that was killed in a save
        shutil.rmtree(unfinished)
    # In memory first: the checksum is of what was meant, and torch's own writer tells of a full disk in riddles.
    content = io.BytesIO()
    torch.save(state, content)
    try:
        temporary.mkdir(parents=True)
        _write_through(temporary / _STATE, content.getbuffer())
        _write_through(temporary / _DIGEST, hashlib.sha256(content.getbuffer()).hexdigest().encode())
        _flush(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        _flush(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in _numbered(folder)[:-KEPT]:
        shutil.rmtree(old)
    return target


def load_newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or `None`; a damaged one is passed over with a warning.

    Nothing but tensors and plain values is unpickled: one with code in it counts as damaged.
    """
    for path in reversed(_numbered(folder)):
        try:
            if (path / _DIGEST).read_text() != _file_digest(path / _STATE):
                raise ValueError("its checksum does not fit")
            return torch.load(path / _STATE, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            reason = "it holds more than tensors and plain values"
        except (OSError, ValueError) as error:
            reason = str(error)
        warnings.warn(f"checkpoint {path} is damaged ({reason}); trying the one before it", stacklevel=2)
    return None


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.name.isdigit())


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_through(path: Path, content: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
