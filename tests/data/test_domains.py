import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from tiny_data import noise, save_images

from cdl_hf.data import DatasetError, load_image_dataset
from cdl_hf.data.domains import DOMAIN, read_domains
from cdl_hf.data.views import image_paths


def table(path, domains, kind=None):
    """A Parquet file of two classes with a column `place`; half of the images of each are for the test."""
    kind = kind or Value("string")
    features = Features(image=Image(), label=ClassLabel(names=["a", "b"]), place=kind, split=Value("string"))
    rows = {"place": domains, "label": [i % 2 for i in range(len(domains))], "image": [noise()] * len(domains)}
    rows["split"] = ["train" if i < len(domains) // 2 else "test" for i in range(len(domains))]
    Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(path)


@pytest.mark.parametrize(
    ("domains", "kind", "names"),
    [
        (["sea", "sea", "land", "land"] * 2, None, ["land", "sea"]),
        ([10, 10, 9, 9] * 2, Value("int64"), ["9", "10"]),  # numbers, not texts, are sorted
        ([2, 2, 0, 0] * 2, ClassLabel(names=["x", "unused", "a"]), ["x", "a"]),
        ([True, True, False, False] * 2, Value("bool"), ["False", "True"]),
    ],
)
def test_a_column_of_domains(tmp_path, domains, kind, names):
    splits = load_image_dataset(table(tmp_path / "t.parquet", domains, kind), domain_column="place")
    assert splits["train"].features[DOMAIN].names == names
    expected = [names.index(name) for name in (names[1], names[1], names[0], names[0])]
    if isinstance(kind, ClassLabel):
        expected = [1, 1, 0, 0]
    assert read_domains(splits["train"]).tolist() == read_domains(splits["test"]).tolist() == expected
    assert splits.arguments["domain_column"] == "place"


@pytest.mark.parametrize(
    ("domains", "kind", "column", "message"),
    [
        (
            ["a", "b", "", None] * 2,
            None,
            "place",
            "'place' of .* is empty for 2 of 4 images",
        ),
        ([0.5] * 8, Value("float32"), "place", "has values of type float32; expected names or whole numbers"),
        (["a"] * 8, None, "weather", "has no column 'weather' for domain_column; its columns are place, label, image"),
        (["a"] * 8, None, "label", "domain_column=label is the column of the images or labels"),
    ],
)
def test_what_cannot_be_domains(tmp_path, domains, kind, column, message):
    with pytest.raises(DatasetError, match=message):
        load_image_dataset(table(tmp_path / "t.parquet", domains, kind), domain_column=column)


@pytest.mark.parametrize("split", [True, False])
def test_folders_of_domains(tmp_path, split):
    for domain in ("clipart", "real"):
        for part in ("train", "test") if split else (".",):
            save_images(tmp_path / part / domain, {"cat": 4, "dog": 5})
    splits = load_image_dataset(str(tmp_path), domain_column="domain")
    assert splits["train"].features["label"].names == ["cat", "dog"]
    assert splits["train"].features[DOMAIN].names == ["clipart", "real"]
    for dataset in splits.values():
        for path, domain in zip(image_paths(dataset).to_pylist(), read_domains(dataset), strict=True):
            assert path.split("/")[-3] == ("clipart", "real")[domain]
    assert len(splits["train"]) + len(splits["test"]) == (36 if split else 18)


def test_domains_need_folders_of_classes(tmp_path):
    save_images(tmp_path / "flat", {"cat": 4, "dog": 5})
    with pytest.raises(DatasetError, match="has no column 'domain' for domain_column; its columns are image, label"):
        load_image_dataset(str(tmp_path / "flat"), domain_column="domain")
    save_images(tmp_path / "mixed", {"real/cat": 4, "real/dog": 5, "sketch": 3})
    with pytest.raises(DatasetError, match="sketch' has no folders of classes: with domain_column expected <domain>"):
        load_image_dataset(str(tmp_path / "mixed"), domain_column="domain")


def test_domains_in_a_metadata_table(tmp_path):
    save_images(tmp_path, {"images": 8})
    rows = "".join(f"images/{i}.png,{['cat', 'dog'][i % 2]},{['day', 'night'][i // 4]}\n" for i in range(8))
    (tmp_path / "metadata.csv").write_text("file_name,label,time\n" + rows)
    splits = load_image_dataset(str(tmp_path), domain_column="time")
    assert splits["train"].features[DOMAIN].names == ["day", "night"]
    assert np.bincount(read_domains(datasets.concatenate_datasets(list(splits.values())))).tolist() == [4, 4]
