"""ImageNet-R in the forms in which people have it, made from the bundled drawings."""

import re
import shutil
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
import yaml
from datasets import Dataset, DatasetDict, Features, Image, Value

from cdl_hf.data import DatasetError, TaskStream, load_image_dataset

SYNSETS = (files("timm.data") / "_info/imagenet_r_synsets.txt").read_text().split()
FILES = ["art_0.jpg", "art_1.jpg", "cartoon_0.jpg", "sketch_12.jpg", "videogame_3.jpg"]


def write_folder(path, quickdraw_images, names=FILES):
    for number, synset in enumerate(SYNSETS):
        (path / synset).mkdir(parents=True)
        for shift, name in enumerate(names):
            quickdraw_images[(number + shift) % 20].save(path / synset / name)
    (path / "README.txt").write_text("ImageNet-R")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quickdraw_images):
    return write_folder(tmp_path_factory.mktemp("data") / "imagenet-r", quickdraw_images)


def file_keys(dataset):
    paths = [row["path"] for row in dataset.cast_column("image", Image(decode=False))["image"]]
    return ["/".join(path.split("/")[-2:]) for path in paths]


def test_original_folder_is_divided_four_to_one(folder):
    splits = load_image_dataset(str(folder))
    for split, size in (("train", 4), ("test", 1)):
        dataset = splits[split]
        assert set(Counter(dataset["label"][:]).values()) == {size}
        names = dataset.features["label"].names
        assert names[:4] == ["goldfish", "great white shark", "hammerhead", "stingray"] and len(set(names)) == 200
        keys = file_keys(dataset)
        assert [SYNSETS.index(key.split("/")[0]) for key in keys] == dataset["label"][:]
        assert [re.split("[/_]", key)[1] for key in keys] == dataset["rendition"][:]
    stream = TaskStream(splits, 10)
    assert stream[0].class_names[0] == "goldfish" and stream.classes_per_task == [20] * 10
    assert {*stream[3].test["rendition"][:]} <= {"art", "cartoon", "sketch", "videogame"}


@pytest.mark.filterwarnings("ignore:Left out .* test images of classes")
def test_renditions_as_domains(folder):
    """The same division as of a stream of classes; each image is in the domain that its name holds."""
    stream = TaskStream(load_image_dataset(str(folder), domain_column="rendition"))
    assert stream.domains == ["art", "cartoon", "sketch", "videogame"] and sum(stream.classes_per_task) == 200
    for task in stream:
        assert {re.split("[/_]", key)[1] for key in file_keys(task.train)} == {task.domain}


def test_division_can_be_used_again(folder, tmp_path):
    first = load_image_dataset(str(folder), seed=3)
    (tmp_path / "split.yaml").write_text(TaskStream(first, 10).split_list())
    listed = yaml.safe_load((tmp_path / "split.yaml").read_text())
    assert listed == {"data": file_keys(first["train"]), "targets": first["train"]["label"][:]}
    again = load_image_dataset(str(folder), split_file=str(tmp_path / "split.yaml"), seed=4)
    for split in ("train", "test"):
        assert file_keys(again[split]) == file_keys(first[split])
    assert again.split_list() == first.split_list()
    other = load_image_dataset(str(folder), seed=4)
    assert file_keys(other["train"]) != file_keys(first["train"])


@pytest.mark.parametrize("prefix", ["data/imagenet-r/", "/home/me/imagenet-r/train/", "", "D:\\sets\\"])
def test_list_in_the_published_form(folder, tmp_path, prefix):
    rng = np.random.default_rng(0)
    train = [(synset, name) for synset in SYNSETS for name in rng.permutation(FILES)[:3].tolist()]
    rng.shuffle(train)
    separator = prefix[-1:] or "/"
    data = [f"{prefix}{synset}{separator}{name}" for synset, name in train]
    content = {"data": data, "targets": [SYNSETS.index(synset) for synset, _ in train]}
    (tmp_path / "imagenet-r_train.yaml").write_text(yaml.safe_dump(content))
    splits = load_image_dataset(str(folder), split_file=str(tmp_path / "imagenet-r_train.yaml"))
    assert {*file_keys(splits["train"])} == {f"{synset}/{name}" for synset, name in train}
    assert len(splits["train"]) == 600 and len(splits["test"]) == 400
    assert not {*file_keys(splits["train"])} & {*file_keys(splits["test"])}


def test_folders_already_split(tmp_path, quickdraw_images):
    write_folder(tmp_path / "train", quickdraw_images, FILES[:2])
    write_folder(tmp_path / "test", quickdraw_images, FILES[2:3])
    splits = load_image_dataset(str(tmp_path))
    assert len(splits["train"]) == 400 and len(splits["test"]) == 200
    assert splits["train"].features["label"].names[0] == "goldfish" and {*splits["test"]["rendition"]} == {"cartoon"}
    assert splits.split_list() is None
    with pytest.raises(DatasetError, match="has a test split of its own; do not pass split_file"):
        load_image_dataset(str(tmp_path), split_file="list.yaml")


