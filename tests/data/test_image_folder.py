"""Folders of images as people have them: which folders are splits, which are classes, and which are neither."""

import os
import warnings

import numpy as np
import pytest
from tiny_data import counts, noise, save_images

from cdl_hf.data import DatasetError, TaskStream, load_image_dataset, open_image


def layout(root, **folders):
    """Each folder with so many images of each class."""
    for folder, classes in folders.items():
        save_images(root / folder, classes)
    return str(root)


AB = {"a": 5, "b": 5}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("train", "Test"),
        ("Training", "Testing"),
        ("train", "dev"),
        ("training", "evaluation"),
        ("seg_train", "seg_test"),
        ("train_set", "test_set"),
        ("train-images", "valid_images"),
        ("images_train", "images_eval"),
        ("birds_train", "birds_test"),
        ("trn", "tst"),
    ],
)
def test_folders_of_splits_are_no_classes(tmp_path, train, test):
    path = layout(tmp_path, **{train: AB, test: {"a": 2, "b": 1}})
    splits = load_image_dataset(path)
    assert counts(splits["train"]) == AB and counts(splits["test"]) == {"a": 2, "b": 1}


@pytest.mark.parametrize("beside", [".git", "__MACOSX/train", ".ipynb_checkpoints", "@eaDir", "annotations", "docs"])
def test_a_lone_train_folder_beside_what_is_no_class(tmp_path, beside):
    path = layout(tmp_path, train=AB)
    (tmp_path / beside).mkdir(parents=True)
    if beside.startswith((".", "_", "@")):
        noise().save(tmp_path / beside / "0.png")
    (tmp_path / beside / "notes.xml").write_text("<xml/>")
    assert counts(load_image_dataset(path)["train"]) == {"a": 4, "b": 4}


def test_what_systems_leave_behind_is_no_image(tmp_path):
    path = str(save_images(tmp_path, AB))
    for folder in ("__MACOSX/a", "a/@eaDir/0.png", "b/.ipynb_checkpoints", "a/__pycache__"):
        (tmp_path / folder).mkdir(parents=True)
        noise().save(tmp_path / folder / "copy.png")
    splits = load_image_dataset(path)
    assert counts(splits["train"]) == {"a": 4, "b": 4} and counts(splits["test"]) == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("folders", "wrapped"),
    [
        ({"birds": AB}, "birds"),
        ({"data/birds": AB}, "data/birds"),
        ({"birds/train": AB, "birds/test": AB}, "birds"),
        ({"train/train": AB, "test/test": AB}, "test/test"),  # as archives are that hold their own name
        ({"seg_train/seg_train": AB, "seg_test/seg_test": AB}, "seg_train/seg_train"),
        ({"signs_train/signs_train": AB, "signs_test/signs_test": AB}, "signs_train/signs_train"),
    ],
)
def test_a_folder_that_holds_but_one_folder_is_no_class(tmp_path, folders, wrapped):
    path = layout(tmp_path, **folders)
    with pytest.warns(UserWarning, match=f"{wrapped}' is taken as the folder of the classes"):
        splits = load_image_dataset(path)
    assert set(counts(splits["train"])) == {"a", "b"}


def test_images_to_be_predicted_are_no_class(tmp_path):
    path = layout(tmp_path, seg_train=AB, seg_pred={"x": 2})
    with pytest.warns(UserWarning, match="beside its splits seg_train: seg_pred"):
        assert counts(load_image_dataset(path)["train"]) == {"a": 4, "b": 4}


