"""The lock that keeps a second run out of an output folder.

It is the operating system's, on the file `.cdl_hf.lock` in the folder: released by the kernel when the process ends,
however it ends, so that what a dead run has left never blocks. The file stays, and is also the sign that a folder is a
run's. filelock is not used, for where a file system has no locks it takes the mere presence of a file for one.
"""

import errno
import os
import socket
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

NAME = ".cdl_hf.lock"
PATIENCE = 1.0  # seconds for which a lock that is taken is asked for again: another may only be looking
_TAKEN = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_UNKNOWN = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_held: dict[Path, int] = {}  # descriptors by path: a process is kept out of no folder by itself


class FolderInUse(ValueError):
    """Another process is at work in the folder; the message names both."""


class RunLock:
    """The lock of a folder, taken by one process at a time; taking it again in the same process changes nothing."""

    def __init__(self, folder: Path):
        self.path = folder.resolve() / NAME

    def acquire(self, patience: float = PATIENCE) -> None:
        """Takes the lock of a folder that is there.

        Raises:
            FolderInUse: Another process has it, `patience` seconds long.
            OSError: The file cannot be written.
        """
        end = time.monotonic() + patience
        while self.path not in _held:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(descriptor)
                is_there = os.fstat(descriptor).st_nlink > 0  # and was not removed between the two
            except OSError as error:
                os.close(descriptor)
                if error.errno in _TAKEN:
                    if time.monotonic() > end:
                        raise FolderInUse(f"{self._owner()} is at work in {self.path.parent}") from None
                    time.sleep(0.05)
                    continue
                if error.errno not in _UNKNOWN:
                    raise
                warnings.warn(
                    f"the file system of {self.path.parent} has no locks: nothing keeps a second run out of it",
                    stacklevel=2,
                )
                return
            if is_there:
                _held[self.path] = descriptor
                with suppress(OSError):  # of a full disk; it only shows others whose lock it is
                    os.truncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            else:
                os.close(descriptor)

    def release(self) -> None:
        """Gives the lock back, if this process has it."""
        descriptor = _held.pop(self.path, None)
        if descriptor is not None:
            os.close(descriptor)

    def is_taken(self) -> bool:
        """Whether another process has the lock now; nothing is written."""
        if self.path in _held or not self.path.is_file():
            return False
        try:
            self.acquire(0.0)
        except FolderInUse:
            return True
        except OSError:  # someone else's folder, which is not to be written to anyhow
            return False
        self.release()
        return False

    def _owner(self) -> str:
        try:
            return f"another run ({self.path.read_text(encoding='utf-8')})"
        except OSError:  # Windows lets no other read what is locked
            return "another run"


def _lock(descriptor: int) -> None:
    """Asks the system once.

    Raises:
        OSError: Another process has the lock, or there are none.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _close_in_child() -> None:
    """A worker that is forked would otherwise hold its run's lock for as long as it outlives it."""
    while _held:
        os.close(_held.popitem()[1])


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)
