"""What saves time at the next start: files in the cache folder of `datasets`, where they can be written.

None of our own is needed: a cache that is damaged, read-only, full or another user's costs time, and no more. Only
`datasets` itself cannot do without.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from filelock import FileLock, Timeout

from ..utils import atomic_write

SILENT_WAIT = 5  # seconds that one waits for another process without a word

# of writing; what is not there is the data, not the cache
_FAILURES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR)

logger = logging.getLogger(__name__)


def cache_file(folder: str, name: str) -> Path:
    """Where a file of this name is, or may be written, in a folder of the cache."""
    return Path(datasets.config.HF_DATASETS_CACHE, folder, name)


@contextmanager
def one_at_a_time(file: Path, work: str) -> Iterator[None]:
    """Keeps other processes out of the same work, so that they find what comes of it in the `file`.

    Without rights to the lock they all do it.

    Args:
        work: what to say that one waits for, such as "check the images of 'birds'".
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
        lock.release()  # nothing where it was not acquired


def write_cache(file: Path, content: bytes | memoryview, *, checksum: bool = False) -> bool:
    """Writes a file of the cache whole or not at all; says so if it cannot, and whether it could."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, checksum=checksum) as stream:
            stream.write(content)
    except OSError as error:
        logger.warning(
            "The cache file %s cannot be written (%s), so the same work will be done at the next start; "
            "to save it, set HF_DATASETS_CACHE to a folder that can be written to",
            *(file, error.strerror or error),
        )
        return False
    return True


def is_cache_error(error: BaseException) -> bool:
    """Whether `datasets` fails because it cannot write to its cache."""
    while error is not None:
        if isinstance(error, OSError) and (error.errno in _FAILURES or str(error).startswith("Not enough disk space")):
            return True
        error = error.__cause__
    return False
