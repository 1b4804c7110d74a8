import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from tiny_data import cifar_like, counts, labelled, noise, save_images

from cdl_hf.data import DatasetError, TaskStream, load_image_dataset


def paths(dataset):
    return [row["path"] for row in dataset.cast_column("image", Image(decode=False))["image"]]


def test_bundled_drawings():
    splits = load_image_dataset("quickdraw100")
    assert set(counts(splits["train"]).values()) == {80} and set(counts(splits["test"]).values()) == {20}
    assert splits["train"].features["label"].num_classes == 100
    assert splits["train"][0]["image"].mode == "RGB" and splits["train"][0]["image"].size == (28, 28)


def test_folder_of_classes_holds_out_a_share_of_each(tmp_path):
    save_images(tmp_path, {"b": 10, "a": 5, "lonely": 1, "pair": 2})
    before = sorted(tmp_path.rglob("*"))
    splits = load_image_dataset(str(tmp_path), test_fraction=0.2)
    assert splits["train"].features == Features(
        image=Image(mode="RGB"), label=ClassLabel(names=["a", "b", "lonely", "pair"])
    )
    assert counts(splits["train"]) == {"a": 4, "b": 8, "lonely": 1, "pair": 1}
    assert counts(splits["test"]) == {"a": 1, "b": 2, "lonely": 0, "pair": 1}
    assert sorted(paths(splits["train"]) + paths(splits["test"])) == sorted(map(str, tmp_path.glob("*/*.png")))
    assert sorted(tmp_path.rglob("*")) == before, "nothing may be written beside the data"


def test_held_out_choice_depends_on_the_seed_alone(tmp_path):
    save_images(tmp_path, {"a": 20, "b": 20})
    first = paths(load_image_dataset(str(tmp_path), seed=1)["test"])
    np.random.seed(3)
    assert paths(load_image_dataset(str(tmp_path), seed=1)["test"]) == first
    assert paths(load_image_dataset(str(tmp_path), seed=2)["test"]) != first


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_folder_with_splits(tmp_path, test_name):
    save_images(tmp_path / "train", {"a": 3, "b": 3})
    save_images(tmp_path / test_name, {"a": 2, "b": 1})
    splits = load_image_dataset(str(tmp_path))
    assert counts(splits["train"]) == {"a": 3, "b": 3} and counts(splits["test"]) == {"a": 2, "b": 1}


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_class_in_one_split_alone_is_named_before_training(tmp_path, split, other):
    save_images(tmp_path / split, {"a": 2, "b": 2, "c": 1})
    save_images(tmp_path / other, {"a": 2})
    with pytest.raises(ValueError, match=f"no {other} images of 2 classes: b, c"):
        TaskStream(load_image_dataset(str(tmp_path)), 1)


def test_class_of_one_image_cannot_be_held_out(tmp_path):
    save_images(tmp_path, {"a": 5, "lonely": 1})
    with pytest.raises(ValueError, match="no test images of 1 classes: lonely"):
        TaskStream(load_image_dataset(str(tmp_path)), 1)


def test_train_folder_alone_is_a_split_but_among_others_a_class(tmp_path):
    save_images(tmp_path / "one" / "train", {"a": 5, "b": 5})
    assert counts(load_image_dataset(str(tmp_path / "one"))["train"]) == {"a": 4, "b": 4}
    save_images(tmp_path / "two", {"train": 5, "tram": 5})
    assert counts(load_image_dataset(str(tmp_path / "two"))["train"]) == {"train": 4, "tram": 4}


def test_folder_skips_hidden_and_other_files_and_descends(tmp_path):
    save_images(tmp_path, {"a": 5, "猫": 5, ".thumbnails": 2})
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._0.png").write_bytes(b"no image either")
    save_images(tmp_path / "猫", {"more": 5})
    noise().save(tmp_path / "a" / "UPPER.JPG")
    splits = load_image_dataset(str(tmp_path), test_fraction=0.1)
    assert counts(splits["train"]) == {"a": 5, "猫": 9} and counts(splits["test"]) == {"a": 1, "猫": 1}


