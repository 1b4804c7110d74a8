"""What goes wrong in one process is known to all."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import gather_object


@contextmanager
def together() -> Iterator[None]:
    """A user's mistake that any process meets within is raised by all of them after it.

    Without it the others would wait for the one that has stopped. Processes must not wait for each other within.

    Raises:
        ValueError: The first process's that met one.
    """
    mistake = None
    try:
        yield
    except (ValueError, OSError) as error:
        mistake = str(error)
    for found in gather_object([mistake]):
        if found is not None:
            raise ValueError(found)