def hub_copy(quickdraw_images):
    """As the Hub has it: one split, test; bytes with names of files, but not of folders."""
    names = [(synset, name) for synset in SYNSETS for name in FILES]
    features = Features(image=Image(), wnid=Value("string"), class_name=Value("string"))
    stored = [Image().encode_example(drawing)["bytes"] for drawing in quickdraw_images]
    rows = {
        "image": [{"bytes": stored[row % 20], "path": name} for row, (_, name) in enumerate(names)],
        "wnid": [synset for synset, _ in names],
        "class_name": ["a name"] * len(names),
    }
    return DatasetDict(test=Dataset.from_dict(rows, features=features))


def test_hub_copy(monkeypatch, quickdraw_images, tmp_path):
    asked = []

    def hub(name):
        asked.append(name)
        return hub_copy(quickdraw_images)

    monkeypatch.setattr("cdl_hf.data.sources.load_dataset", hub)
    splits = load_image_dataset("imagenet_r")
    assert asked == ["axiong/imagenet-r"]
    assert len(splits["train"]) == 800 and splits["train"].features["label"].names[0] == "goldfish"
    assert Counter(splits["train"]["rendition"]) + Counter(splits["test"]["rendition"]) == {
        "art": 400,
        "cartoon": 200,
        "sketch": 200,
        "videogame": 200,
    }
    (tmp_path / "list.yaml").write_text(yaml.safe_dump({"data": [f"x/{synset}/{FILES[2]}" for synset in SYNSETS]}))
    with pytest.warns(UserWarning, match="lists only 200 of 1,000 images for training.*is it the list of"):
        splits = load_image_dataset("imagenet_r", split_file=str(tmp_path / "list.yaml"))
    assert {*splits["train"]["rendition"]} == {"cartoon"} and len(splits["test"]) == 800
    assert yaml.safe_load(splits.split_list())["data"][0] == f"{SYNSETS[0]}/{FILES[2]}"


def test_copies_in_parquet_and_saved_to_disk(tmp_path, quickdraw_images, monkeypatch):
    data = hub_copy(quickdraw_images)["test"]
    data.to_parquet(tmp_path / "all.parquet")
    data.save_to_disk(tmp_path / "saved")
    monkeypatch.setattr(Dataset, "map", None)  # with which `datasets` would write the images anew
    for path in ("all.parquet", "saved"):
        splits = load_image_dataset(str(tmp_path / path))
        assert splits["train"].features["label"].names[1] == "great white shark"
        assert splits["test"]["rendition"][0] in ("art", "cartoon", "sketch", "videogame")


def test_incomplete_and_foreign_folders_are_named(tmp_path, folder):
    copy = tmp_path / "imagenet-r"
    shutil.copytree(folder, copy)
    for synset in SYNSETS[:4]:
        shutil.rmtree(copy / synset)
    some = f"{SYNSETS[0]}, {SYNSETS[1]}, {SYNSETS[2]}, \\.\\.\\."
    with pytest.raises(
        DatasetError, match=rf"looks like ImageNet-R but lacks 4 of its 200 classes \({some}\); extract"
    ):
        load_image_dataset(str(copy))
    shutil.copytree(folder / SYNSETS[5], copy / "n01440764")
    with pytest.raises(DatasetError, match=r"and has 1 other classes \(n01440764\)"):
        load_image_dataset(str(copy))


def test_a_small_part_is_any_folder(tmp_path, folder):
    for synset in SYNSETS[:3]:
        shutil.copytree(folder / synset, tmp_path / synset)
    splits = load_image_dataset(str(tmp_path))
    assert splits["train"].features["label"].names == SYNSETS[:3] and splits["train"].column_names == [
        "image",
        "label",
    ]


def test_a_list_may_name_images_that_cannot_be_read(tmp_path, folder):
    copy = tmp_path / "imagenet-r"
    shutil.copytree(folder, copy)
    listed = [f"{synset}/{name}" for synset in SYNSETS for name in FILES[:4]]
    (tmp_path / "list.yaml").write_text(yaml.safe_dump({"data": listed}))
    for name in (FILES[0], FILES[4]):
        (copy / SYNSETS[7] / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="2 of the 1,000 images"):
        splits = load_image_dataset(str(copy), split_file=str(tmp_path / "list.yaml"), skip_unreadable_images=True)
    assert len(splits["train"]) == 799 and len(splits["test"]) == 199
    assert f"{SYNSETS[7]}/{FILES[0]}" not in splits.split_list()


def test_renditions_stay_with_their_images_when_some_are_left_out(tmp_path, folder):
    copy = tmp_path / "imagenet-r"
    shutil.copytree(folder, copy)
    for synset in SYNSETS[::3]:
        (copy / synset / "art_1.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match="67 of the 1,000 images"):
        splits = load_image_dataset(str(copy), skip_unreadable_images=True)
    for dataset in splits.values():
        assert [re.split("[/_]", key)[1] for key in file_keys(dataset)] == dataset["rendition"][:]
