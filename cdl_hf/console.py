"""What the package's log messages and warnings look like on a command line, and their end where nobody reads them."""

import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_RANK = "[RANK 0] "  # which Accelerate's loggers put before what only the main process says


class _Console(logging.Handler):
    """Prints messages as they are: what a run reports on stdout, warnings and errors on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        is_report = record.levelno < logging.WARNING
        print(self.format(record).removeprefix(_RANK), file=sys.stdout if is_report else sys.stderr, flush=True)


def show_messages(level: int = logging.INFO) -> None:
    """Lets the loggers of cdl_hf print from this level on, and warnings of users' matters without their source lines.

    A script calls it, through [`cdl_hf.cli.parse`]; the package alone leaves logging and warnings as they are.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # a line for each split that is read
    logger = logging.getLogger("cdl_hf")
    logger.setLevel(level)
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())
    warnings.formatwarning = _format_warning


_format_with_source = warnings.formatwarning


def _format_warning(message, category, filename, lineno, line=None) -> str:
    if category is UserWarning:
        return f"warning: {message}\n"
    return _format_with_source(message, category, filename, lineno, line)


@contextmanager
def ends_with_reader() -> Iterator[None]:
    """A command within ends quietly, with exit code 1, when nobody reads its output any more, as before `| head`.

    `train`, `pretrain`, `learn` and `forget` go on instead (see [`interruptible`]). After
    https://docs.python.org/3/library/signal.html.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # now, as an error at the exit of Python cannot be caught
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        if not unread:  # another pipe or a connection
            raise
        for stream in unread:  # for what Python flushes at its exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(1)


def _is_unread(stream: TextIO) -> bool:
    """Whether the other end of the pipe that the stream writes to is closed."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
