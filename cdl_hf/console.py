"""What the package's log messages and warnings look like on a command line."""

import logging
import os
import sys
import warnings


class _Console(logging.Handler):
    """Prints messages as they are: what a run reports on stdout, warnings and errors on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        is_report = record.levelno < logging.WARNING
        print(self.format(record), file=sys.stdout if is_report else sys.stderr, flush=True)


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