def test_parquet_file_and_folder(tmp_path):
    data = labelled([0, 1] * 5, ["x", "y"])
    data.to_parquet(tmp_path / "all.parquet")
    assert counts(load_image_dataset(str(tmp_path / "all.parquet"))["train"]) == {"x": 4, "y": 4}
    folder = tmp_path / "folder" / "data"
    folder.mkdir(parents=True)
    data.to_parquet(folder / "train-00000-of-00001.parquet")
    data.select(range(3)).to_parquet(folder / "test-00000-of-00001.parquet")
    splits = load_image_dataset(str(tmp_path / "folder"))
    assert counts(splits["train"]) == {"x": 5, "y": 5} and counts(splits["test"]) == {"x": 2, "y": 1}


def test_parquet_without_features_of_datasets(tmp_path):
    data = labelled([0, 1], ["x", "y"]).cast_column("image", Image(decode=False))
    rows = {"img": [row["bytes"] for row in data["image"]] * 5, "label": ["dog", "cat"] * 5}
    pq.write_table(pa.table(rows), tmp_path / "plain.parquet")
    splits = load_image_dataset(str(tmp_path / "plain.parquet"))
    assert splits["train"].features["label"].names == ["cat", "dog"]
    assert splits["train"][0]["image"].size == (28, 28)


def test_saved_to_disk(tmp_path):
    data = labelled([0, 1] * 5, ["x", "y"])
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data, test=data.select(range(4))).save_to_disk(tmp_path / "two")
    assert counts(load_image_dataset(str(tmp_path / "one"))["test"]) == {"x": 1, "y": 1}
    assert counts(load_image_dataset(str(tmp_path / "two"))["test"]) == {"x": 2, "y": 2}


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_integer_labels_are_ordered_as_numbers_over_both_splits(tmp_path, dtype):
    features = Features(image=Image(), label=Value(dtype))
    rows = {"image": [noise()] * 3, "label": [10, 9, 2]}
    train = Dataset.from_dict(rows, features=features)
    test = Dataset.from_dict(rows | {"label": [2, 9, 100]}, features=features)
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "saved")
    splits = load_image_dataset(str(tmp_path / "saved"))
    assert splits["train"].features["label"].names == ["2", "9", "10", "100"]
    assert splits["train"]["label"][:] == [2, 1, 0] and splits["test"]["label"][:] == [0, 1, 3]
    assert splits["train"].features == splits["test"].features


