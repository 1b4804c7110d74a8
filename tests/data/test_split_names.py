"""What the names of folders and files say of splits."""

import pytest

from cdl_hf.data.split_names import find_splits, of_split, split_in, split_of


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