def test_classes_may_be_called_like_splits(tmp_path):
    assert set(counts(load_image_dataset(str(save_images(tmp_path / "1", {"train": 5, "bus": 5})))["train"])) == {
        "bus",
        "train",
    }
    found = load_image_dataset(str(save_images(tmp_path / "2", {"train": 5, "test": 5, "tram": 5})))
    assert set(counts(found["train"])) == {"test", "train", "tram"}
    found = load_image_dataset(str(save_images(tmp_path / "3", {"train_station": 5, "test_tube": 5})))
    assert set(counts(found["train"])) == {"test_tube", "train_station"}
    save_images(tmp_path / "4" / "train", {"steam": 5, "diesel": 5})
    with pytest.warns(UserWarning, match="4/train' is taken as a class.*choose it with train_split"):
        found = load_image_dataset(str(save_images(tmp_path / "4", {"tram": 5})))
    assert set(counts(found["train"])) == {"train", "tram"}
    assert set(counts(load_image_dataset(str(tmp_path / "4"), train_split="train")["train"])) == {"steam", "diesel"}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({".": {"train": 3, "test": 3}}, "test, train look like splits, but their images are not in class folders"),
        ({".": {"Training": 3, "val": 3}}, "look like splits"),
        ({".": {"train": 3}}, "look like splits"),
        ({"train_clean": AB, "test_other": AB}, "look like splits .*choose those .* with train_split and test_spl"),
        ({"train_1": AB, "train_2": AB, "test": AB}, "more than one train"),
        ({"train": AB, "test_1": AB, "test_2": AB}, "more than one split to test on .test_1, test_2.; choose one"),
        ({"val": AB, "test": AB}, "has no training split among .*; choose one with train_split"),
        ({".": {"trainA": 3, "trainB": 3, "testA": 3, "testB": 3}}, "look like splits"),
        ({".": {"images": 3}}, "all are in '.*images', whose name is not that of a class"),
        (
            {"photos/train": AB, "photos/valid": AB, "test": {"test": 3}},
            "beside the splits in '.*photos'; give that fo",
        ),
        ({"x/photos/train": AB, "x/photos/val": AB, ".": {"more": 3}}, "beside the splits in '.*x/photos'; give that"),
        ({"train": AB, "test": {"unknown": 3}}, "no image of a training class in its test split"),
    ],
)
def test_splits_that_are_not_clear_are_refused(tmp_path, folders, message):
    with pytest.raises(DatasetError, match=message):
        load_image_dataset(layout(tmp_path, **folders))


def test_a_test_folder_without_classes_gives_way_to_the_validation_split(tmp_path):
    path = layout(tmp_path, train=AB, val={"a": 1, "b": 2}, test={"a": 0})
    for number in range(3):
        noise(number).save(tmp_path / "test" / f"{number}.png")
    with pytest.warns(UserWarning, match="no labels in its test split; the val split is used for testing"):
        assert counts(load_image_dataset(path)["test"]) == {"a": 1, "b": 2}
    for name in ("val", "validation"):
        assert counts(load_image_dataset(path, test_split=name)["test"]) == {"a": 1, "b": 2}
    assert counts(load_image_dataset(path, test_split="train")["test"]) == {"a": 1, "b": 1}
    assert counts(load_image_dataset(path, train_split="val", test_split="train")["test"]) == AB
    with pytest.raises(DatasetError, match="no labels in its test split"):
        load_image_dataset(path, test_split="test")
    with pytest.raises(DatasetError, match="no folder for test_split .exam.; its folders are test, train, val"):
        load_image_dataset(path, test_split="exam")


@pytest.mark.parametrize(
    ("folders", "classes", "note"),
    [
        ({"art": AB, "photo": AB}, {"art", "photo"}, "art, photo.; folders inside them are not"),
        ({"art/images": AB, "photo/images": AB}, {"art", "photo"}, "art, photo.; folders inside them are not"),
        ({"labeled": AB, ".": {"more": 3}}, {"labeled", "more"}, "labeled, more.; folders inside them are"),
        ({"flowers": AB, ".": AB}, {"a", "b"}, "contain copies of all others: flowers"),
        ({"a": {"train": 3, "test": 2}, "b": {"train": 3, "test": 2}}, {"a", "b"}, "they contain splits: a, b"),
        ({".": {"only": 3}}, {"only"}, "has one class: only the folder only contains images"),
    ],
)
def test_what_lies_deeper_than_the_classes_is_told(tmp_path, folders, classes, note):
    with pytest.warns(UserWarning, match=note):
        assert set(counts(load_image_dataset(layout(tmp_path, **folders))["train"])) == classes


def test_linked_folders_are_followed_once(tmp_path):
    save_images(tmp_path / "real", {"day": 4, "night": 4})
    save_images(tmp_path / "data", {"a": 1, "b": 1, "c": 0})
    data = tmp_path / "data"
    (data / "a" / "day").symlink_to(tmp_path / "real" / "day")
    (data / "a" / "again").symlink_to(tmp_path / "real" / "day")
    (data / "b" / "night").symlink_to(tmp_path / "real" / "night")
    (data / "c" / "only").symlink_to(tmp_path / "real")
    for loop, target in (("b/up", data), ("b/self", data / "b"), ("c/top", tmp_path)):
        (data / loop).symlink_to(target)
    splits = load_image_dataset(str(data), test_fraction=0.01)
    assert counts(splits["train"]) == {"a": 4, "b": 4, "c": 7}


