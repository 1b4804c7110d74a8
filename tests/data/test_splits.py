"""Names of splits, and lists of training images."""

import pytest
import yaml
from tiny_data import labelled, noise, save_images

from cdl_hf.arguments.config import RUN
from cdl_hf.cli import parse
from cdl_hf.data import DatasetError, load_image_dataset
from cdl_hf.data.splits import class_order, find_splits, of_split, split_in, split_of
from cdl_hf.training.build import build_stream


@pytest.fixture
def folder(tmp_path):
    return save_images(tmp_path / "images", {"a": 3, 'b "1"': 3, "猫: ü": 3})


def write_list(folder, content):
    file = folder.parent / "split.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(file)


def test_names_in_any_script_survive(folder):
    splits = load_image_dataset(str(folder))
    file = write_list(folder, splits.split_list())
    assert yaml.safe_load(splits.split_list())["targets"] == [0, 0, 1, 1, 2, 2]
    again = load_image_dataset(str(folder), split_file=file, seed=9)
    for split in ("train", "test"):
        assert again[split].data == splits[split].data and again[split]["label"][:] == splits[split]["label"][:]
    assert again.split_list() == splits.split_list()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: [a/0.png", "is not a plain YAML file"),
        ("data: !!python/object/apply:os.getcwd []", "is not a plain YAML file"),
        ("- a/0.png", "has no list of paths under 'data'"),
        ({"data": []}, "has no list of paths under 'data'"),
        ({"data": [1]}, "has no list of paths under 'data'"),
        ({"data": ["a/0.png", "a/7.png", "c/0.png"]}, r"lists 2 images that .* does not have \(a/7.png, c/0.png\)"),
        ({"data": [f"{c}/{n}.png" for c in ("a", 'b "1"', "猫: ü") for n in range(3)]}, "lists all of the images"),
    ],
)
def test_lists_that_do_not_fit(folder, content, message):
    with pytest.raises(DatasetError, match=message):
        load_image_dataset(str(folder), split_file=write_list(folder, content))


def test_list_that_is_not_there(folder):
    with pytest.raises(DatasetError, match="split_file 'nowhere.yaml' cannot be read: No such file"):
        load_image_dataset(str(folder), split_file="nowhere.yaml")


@pytest.mark.filterwarnings("ignore:.*lists only 2 of")
def test_files_of_one_name_in_nested_folders(tmp_path):
    """A run's own list is taken back, also where the data has moved, and so is one with the last two parts."""
    save_images(tmp_path / "images", {"b": 4, "a/day": 4, "a/night": 4})
    save_images(tmp_path / "images" / "b", {"day": 4})
    splits = load_image_dataset(str(tmp_path / "images"), test_fraction=0.5)
    file = tmp_path / "split.yaml"
    file.write_text(splits.split_list())
    assert {"a/day", "a/night"} & {key.rpartition("/")[0] for key in yaml.safe_load(splits.split_list())["data"]}
    (tmp_path / "images").rename(tmp_path / "moved")
    again = load_image_dataset(str(tmp_path / "moved"), split_file=str(file), seed=9)
    assert again.split_list() == splits.split_list() and len(again["train"]) == len(splits["train"])
    file.write_text("data: [data/x/b/0.png, a/night/0.png]")
    assert len(load_image_dataset(str(tmp_path / "moved"), split_file=str(file))["train"]) == 2
    file.write_text("data: [night/1.png, b/0.png]")  # there is one night only
    assert len(load_image_dataset(str(tmp_path / "moved"), split_file=str(file))["train"]) == 2
    file.write_text("data: [day/1.png]")
    with pytest.raises(DatasetError, match="2 images with the same folder and file name .day/1.png.*with all"):
        load_image_dataset(str(tmp_path / "moved"), split_file=str(file))


@pytest.mark.filterwarnings("ignore:.*lists only 2 of")
def test_lists_from_another_file_system(tmp_path):
    """On some, names come with é in two signs."""
    save_images(tmp_path / "images", {"cafe\u0301": 3, "tea": 3})
    file = tmp_path / "split.yaml"
    file.write_text("data: ['caf\u00e9/0.png', 'tea\\1.png']", encoding="utf-8")
    assert len(load_image_dataset(str(tmp_path / "images"), split_file=str(file))["train"]) == 2


