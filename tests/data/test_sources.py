"""Named data sets, and data sets of the Hub with and without a connection."""

import datasets
import huggingface_hub
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.utils import httpx
from tiny_data import cifar_like

from cdl_hf.data import DatasetError, dataset_spec, load_image_dataset, sources


def flags():
    return huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


@pytest.fixture
def online(monkeypatch):
    """As if HF_HUB_OFFLINE were not set."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


class Session:
    def __init__(self, error=None):
        self.error, self.asked = error, 0

    def head(self, url, timeout):
        self.asked += 1
        if self.error:
            raise self.error


def use(monkeypatch, session, load):
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    monkeypatch.setattr(sources, "load_dataset", load)
    return session


@pytest.mark.parametrize("error", [httpx.ConnectError("no such host"), httpx.ConnectTimeout("too slow")])
def test_without_a_connection_only_the_cache_is_asked(monkeypatch, online, error):
    found = []

    def load(name):
        found.append((name, flags()))
        return "cached"

    session = use(monkeypatch, Session(error), load)
    assert sources.read_hub("owner/data") == "cached" and found == [("owner/data", (True, True))]
    assert session.asked == 1 and flags() == (False, False)


def test_neither_connection_nor_copy(monkeypatch, online, capsys):
    use(monkeypatch, Session(httpx.ConnectError("no such host")), datasets.load_dataset)
    with pytest.raises(DatasetError, match="the Hub cannot be reached and the cache has no copy"):
        sources.read_hub("owner/data")
    assert flags() == (False, False) and capsys.readouterr().err == "", "no word of retries"


def test_offline_by_choice(monkeypatch):
    with pytest.raises(DatasetError, match="the Hub cannot be reached and the cache has no copy"):
        sources.read_hub("owner/data")
    assert flags() == (True, True)


@pytest.mark.parametrize("error", [DatasetNotFoundError("no such data set"), httpx.ReadError("broken off")])
def test_the_hub_does_not_give_it(monkeypatch, online, error):
    def load(name):
        raise error

    use(monkeypatch, Session(), load)
    with pytest.raises(DatasetError, match=r"could not be downloaded from the Hub \((no such data set|broken off)\)"):
        sources.read_hub("owner/data")


def test_named_hub_source(monkeypatch):
    """CIFAR-100 as the Hub has it: two ClassLabel columns, of which the fine one is meant."""
    asked = []

    def hub(name):
        asked.append(name)
        return datasets.DatasetDict(train=cifar_like(), test=cifar_like())

    monkeypatch.setattr("cdl_hf.data.sources.load_dataset", hub)
    splits = load_image_dataset("cifar100")
    assert asked == ["uoft-cs/cifar100"] and splits["train"].info.dataset_name == "cifar100"
    assert splits["test"].column_names == ["image", "label"]
    assert splits["test"].features["label"].names == ["x", "y"]


@pytest.mark.parametrize(
    ("given", "hub_name", "license"),
    [
        ("quickdraw100", None, "CC BY 4.0"),
        ("cifar100", "uoft-cs/cifar100", "name no license"),
        ("uoft-cs/cifar100", "uoft-cs/cifar100", "name no license"),
        ("/data/cifar-100-python/", "uoft-cs/cifar100", "name no license"),
        ("imagenet-r", "axiong/imagenet-r", "name none for the pictures"),
        ("somebody/birds", "somebody/birds", None),
        (".", None, None),
    ],
)
def test_what_is_known_of_a_data_set(given, hub_name, license):
    source = dataset_spec(given)
    assert source.hub_name == hub_name
    assert source.license is None if license is None else license in source.license
