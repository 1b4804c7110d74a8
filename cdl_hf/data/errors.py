"""Error of data sets that cannot be used, and the parts of its messages."""


class DatasetError(ValueError):
    """A data set that cannot be used; the message says what is wrong, where, and what to do."""


def reason(error: BaseException) -> str:
    """Message of the first error in a chain of causes, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def listed(names: list[str], limit: int = 5) -> str:
    """The first `limit` names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
