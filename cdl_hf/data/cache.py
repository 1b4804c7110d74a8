"""Where prepared data is kept: in the cache folder of `datasets`."""

import os
from pathlib import Path

import datasets

from .source_error import SourceError


def cache_folder(name: str) -> Path:
    """The folder of this name in the cache, which is made if need be.

    Raises:
        SourceError: it cannot be written to.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise SourceError(f"The cache folder '{folder}' cannot be written to; set HF_DATASETS_CACHE to one that can.")
    return folder