def test_images_that_no_list_tells_apart(tmp_path):
    file = tmp_path / "split.yaml"
    file.write_text("data: [b/0.png]")
    save_images(tmp_path / "images", {"a/b": 2, "c/b": 2})
    with pytest.raises(DatasetError, match="images with the same folder and file name"):
        load_image_dataset(str(tmp_path / "images"), split_file=str(file))
    labelled([0, 0], ["x"], [noise(), noise(1)]).save_to_disk(tmp_path / "saved")
    with pytest.raises(DatasetError, match="stores images without file names"):
        load_image_dataset(str(tmp_path / "saved"), split_file=str(file))
    assert load_image_dataset(str(tmp_path / "saved")).split_list() is None


def test_the_targets_of_a_list_order_the_classes(folder, tmp_path):
    """As published: the paths start anywhere, and the numbers have nothing to do with the names."""
    content = {"data": [f"data/x/{name}/{n}.png" for n in (0, 1) for name in ("a", "猫: ü", 'b "1"')]}
    file = write_list(folder, content | {"targets": [2, 7, 0] * 2})
    arguments = ["--dataset", str(folder), "--num_tasks", "3", "--split_file", file, "--class_order", "split_file"]
    stream = build_stream(next(iter(parse(RUN, arguments))))
    assert [task.class_names for task in stream] == [['b "1"'], ["a"], ["猫: ü"]]
    (tmp_path / "left.yaml").write_text(stream.split_list())
    arguments[5] = str(tmp_path / "left.yaml")
    assert build_stream(next(iter(parse(RUN, arguments)))).class_names == stream.class_names
    arguments[4:6] = []
    with pytest.raises(ValueError, match="none is given"):
        build_stream(next(iter(parse(RUN, arguments))))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, "no list of integers under 'targets'"),
        ([0, 1], "no list of integers under 'targets'"),
        ([0, 1, "2"], "no list of integers under 'targets'"),
        ([0, 1, 1], "gives several classes the same target"),
        ([0, 1, 2, 1], "gives the class 'a' the targets 0 and 1"),
    ],
)
def test_targets_that_are_no_order(folder, targets, message):
    names = ["a", 'b "1"', "猫: ü", "a"][: max(len(targets or []), 3)]
    content = {"data": [f"{name}/{n // 3}.png" for n, name in enumerate(names)], "targets": targets}
    with pytest.raises(DatasetError, match=message):
        class_order(write_list(folder, content), ["a", 'b "1"', "猫: ü"])


def test_classes_without_a_target_and_targets_without_a_class(folder):
    file = write_list(folder, {"data": ["a/0.png", "c/0.png"], "targets": [0, 1]})
    with pytest.raises(DatasetError, match="is not in the folder of a class"):
        class_order(file, ["a", "b"])
    with pytest.raises(DatasetError, match="no images of 1 classes .b."):
        class_order(file, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Train TRAIN training Training trn train_set TrainSet trainset seg_train train-images"),
        ("train", "images_train train2017 Training_Data trainval train_val TrainImages traindata training.set"),
        ("validation", "val Val VAL valid validation Validation dev DEV val2017 valid_set val_images holdout"),
        ("test", "test Test testing Testing TEST tst eval evaluation seg_test test_set test-images testset Test_1"),
        (None, "cat tram trainer contest retrain testament valley device train_station images 2017 _ validity devil"),
    ],
)
def test_names_of_splits(split, names):
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


def test_other_words_in_a_name():
    assert split_in("train_station") == ("train", ("station",)) and split_in("birds-test-01") == ("test", ("birds",))
    assert split_in("train_test") is None and split_in("cat") is None


def test_names_that_differ_only_in_the_split():
    assert find_splits(["birds_train", "birds_val"]) == {"birds_train": "train", "birds_val": "validation"}
    assert find_splits(["train_station", "test_tube"]) == {}
    assert find_splits(["train_station", "cat"]) == {}


def test_the_plain_name_comes_before_others():
    found = find_splits(["train", "train_set", "val", "valid"])
    assert of_split(found, "train") == ["train"] and of_split(found, "validation") == ["val", "valid"]
