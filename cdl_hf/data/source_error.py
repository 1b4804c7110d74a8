"""What goes wrong with data."""


class SourceError(ValueError):
    """A data set that cannot be learnt from; the message says what is wrong, where, and what to do."""