def test_classes_without_images_are_named(tmp_path):
    save_images(tmp_path, AB | {"empty": 0, "photos": 0})
    (tmp_path / "photos" / "1.heic").write_bytes(b"ftypheic")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    noise().save(tmp_path / "stray.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert set(counts(load_image_dataset(str(tmp_path))["train"])) == {"a", "b"}
    told = " ".join(str(each.message) for each in caught)
    for part in ("without images: empty, photos.", "outside class folders: stray.png", "1 .heic", "broken links"):
        assert part in told


def test_files_of_other_kinds_are_named_where_there_are_no_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.heic").write_bytes(b"ftypheic")
        (tmp_path / name / "README").write_text("photographs")
    with pytest.raises(DatasetError, match="no images in class folders .files of other types are ignored: 2 .heic."):
        load_image_dataset(str(tmp_path))
    save_images(tmp_path, {"c": 5, "d": 5})
    (tmp_path / "c" / "LICENSE").write_text("free")
    assert set(counts(load_image_dataset(str(tmp_path))["train"])) == {"c", "d"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_pipes_are_not_waited_for(tmp_path):
    save_images(tmp_path, AB | {"c": 0})
    os.mkfifo(tmp_path / "c" / "pipe")
    with pytest.warns(UserWarning, match="without images: c"):
        assert set(counts(load_image_dataset(str(tmp_path))["train"])) == {"a", "b"}
    with pytest.raises(ValueError, match="not a regular file"):
        open_image(tmp_path / "c" / "pipe")


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "has no name"), ("x" * 5000, "is neither a local file or folder"), ("~nobody_here/x/y", "is neither")],
)
def test_names_of_nothing_are_refused(name, message):
    with pytest.raises(DatasetError, match=message):
        load_image_dataset(name)


def test_a_class_of_unreadable_images_is_named(tmp_path):
    save_images(tmp_path, AB | {"c": 0})
    (tmp_path / "c" / "0.png").write_text("no image")
    with pytest.raises(DatasetError, match="These classes have no other image: c"):
        load_image_dataset(str(tmp_path))
    with pytest.warns(UserWarning, match="These classes have no other image: c"):
        splits = load_image_dataset(str(tmp_path), skip_unreadable_images=True)
    with pytest.raises(ValueError, match="no train images of 1 classes: c.*drop_empty_classes"):
        TaskStream(splits, 1)
    with pytest.warns(UserWarning):
        splits = load_image_dataset(str(tmp_path), skip_unreadable_images=True, drop_empty_classes=True)
    assert TaskStream(splits, 1).class_names == ["a", "b"] and splits.folders == ["a", "b"]


def test_one_name_composed_in_two_ways_is_one_class(tmp_path):
    save_images(tmp_path / "train", {"caf\u00e9": 2, "cafe\u0301": 1, "tea": 1})
    save_images(tmp_path / "test", {"cafe\u0301": 1, "tea": 1})
    splits = load_image_dataset(str(tmp_path))
    assert counts(splits["train"]) == {"caf\u00e9": 3, "tea": 1} and counts(splits["test"]) == {
        "caf\u00e9": 1,
        "tea": 1,
    }


def test_classes_that_look_alike_are_pointed_out(tmp_path):
    with pytest.warns(UserWarning, match="only in spaces or capitals are kept apart: 'Cat' and 'cat'"):
        load_image_dataset(str(save_images(tmp_path, {"Cat": 2, "cat": 2, "dog": 2})))


@pytest.mark.parametrize("named", ["cifar100", "quickdraw100"])
def test_a_folder_that_is_called_like_a_known_data_set(tmp_path, monkeypatch, named):
    save_images(tmp_path / named, AB)
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=f"taken for the named data set.*write ./{named}"):
        try:
            load_image_dataset(named)
        except DatasetError:  # not to be had without a connection
            assert named == "cifar100"
    assert set(counts(load_image_dataset(f"./{named}")["train"])) == {"a", "b"}


def test_names_that_are_no_text_are_refused(tmp_path):
    save_images(tmp_path, AB)
    try:
        (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "\udcff.png")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(DatasetError, match="is not UTF-8; rename it"):
        load_image_dataset(str(tmp_path))
    with pytest.raises(DatasetError, match="is not UTF-8; rename it"):
        load_image_dataset(str(tmp_path / "\udcff"))


def test_rows_keep_their_order(tmp_path):
    """Images of an image folder are numbered as before: by class, then by folder, then by name."""
    save_images(tmp_path, {"b": 3, "a": 2})
    splits = load_image_dataset(str(tmp_path), test_fraction=0.1)
    assert np.array_equal(splits["train"]["label"][:], [0, 1, 1])
