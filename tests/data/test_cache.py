"""What is said where `datasets` cannot write to its cache."""

import errno
import os

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError
from tiny_data import labelled

from cdl_hf.data import DatasetError, load_image_dataset, sources, tables


def generation_error(cause):
    error = DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = cause
    return error


def os_error(number):
    return OSError(number, os.strerror(number))


@pytest.fixture
def stored(tmp_path):
    labelled([0, 1], ["x", "y"]).to_parquet(tmp_path / "data.parquet")
    return str(tmp_path / "data.parquet")


@pytest.mark.parametrize("where", ["local", "hub"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (generation_error(os_error(errno.ENOSPC)), "No space left on device"),
        (OSError("Not enough disk space. Needed: 3 GB"), "Not enough disk space"),
        (os_error(errno.EROFS), "Read-only file system"),
        (os_error(errno.EACCES), "Permission denied"),
    ],
)
def test_the_cache_is_named_not_the_data(stored, monkeypatch, where, error, told):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(tables if where == "local" else sources, "load_dataset", load)
    monkeypatch.setattr(sources, "is_hub_reachable", lambda: False)
    with pytest.raises(DatasetError) as found:
        load_image_dataset(stored if where == "local" else "owner/data")
    assert "cannot be copied to the cache" in str(found.value) and told in str(found.value)
    assert str(datasets.config.HF_DATASETS_CACHE) in str(found.value) and "damaged" not in str(found.value)
