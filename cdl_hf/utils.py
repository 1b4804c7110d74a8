"""Files written whole or not at all and verified when read, seeds, cores and versions.

What is read back carries a SHA-256, from which damage is noticed:

- a safetensors file (states, models) in its header, as the entry `sha256` of `__metadata__`: the digest of the whole
  file with 64 zeros in the place of the digest, so that the file may be moved and renamed;
- another file (cached teacher outputs) in `<name>.sha256` beside it, as `sha256sum` writes and checks it;
- a checkpoint, which is a folder, in its file `sha256`.

Files without a checksum, such as those of earlier versions, are read without the check.
"""

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .version import __version__

PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "timm")  # named in `versions`
CHECKSUM = "sha256"  # its name in the metadata of a safetensors file
UNFINISHED = ".cdl_hf-unfinished"  # ends the name of what is being written; no user gives it to a file of their own
_ZEROS = b"0" * 64
_CHUNK = 2**20
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP}  # of a file system that cannot flush a folder


class DamagedFile(OSError, ValueError):
    """A file is not what was written; the message names it, and `reason` says how that is known."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path} is damaged: {reason}")
        self.reason = reason


class _Hashing:
    """A file that is being written, and the digest of what was meant to be in it."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, content: bytes | memoryview) -> None:
        self.file.write(content)
        self.digest.update(content)


@contextmanager
def atomic_write(path: Path, *, checksum: bool = False) -> Iterator[_Hashing]:
    """Gives what `.write(content)` takes the bytes of a file, which is there whole afterwards, or not at all.

    They go into a hidden file beside it, which is flushed to disk and renamed at the end; after an error it is removed
    and an earlier file is left as it was. The rights are those of any new file, by the umask.

    Args:
        checksum: Whether `<name>.sha256` is written beside it, for [`verify`].

    Raises:
        OSError: It cannot be written, such as for want of space.
    """
    temporary, beside = unfinished(path), _beside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            hashing = _Hashing(file)
            yield hashing
            file.flush()
            os.fsync(file.fileno())
        beside.unlink(missing_ok=True)  # an earlier file's: killed here, the new one is without
        temporary.replace(path)
    except BaseException:  # a signal too: nothing half written stays
        temporary.unlink(missing_ok=True)
        raise
    if checksum:
        write_text(beside, f"{hashing.digest.hexdigest()}  {path.name}\n")  # flushes the folder
    else:
        flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8 whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # of names that are not UTF-8; in JSON they come back


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a hidden folder to fill, which takes the place of `path` when it is full: [`atomic_write`] for folders.

    Raises:
        OSError: It cannot be written; nothing of it is left, and an earlier folder is.
    """
    temporary = unfinished(path)
    remove(temporary)  # of a process that was killed
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for place, _, names in os.walk(temporary):
            for name in names:
                with open(os.path.join(place, name), "rb+") as file:
                    os.fsync(file.fileno())
            flush_folder(Path(place))
        remove(path)
        temporary.rename(path)
    except BaseException:  # a signal too: nothing half written stays
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush_folder(path.parent)


def unfinished(path: Path) -> Path:
    """The hidden file or folder beside `path` in which it is written, until it is complete."""
    return path.with_name(f".{path.name}{UNFINISHED}")


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all that is in it; nothing, where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush_folder(path: Path) -> None:
    """Flushes the names in a folder to disk, where the system can."""
    if os.name == "nt":  # a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


def seal(content: bytes) -> bytes:
    """The bytes of a safetensors file with its checksum in the header."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = {**header.get("__metadata__", {}), CHECKSUM: _ZEROS.decode()}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    unsealed = struct.pack("<Q", len(text)) + text + content[8 + length :]
    digest = hashlib.sha256(unsealed).hexdigest().encode()
    return unsealed.replace(b'"sha256":"%b"' % _ZEROS, b'"sha256":"%b"' % digest, 1)


def seal_file(path: Path) -> None:
    """Puts its checksum into a safetensors file that another library has written, and gives it a new file's rights."""
    content = path.read_bytes()
    with atomic_write(path) as file:
        file.write(seal(content))


def verify(path: Path) -> None:
    """Compares a file with its checksum, where it has one.

    Raises:
        DamagedFile: They differ.
        OSError: It is not there, or cannot be read.
    """
    if path.suffix == ".safetensors":
        _verify_tensors(path)
    elif _beside(path).is_file():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if _beside(path).read_bytes().split()[:1] != [found.encode()]:
            raise DamagedFile(path, f"it does not fit its checksum in {_beside(path).name}")


def _verify_tensors(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(8)
        rest = os.fstat(file.fileno()).st_size - 8
        if rest <= 0 or (length := struct.unpack("<Q", start)[0]) > rest:
            raise DamagedFile(path, f"it is {'cut off' if rest > -8 else 'empty'}")
        header = file.read(length)
        written = re.search(rb'"sha256":"([^"]{64})"', header)
        if written is None and re.search(rb'"[^"]{6}":"[0-9a-f]{64}"', header):
            raise DamagedFile(path, "the name of the checksum in its header is")
        if written is None:
            return
        digest = hashlib.sha256(start + header[: written.start(1)] + _ZEROS + header[written.end(1) :])
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if written[1] != digest.hexdigest().encode():
        raise DamagedFile(path, "it does not fit the checksum in its header")


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def num_cores() -> int:
    """Processor cores that this process may use; all of the machine's where the system does not tell."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 32-bit seed for one purpose, such as `derive_seed(0, "order", task)`: independent of all other purposes'."""
    words = [seed]
    for part in purpose:
        words += part.encode() if isinstance(part, str) else [part]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def versions() -> dict[str, str | None]:
    """Name -> version of this package, of Python and of [`PACKAGES`]; `commit` is that of the code.

    The first call decides, for the files may change while a run is at work: it belongs to the beginning of a run.
    """
    packages = {package: version(package) for package in PACKAGES}
    return {"cdl_hf": __version__, "python": platform.python_version(), **packages, "commit": _commit()}


@cache
def _commit() -> str | None:
    return code_commit()


def code_commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of the code, with `-dirty` after it where tracked files differ; None if it is no Git checkout.

    Args:
        folder: The package's. One that merely lies in somebody's repository, as in a virtual environment there, is
            no checkout.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):  # no Git, no repository, or not one of ours
        return None


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()
