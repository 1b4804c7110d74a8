"""Errors of data sets, and how messages quote lists and causes."""


class DatasetError(ValueError):
    """A data set that cannot be learnt from; the message says what is wrong, where, and what to do."""


def reason(error: BaseException) -> str:
    """What an error says that others were raised from, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def listed(names: list[str], limit: int = 5) -> str:
    """The first of the names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
