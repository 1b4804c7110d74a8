"""Files in the cache folder of `datasets` that save time at the next start.

This package works without them: if the cache is damaged, read-only, full or owned by another user, the work is done
again. Only `datasets` itself needs a writable cache.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from filelock import FileLock, Timeout

from ..utils import atomic_write

SILENT_WAIT = 5  # seconds to wait for another process before a warning

# on writing; ENOENT is missing because it means missing data, not an unusable cache
_FAILURES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR)

logger = logging.getLogger(__name__)


def cache_file(folder: str, name: str) -> Path:
    """Path of a file in a folder of the cache, whether or not it exists."""
    return Path(datasets.config.HF_DATASETS_CACHE, folder, name)


@contextmanager
def one_at_a_time(file: Path, work: str) -> Iterator[None]:
    """Lets one process at a time do the work whose result is stored in `file`, so that the others find it there.

    Without permission to create the lock, every process does the work.

    Args:
        work: description for the warning of a process that waits, such as "check the images of 'birds'".
    """
    lock = FileLock(f"{file}.lock")
    try:
        try:
            lock.acquire(timeout=SILENT_WAIT)
        except Timeout:
            logger.warning("Waiting for another process to %s (it holds %s)", work, lock.lock_file)
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        logger.debug("No lock on %s: %s", lock.lock_file, error)
    try:
        yield
    finally:
        lock.release()  # does nothing if it was not acquired


def write_cache(file: Path, content: bytes | memoryview, *, checksum: bool = False) -> bool:
    """Writes a cache file completely or not at all; returns whether it was written, and warns if not."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, checksum=checksum) as stream:
            stream.write(content)
    except OSError as error:
        logger.warning(
            "The cache file %s cannot be written (%s), so the work will be repeated at the next start; "
            "set HF_DATASETS_CACHE to a writable folder to avoid this",
            *(file, error.strerror or error),
        )
        return False
    return True


def is_cache_error(error: BaseException) -> bool:
    """Whether `datasets` failed because it cannot write to its cache."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and (cause.errno in _FAILURES or str(cause).startswith("Not enough disk space")):
            return True
        cause = cause.__cause__
    return False