def test_columns_with_usual_names_are_preferred(tmp_path):
    cifar_like().save_to_disk(tmp_path / "saved")
    splits = load_image_dataset(str(tmp_path / "saved"))
    assert splits["train"].features["label"].names == ["x", "y"]
    assert np.array_equal(np.asarray(splits["train"][0]["image"])[..., 0], np.asarray(noise(1)))
    splits = load_image_dataset(str(tmp_path / "saved"), image_column="mask", label_column="coarse")
    assert splits["train"].features["label"].names == ["z"]
    assert np.array_equal(np.asarray(splits["train"][0]["image"])[..., 0], np.asarray(noise(2)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_images_are_rgb(tmp_path, mode):
    image = noise(mode=mode)
    labelled([0] * 5, ["x"], [image] * 5).save_to_disk(tmp_path / "saved")
    loaded = load_image_dataset(str(tmp_path / "saved"))["train"][0]["image"]
    assert np.array_equal(np.asarray(loaded), np.asarray(image.convert("RGB")))


def saved(data, path):
    data.save_to_disk(path / "saved")
    return str(path / "saved")


def two_image_columns(path):
    features = Features(left=Image(), right=Image(), label=ClassLabel(names=["x"]))
    rows = {"left": [noise()], "right": [noise()], "label": [0]}
    return saved(Dataset.from_dict(rows, features=features), path)


def different_names(path):
    return saved(DatasetDict(train=labelled([0], ["x", "y"]), test=labelled([0], ["y", "x"])), path)


def float_labels(path):
    return saved(
        Dataset.from_dict(
            {"image": [noise()], "label": [0.5]}, features=Features(image=Image(), label=Value("float32"))
        ),
        path,
    )


def other_splits(path):
    return saved(DatasetDict(old=labelled([0], ["x"]), new=labelled([0], ["x"])), path)


def text_file(path):
    (path / "images.txt").write_text("hello")
    return str(path / "images.txt")


def flat_folder(path):
    noise().save(path / "0.png")
    return str(path)


def cut_parquet(path):
    labelled([0, 1], ["x", "y"]).to_parquet(path / "cut.parquet")
    (path / "cut.parquet").write_bytes((path / "cut.parquet").read_bytes()[:-50])
    return str(path / "cut.parquet")


def empty_test_folder(path):
    (path / "test").mkdir()
    save_images(path / "train", {"a": 2})
    return str(path)


def saved_without_rows(path):
    saved(labelled([0], ["x"]), path)
    next((path / "saved").glob("*.arrow")).unlink()
    return str(path / "saved")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cut_parquet, "cut.parquet' is damaged or incomplete: Parquet magic bytes not found"),
        (saved_without_rows, "saved' is damaged or incomplete: [Errno 2] No such file"),
        (empty_test_folder, "has no images in its test split"),
        (lambda path: "quickdraw10", "did you mean quickdraw100"),
        (lambda path: "cifr100", "did you mean cifar100"),
        (lambda path: str(path / "nowhere"), "neither a local file or folder"),
        (lambda path: "./nowhere", "neither a local file or folder"),
        (
            lambda path: "owner/data",
            "'owner/data' is not a local folder, the Hub cannot be reached and the cache has no copy",
        ),
        (lambda path: "cifar100", "a local copy, such as --dataset path/to/cifar-100-python"),
        (lambda path: "imagenet_r", "a local copy, such as --dataset path/to/imagenet-r"),
        (text_file, "is neither a .parquet file"),
        (flat_folder, "<class>/<image file>"),
        (two_image_columns, "more than one column that can be the image (left, right); choose it with image_column"),
        (different_names, "differently in train and test"),
        (float_labels, "expected a ClassLabel, strings, integers"),
        (other_splits, "has no training split among old, new"),
    ],
)
def test_errors_say_what_where_and_what_to_do(tmp_path, make, message):
    with pytest.raises(DatasetError) as error:
        load_image_dataset(make(tmp_path))
    assert message in str(error.value)


def test_column_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match="no column 'nothing'; its columns are img, fine_label, coarse, mask"):
        load_image_dataset(saved(cifar_like(), tmp_path), image_column="nothing")


@pytest.mark.parametrize("fraction", [0, 1, -0.5])
def test_held_out_share_is_between_0_and_1(tmp_path, fraction):
    with pytest.raises(DatasetError, match="test_fraction"):
        load_image_dataset(saved(labelled([0, 0], ["x"]), tmp_path), test_fraction=fraction)


def test_missing_labels_are_refused(tmp_path):
    features = Features(image=Image(), label=Value("string"))
    data = Dataset.from_dict({"image": [noise()] * 3, "label": ["a", None, "b"]}, features=features)
    with pytest.raises(ValueError, match="1 of 3 images have no label"):
        load_image_dataset(saved(data, tmp_path))


def test_source_keeps_its_name(tmp_path):
    path = saved(labelled([0, 0], ["x"]), tmp_path)
    assert load_image_dataset(path)["train"].info.dataset_name == path


def test_a_file_that_changed_is_read_again(tmp_path):
    for names in (["x", "y"], ["u", "v"]):
        labelled([0, 1] * 5, names).to_parquet(tmp_path / "all.parquet")
        assert load_image_dataset(str(tmp_path / "all.parquet"))["train"].features["label"].names == names
