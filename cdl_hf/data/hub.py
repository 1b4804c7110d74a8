"""Data sets from the Hub, or from the cache where they were loaded before."""

from contextlib import contextmanager

import datasets
import huggingface_hub
from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from .cache import is_to_blame
from .dataset_error import DatasetError, reason

# No such data set is a FileNotFoundError as well.
FAILURES = (ConnectionError, FileNotFoundError, ValueError, DatasetGenerationError)


def read_hub(name: str) -> DatasetDict:
    """The data set `owner/name`.

    Raises:
        DatasetError: there is none of that name, or neither a connection nor a copy in the cache.
    """
    if not hub_answers():
        with _offline():
            try:
                return _load(name)
            except DatasetError:
                raise
            except FAILURES as error:
                raise DatasetError(
                    f"'{name}' is no folder here, the Hub cannot be reached and the cache has no copy; "
                    "load it once with a connection, or give the path of a local copy."
                ) from error
    try:
        return _load(name)
    except DatasetError:
        raise
    except (*FAILURES, httpx.TransportError) as error:
        raise DatasetError(
            f"'{name}' is no folder here, and the Hub did not give it ({error}); "
            "check the name and the connection, or give the path of a local copy."
        ) from error


def _load(name: str) -> DatasetDict:
    try:
        return load_dataset(name)
    except (OSError, DatasetGenerationError) as error:
        if not is_to_blame(error):
            raise
        folders = f"'{datasets.config.HF_DATASETS_CACHE}' and '{huggingface_hub.constants.HF_HUB_CACHE}'"
        raise DatasetError(
            f"'{name}' cannot be copied to the cache ({reason(error)}); make room in {folders}, or set HF_HOME to a "
            "folder that can be written to."
        ) from error


def hub_answers() -> bool:
    """Asks once: without a connection, `datasets` and `transformers` would try for half a minute, telling it."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except (httpx.TransportError, OfflineModeIsEnabled):
        return False
    return True


@contextmanager
def _offline():
    """What HF_HUB_OFFLINE=1 does, for once."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
