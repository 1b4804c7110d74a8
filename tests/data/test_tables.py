"""Tables of images: what `datasets` takes for an image folder, CSV and JSON with paths, Parquet and Arrow files."""

import io
import json
import os
import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from tiny_data import counts, labelled, noise, save_images

from cdl_hf.data import DatasetError, load_image_dataset

A5_B5 = ["ab"[number % 2] for number in range(10)]


def save_flat(folder, count=10):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise(number).save(folder / f"{number}.png")
    return folder


def write_table(file, column, names, labels, label="label"):
    """A table in the format that the suffix tells."""
    rows = [{column: name, label: value} for name, value in zip(names, labels, strict=True)]
    if file.suffix.lower() in (".csv", ".tsv"):
        comma = "\t" if file.suffix == ".tsv" else ","
        lines = [comma.join([column, label]), *(comma.join(map(str, row.values())) for row in rows)]
        file.write_text("\n".join(lines), encoding="utf-8")
    elif file.suffix.lower() == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        lines = map(json.dumps, rows)
        file.write_text("\n".join(lines) if file.suffix == ".jsonl" else f"[{', '.join(lines)}]", encoding="utf-8")


def file_bytes(number):
    file = io.BytesIO()
    noise(number).save(file, "PNG")
    return file.getvalue()


PNGS = [f"{number}.png" for number in range(10)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_beside_the_files(tmp_path, suffix):
    write_table(save_flat(tmp_path) / f"metadata.{suffix}", "file_name", PNGS, A5_B5)
    splits = load_image_dataset(str(tmp_path))
    assert counts(splits["train"]) == {"a": 4, "b": 4} and counts(splits["test"]) == {"a": 1, "b": 1}
    first = splits["train"].cast_column("image", Image(decode=False))[0]
    assert (int(first["image"]["path"].split("/")[-1][:-4]) % 2 == 1) == (first["label"] == 1)


def test_metadata_of_each_split(tmp_path):
    for split, labels in (("Train", A5_B5), ("test", ["a"] * 10)):
        write_table(save_flat(tmp_path / split) / "metadata.jsonl", "file_name", PNGS, labels)
    splits = load_image_dataset(str(tmp_path))
    assert counts(splits["train"]) == {"a": 5, "b": 5} and counts(splits["test"]) == {"a": 10, "b": 0}


def test_metadata_of_a_test_split_without_labels(tmp_path):
    for split in ("train", "test", "val"):
        write_table(save_flat(tmp_path / split) / "metadata.csv", "file_name", PNGS, A5_B5)
    (tmp_path / "test" / "metadata.csv").write_text("\n".join(["file_name", *PNGS]))
    with pytest.warns(UserWarning, match="no labels in its test split; the validation split is used for testing"):
        assert counts(load_image_dataset(str(tmp_path))["test"]) == {"a": 5, "b": 5}


@pytest.mark.parametrize(
    ("folders", "trained", "tested"), [(("batch_1", "batch_2"), 16, 4), (("train", "test"), 10, 10)]
)
def test_one_metadata_over_folders_that_are_no_classes(tmp_path, folders, trained, tested):
    names = [f"{folder}/{name}" for folder in folders for name in PNGS]
    for folder in folders:
        save_flat(tmp_path / folder)
    write_table(tmp_path / "metadata.csv", "file_name", names, A5_B5 * 2)
    splits = load_image_dataset(str(tmp_path))
    assert splits["train"].features["label"].names == ["a", "b"]
    assert len(splits["train"]) == trained and len(splits["test"]) == tested


def test_metadata_without_classes_leaves_them_to_the_folders(tmp_path):
    save_images(tmp_path, {"x": 5, "y": 5})
    write_table(tmp_path / "metadata.csv", "file_name", ["x/0.png", "y/0.png"], ["one", "two"], label="caption")
    with pytest.warns(
        UserWarning, match="classes of .* are its folders: metadata.csv has no column file_name, or no column"
    ):
        assert set(counts(load_image_dataset(str(tmp_path))["train"])) == {"x", "y"}
    assert set(counts(load_image_dataset(str(tmp_path), label_column="caption", test_fraction=0.5)["train"])) == {
        "one",
        "two",
    }


def test_metadata_that_names_no_files(tmp_path):
    save_images(tmp_path, {"x": 5, "y": 5})
    write_table(tmp_path / "metadata.csv", "photographer", ["me"], ["x"])
    with pytest.warns(UserWarning, match="are its folders: metadata.csv has no column file_name"):
        assert set(counts(load_image_dataset(str(tmp_path))["train"])) == {"x", "y"}


def test_images_that_metadata_does_not_name_are_counted(tmp_path):
    write_table(save_flat(tmp_path, 12) / "metadata.csv", "file_name", PNGS, A5_B5)
    with pytest.warns(UserWarning, match="Ignored 2 images .* its table does not list"):
        load_image_dataset(str(tmp_path))


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd"])
def test_metadata_names_files_of_its_folder_only(tmp_path, name):
    noise().save(tmp_path / "outside.png")
    write_table(save_flat(tmp_path / "data") / "metadata.csv", "file_name", [name, *PNGS[1:]], A5_B5)
    with pytest.raises(DatasetError, match="which is not in that folder"):
        load_image_dataset(str(tmp_path / "data"))


@pytest.mark.parametrize("table", ["labels.csv", "data.tsv", "labels.json", "index.jsonl", "index.parquet"])
@pytest.mark.parametrize("names", [[f"images/{name}" for name in PNGS], PNGS, [name[:-4] for name in PNGS]])
def test_a_table_beside_a_folder_of_images(tmp_path, table, names):
    """With paths, with names, or with names without a suffix, as competitions have them."""
    if names[0] == "0":
        names = [f"id{name}" for name in names]
        save_flat(tmp_path / "images")
        for file in (tmp_path / "images").iterdir():
            file.rename(file.with_name(f"id{file.name}"))
    else:
        save_flat(tmp_path / "images")
    write_table(tmp_path / table, "path", names, A5_B5, label="category")
    for source in (tmp_path, tmp_path / table):
        splits = load_image_dataset(str(source))
        assert counts(splits["train"]) == {"a": 4, "b": 4}
        assert splits["train"][0]["image"].size == (28, 28)


@pytest.mark.parametrize("table", ["labels.csv", "metadata.csv", "labels.jsonl", "labels.parquet"])
@pytest.mark.parametrize("column", ["id", "image_id", "image"])
def test_numbers_name_files_without_their_suffix(tmp_path, table, column):
    """As in `id,breed` of competitions."""
    save_flat(tmp_path / "train")
    write_table(tmp_path / table, column, list(range(10)), A5_B5, label="breed")
    splits = load_image_dataset(str(tmp_path))
    assert counts(splits["train"]) == {"a": 4, "b": 4}
    row = splits["train"].cast_column("image", Image(decode=False))[0]
    assert "ab"[int(row["image"]["path"].split("/")[-1][:-4]) % 2] == "ab"[row["label"]]
    assert counts(load_image_dataset(str(tmp_path), image_column=column, label_column="breed")["train"]) == {
        "a": 4,
        "b": 4,
    }


def test_zeros_before_a_number_belong_to_the_name(tmp_path):
    save_images(tmp_path, {"images": 1, "more": 1})
    for name in ("007", "07", "008", "08"):
        noise().save(tmp_path / "images" / f"{name}.png")
    write_table(tmp_path / "x.csv", "image", ["007", "008", "07", "08"], ["a", "b", "a", "b"])
    splits = load_image_dataset(str(tmp_path / "x.csv"), test_fraction=None)
    paths = [row["path"] for row in splits["test"].cast_column("image", Image(decode=False))["image"]]
    assert [path.split("/")[-1] for path in paths] == ["007.png", "008.png", "07.png", "08.png"]


def test_a_file_of_another_folder_is_not_taken_for_one_that_is_missing(tmp_path):
    save_images(tmp_path, {"x": 3, "y": 4})
    write_table(tmp_path / "list.csv", "path", ["x/0.png", "x/3.png", "y/0.png"], ["a", "a", "b"])
    with pytest.raises(DatasetError, match="x/3.png: no such file"):
        load_image_dataset(str(tmp_path / "list.csv"))


@pytest.mark.parametrize("prefix", ["", "kaggle/input/photos/images/", "/old/place/photos/images/"])
def test_files_named_with_folders_that_are_not_here(tmp_path, prefix):
    save_flat(tmp_path / "images")
    write_table(tmp_path / "list.csv", "path", [prefix + name for name in PNGS], A5_B5)
    assert counts(load_image_dataset(str(tmp_path / "list.csv"))["train"]) == {"a": 4, "b": 4}


@pytest.mark.parametrize("table", ["metadata.csv", "labels.csv"])
def test_files_whose_names_are_composed_in_another_way(tmp_path, table):
    for number in range(4):
        noise().save(tmp_path / f"cafe\u0301{number}.png")
    write_table(tmp_path / table, "file_name", [f"caf\u00e9{number}.png" for number in range(4)], ["a", "b"] * 2)
    assert counts(load_image_dataset(str(tmp_path))["train"]) == {"a": 1, "b": 1}


def test_a_file_that_is_named_twice(tmp_path):
    save_flat(tmp_path)
    write_table(tmp_path / "list.csv", "path", [*PNGS, "0.png"], [*A5_B5, "a"])
    with pytest.warns(UserWarning, match="lists 1 images of its train split more than once; each is used once"):
        assert sum(map(len, load_image_dataset(str(tmp_path / "list.csv")).values())) == 10
    write_table(tmp_path / "list.csv", "path", [*PNGS, "./0.png"], [*A5_B5, "b"])
    with pytest.raises(DatasetError, match="0.png' more than one class .'a' and 'b'.; give it one"):
        load_image_dataset(str(tmp_path / "list.csv"))


def test_a_file_that_both_splits_name_is_not_tested_on(tmp_path):
    save_flat(tmp_path / "images")
    write_table(tmp_path / "train.csv", "path", PNGS[:8], A5_B5[:8])
    write_table(tmp_path / "test.csv", "path", PNGS[6:], A5_B5[6:])
    with pytest.warns(UserWarning, match="Left out 2 test images of .* that are also training images"):
        splits = load_image_dataset(str(tmp_path))
    assert counts(splits["train"]) == {"a": 4, "b": 4} and counts(splits["test"]) == {"a": 1, "b": 1}
    write_table(tmp_path / "test.csv", "path", PNGS[:2], A5_B5[:2])
    with pytest.raises(DatasetError, match="no image in its test split that is not a training image"):
        load_image_dataset(str(tmp_path))


def test_a_table_beside_folders_that_are_no_classes(tmp_path):
    for number in range(10):
        (tmp_path / f"part_{number // 5}").mkdir(exist_ok=True)
        noise(number).save(tmp_path / f"part_{number // 5}" / f"{number}.png")
    write_table(tmp_path / "list.csv", "image_id", list(range(10)), A5_B5, label="dx")
    with pytest.warns(UserWarning, match="Ignored list.csv: the classes of .* are its folders"):
        assert set(counts(load_image_dataset(str(tmp_path))["train"])) == {"part_0", "part_1"}
    found = load_image_dataset(str(tmp_path), image_column="image_id", label_column="dx")
    assert counts(found["train"]) == {"a": 4, "b": 4}


@pytest.mark.parametrize("column", ["set", "Data Set", "Usage"])
def test_rows_of_no_split_are_counted(tmp_path, column):
    save_flat(tmp_path)
    told = ["train"] * 6 + ["test"] * 2 + ["", "unknown"]
    rows = [",".join(row) for row in zip(PNGS, A5_B5, told, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join([f"image,label,{column}", *rows]))
    with pytest.warns(UserWarning, match=f"Ignored 2 images whose column '{column}' means no split"):
        splits = load_image_dataset(str(tmp_path))
    assert counts(splits["train"]) == {"a": 3, "b": 3} and counts(splits["test"]) == {"a": 1, "b": 1}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_saved_split_without_rows(tmp_path, split):
    rows = labelled([0, 1], ["a", "b"])
    datasets.DatasetDict({"train": rows, "test": rows} | {split: rows.select([])}).save_to_disk(tmp_path / "d")
    with pytest.raises(DatasetError, match="saved with an empty split|no images in its"):
        load_image_dataset(str(tmp_path / "d"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,label\n", "has no rows"),
        ("image,label\n0.png,caf\u00e9".encode("latin1"), "not encoded in UTF-8; save it in UTF-8"),
        (b'image,label\n"data:image/png;base64,iVBORw0KGgo",a', "holds strings that are not paths"),
        (b"image,label\n" + b"89504e47" * 40 + b",a", "holds strings that are not paths"),
    ],
)
def test_csv_files_that_are_no_lists_of_images(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load_image_dataset(str(tmp_path / "x.csv"))


def test_a_table_for_each_split(tmp_path):
    for split, labels in (("train", A5_B5), ("test", A5_B5)):
        save_flat(tmp_path / split)
        write_table(tmp_path / f"{split}.csv", "filename", [f"{split}/{name}" for name in PNGS], labels)
    splits = load_image_dataset(str(tmp_path))
    assert counts(splits["train"]) == {"a": 5, "b": 5} and counts(splits["test"]) == {"a": 5, "b": 5}


def test_names_that_both_splits_have_are_those_of_the_tables_own(tmp_path):
    for split in ("train", "test"):
        for file in save_flat(tmp_path / split).iterdir():
            file.rename(file.with_name(f"p{file.name}"))
        write_table(tmp_path / f"{split}.csv", "id", [f"p{number}" for number in range(10)], A5_B5)
    data = load_image_dataset(str(tmp_path), image_column="id")["test"].cast_column("image", Image(decode=False))
    assert {row["path"] for row in data["image"]} == {str(tmp_path / "test" / f"p{name}") for name in PNGS}


def test_a_column_that_tells_the_split(tmp_path):
    save_flat(tmp_path / "images")
    rows = [
        f"{name};{label};{'train' if n < 6 else 'Test'}"
        for n, (name, label) in enumerate(zip(PNGS, A5_B5, strict=True))
    ]
    (tmp_path / "list.csv").write_text("\n".join(["image;label;split", *rows]))
    splits = load_image_dataset(str(tmp_path / "list.csv"))
    assert counts(splits["train"]) == {"a": 3, "b": 3} and counts(splits["test"]) == {"a": 2, "b": 2}


def test_names_of_classes_that_look_like_nothing(tmp_path):
    write_table(save_flat(tmp_path) / "metadata.csv", "file_name", PNGS, ["NA", "None", "null", "nan", "-"] * 2)
    assert load_image_dataset(str(tmp_path))["train"].features["label"].names == ["-", "NA", "None", "nan", "null"]


@pytest.mark.parametrize("name", ["DATA.PARQUET", "data.parq", "a [1] #%.pq", "data.arrow", "ü.Arrow"])
def test_files_by_any_spelling_of_their_suffix(tmp_path, name):
    data = labelled([0, 1] * 5, ["x", "y"])
    if name.lower().endswith("arrow"):
        data.save_to_disk(tmp_path / "saved")
        next((tmp_path / "saved").glob("*.arrow")).rename(tmp_path / name)
    else:
        data.to_parquet(tmp_path / name)
    assert counts(load_image_dataset(str(tmp_path / name))["train"]) == {"x": 4, "y": 4}


def test_tables_of_splits_by_their_names(tmp_path):
    """Also where a name has capitals, which `datasets` would put into one split with the rest."""
    data = labelled([0, 1] * 5, ["x", "y"])
    for name in ("Train-0.parquet", "Train-1.parquet", "TEST.parquet"):
        data.to_parquet(tmp_path / name)
    splits = load_image_dataset(str(tmp_path))
    assert len(splits["train"]) == 20 and len(splits["test"]) == 10
    for name in ("training", "eval"):
        (tmp_path / "nested" / name).mkdir(parents=True)
        data.to_parquet(tmp_path / "nested" / name / "0.parquet")
    splits = load_image_dataset(str(tmp_path / "nested"))
    assert len(splits["train"]) == 10 and len(splits["test"]) == 10


def test_splits_saved_one_by_one(tmp_path):
    data = labelled([0, 1] * 5, ["x", "y"])
    data.save_to_disk(tmp_path / "Train")
    data.select(range(4)).save_to_disk(tmp_path / "validation")
    splits = load_image_dataset(str(tmp_path))
    assert len(splits["train"]) == 10 and counts(splits["test"]) == {"x": 2, "y": 2}
    with pytest.raises(DatasetError, match="is one file of a saved data set; give its folder"):
        load_image_dataset(str(next((tmp_path / "Train").glob("*.arrow"))))


@pytest.mark.parametrize("where", ["index.parquet", "a/index.parquet", "broken.parquet"])
def test_a_stray_table_among_classes_of_images(tmp_path, where):
    save_images(tmp_path, {"a": 5, "b": 5})
    pq.write_table(pa.table({"file": ["a/0.png"]}), tmp_path / where)
    if "broken" in where:
        (tmp_path / where).write_bytes(b"")
    with pytest.warns(UserWarning, match="Ignored .*(index.parquet|broken.parquet|1 .parquet)"):
        assert counts(load_image_dataset(str(tmp_path))["train"]) == {"a": 4, "b": 4}


def stray_only(path):
    pq.write_table(pa.table({"size": [1]}), path / "index.parquet")
    return path


def no_bytes(path):
    (path / "data.parquet").write_bytes(b"")
    return path / "data.parquet"


def no_rows(path):
    labelled([], ["x"]).to_parquet(path / "data.parquet")
    return path / "data.parquet"


def damaged_shard(path):
    for name in ("train-0.parquet", "train-1.parquet"):
        labelled([0], ["x"]).to_parquet(path / name)
    (path / "train-1.parquet").write_bytes((path / "train-1.parquet").read_bytes()[:-20])
    return path


def archives(path):
    with zipfile.ZipFile(path / "train.zip", "w") as file:
        file.writestr("a/0.png", b"")
    return path


def one_image(path):
    noise().save(path / "0.png")
    return path / "0.png"


def base64_texts(path):
    pq.write_table(pa.table({"image": ["iVBORw0KGgo" * 1000], "label": ["x"]}), path / "data.parquet")
    return path / "data.parquet"


def lists_of_images(path):
    features = Features(image=datasets.List(Image()), label=Value("string"))
    Dataset.from_dict({"image": [[noise()]], "label": ["x"]}, features=features).save_to_disk(path / "saved")
    return path / "saved"


def numbers_as_images(path):
    pq.write_table(pa.table({"image": [1, 2], "label": ["x", "y"]}), path / "data.parquet")
    return path / "data.parquet"


def crooked_csv(path):
    (path / "data.csv").write_text('image,label\n0.png,a\n"1.png,b\n')
    return path / "data.csv"


def captions(path):
    write_table(save_flat(path) / "metadata.csv", "file_name", PNGS, A5_B5, label="caption")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            stray_only,
            "index.parquet' has no columns that can be recognized as those of images and classes .size.: choose",
        ),
        (no_bytes, "data.parquet' is empty .0 bytes."),
        (no_rows, "data.parquet' has no rows"),
        (damaged_shard, "train-1.parquet' is damaged or incomplete"),
        (archives, "it holds archives: extract train.zip"),
        (lambda path: archives(path) / "train.zip", "train.zip' is an archive; extract it"),
        (one_image, "is a single image; give the folder"),
        (base64_texts, "holds strings that are not paths, such as images in base64"),
        (lists_of_images, "has lists of images in its column 'image'; expected one image per row"),
        (numbers_as_images, "has values of type int64 in its column 'image'; expected one image per row"),
        (crooked_csv, "data.csv' is damaged or incomplete: Error tokenizing data"),
        (
            captions,
            "metadata.csv' has no column file_name, or no column of classes .file_name, caption.: choose them",
        ),
    ],
)
def test_what_cannot_be_read_is_told_as_what_it_is(tmp_path, make, message):
    with pytest.raises(DatasetError, match=message):
        load_image_dataset(str(make(tmp_path)))


def test_what_is_gone_from_the_cache_is_read_again(tmp_path):
    labelled([0, 1] * 5, ["x", "y"]).to_parquet(tmp_path / "data.parquet")
    file = load_image_dataset(str(tmp_path / "data.parquet"))["train"].cache_files[0]["filename"]
    os.remove(file)
    assert counts(load_image_dataset(str(tmp_path / "data.parquet"))["train"]) == {"x": 4, "y": 4}


def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch):
    labelled([0, 1] * 5, ["x", "y"]).to_parquet(tmp_path / "data.parquet")
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DatasetError, match="cannot be copied to the cache folder .*set HF_DATASETS_CACHE"):
        load_image_dataset(str(tmp_path / "data.parquet"))


# Labels of all kinds


def table(path, labels, name="data.parquet"):
    path.mkdir(exist_ok=True)
    data = labelled([0] * len(labels), ["x"]).to_pandas()
    pq.write_table(pa.table({"image": list(data["image"]), "label": labels}), path / name)
    return str(path / name)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pa.array([True, False] * 5), ["False", "True"]),
        (pa.array([10.0, 2.0] * 5), ["2", "10"]),
        (pa.array([3, 200] * 5, pa.uint8()), ["3", "200"]),
        (pa.array(["1", "2", "10", "9", "1"] * 2), ["1", "10", "2", "9"]),
        (pa.array([2**63 + 5, 7] * 5, pa.uint64()), ["7", str(2**63 + 5)]),
        (pa.array(["cat", "dog"] * 5).dictionary_encode(), ["cat", "dog"]),
        (pa.array(["caf\u00e9", "cafe\u0301", "tea", "tea", "tea"] * 2), ["caf\u00e9", "tea"]),
    ],
)
def test_values_that_name_classes(tmp_path, labels, names):
    splits = load_image_dataset(table(tmp_path, labels))
    assert splits["train"].features["label"] == ClassLabel(names=names)
    assert len(splits["train"]) + len(splits["test"]) == 10


@pytest.mark.parametrize(
    ("labels", "missing"),
    [
        (pa.array([-1, 5, 900, 5, 900]), 1),
        (pa.array([0.0, 1.0, float("nan"), None, 1.0]), 2),
        (pa.array(["a", "b", "", " ", None]), 3),
        (pa.array([True, None, False, None, True]), 2),
    ],
)
def test_values_that_stand_for_no_label(tmp_path, labels, missing):
    with pytest.raises(ValueError, match=f"{missing} of 5 images have no label"):
        load_image_dataset(table(tmp_path, labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([0.5, 1.0]), "labels of type double, such as 0.5 in its train split; expected"),
        (pa.array([["a"], ["b"]]), "labels of type List.*; expected a ClassLabel, strings, integers"),
        (pa.array([None, None]), "has no labels"),
        (pa.array([1, 2], pa.date32()), "labels of type date32"),
    ],
)
def test_values_that_name_no_classes(tmp_path, labels, message):
    with pytest.raises(DatasetError, match=message.replace("double", "(double|float64)")):
        load_image_dataset(table(tmp_path, labels))


def saved(path, **splits):
    """Splits of ten images with labels of the type given."""
    data = {
        split: Dataset.from_dict(
            {"image": [noise()] * len(labels), "label": labels}, features=Features(image=Image(), label=feature)
        )
        for split, (feature, labels) in splits.items()
    }
    datasets.DatasetDict(data).save_to_disk(path / "saved")
    return str(path / "saved")


AB = ClassLabel(names=["a", "b"])


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ((Value("string"), ["a", "b"]), "a ClassLabel in train and string in test; save them as one type"),
        ((Value("int8"), [0, 1]), "a ClassLabel in train and int8 in test"),
    ],
)
def test_different_kinds_in_the_splits(tmp_path, test, told):
    with pytest.raises(DatasetError, match=told):
        load_image_dataset(saved(tmp_path, train=(AB, [0, 1]), test=test))
    with pytest.raises(DatasetError, match="string in train and int64 in test"):
        load_image_dataset(saved(tmp_path / "2", train=(Value("string"), ["0"]), test=(Value("int64"), [0])))


def test_narrow_and_wide_integers_and_floats_are_one_kind(tmp_path):
    splits = {"train": (Value("int8"), [0, 1]), "test": (Value("int64"), [0, 300]), "extra": (Value("float32"), [0.0])}
    found = load_image_dataset(saved(tmp_path, **splits))
    assert found["train"].features["label"].names == ["0", "1", "300"] and found["test"]["label"][:] == [0, 2]


@pytest.mark.parametrize("missing", [(AB, [-1, -1]), (AB, [None, None]), (Value("string"), [None, ""])])
def test_a_test_split_without_labels(tmp_path, missing):
    path = saved(tmp_path, train=(AB, [0, 1] * 5), test=missing, validation=(AB, [0, 1, 1]))
    with pytest.warns(UserWarning, match="no labels in its test split; the validation split is used for testing"):
        assert counts(load_image_dataset(path)["test"]) == {"a": 1, "b": 2}
    path = saved(tmp_path / "2", train=(AB, [0, 1] * 5), test=missing)
    with pytest.raises(DatasetError, match="no labels in its test split; .* with test_split=train"):
        load_image_dataset(path)
    assert counts(load_image_dataset(path, test_split="train")["test"]) == {"a": 1, "b": 1}


def test_splits_are_named(tmp_path):
    path = saved(tmp_path, old=(AB, [0, 1]), new=(AB, [1, 0, 1]), Training=(AB, [0, 1] * 2))
    assert len(load_image_dataset(path, train_split="old", test_split="new")["test"]) == 3
    assert len(load_image_dataset(path, train_split="train", test_split="old")["train"]) == 4
    with pytest.raises(DatasetError, match="no split 'newest' for test_split; its splits are old, new, Training"):
        load_image_dataset(path, test_split="newest")


def test_classes_that_do_not_occur(tmp_path):
    names = ClassLabel(names=list("abcde"))
    path = saved(tmp_path, train=(names, [1, 3, 1]), test=(names, [3, 1]))
    splits = load_image_dataset(path, drop_empty_classes=True)
    assert splits["train"].features["label"].names == ["b", "d"]
    assert splits["train"]["label"][:] == [0, 1, 0] and splits["test"]["label"][:] == [1, 0]
    assert load_image_dataset(path)["train"].features["label"].num_classes == 5


def test_a_sheet_for_answers_is_no_list_of_classes(tmp_path):
    for folder, names in (("train", PNGS[:6]), ("test", PNGS[6:])):
        (tmp_path / folder).mkdir()
        for name in names:
            noise().save(tmp_path / folder / name)
    write_table(tmp_path / "labels.csv", "id", [name[:-4] for name in PNGS[:6]], A5_B5[:6])
    write_table(tmp_path / "sample_submission.csv", "id", [name[:-4] for name in PNGS[6:]], ["0"] * 4)
    with pytest.warns(UserWarning, match="that they hold no labels: sample_submission.csv"):
        assert counts(load_image_dataset(str(tmp_path))["train"]) == {"a": 2, "b": 2}


def test_tables_in_several_folders_are_told(tmp_path):
    for folder in ("full", "small"):
        (tmp_path / folder).mkdir()
        rows = [{"image": {"bytes": file_bytes(n), "path": None}, "label": A5_B5[n]} for n in range(10)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / folder / "train.parquet")
    with pytest.warns(UserWarning, match="are read together as train: full, small; if they are copies"):
        load_image_dataset(str(tmp_path))
    assert sum(map(len, load_image_dataset(str(tmp_path / "full")).values())) == 10


@pytest.mark.parametrize("columns", [{"image_column": "label"}, {"label_column": "image"}])
def test_one_column_for_both_is_refused(tmp_path, columns):
    with pytest.raises(DatasetError, match="one column '.*' for images and labels"):
        load_image_dataset(str(save_images(tmp_path, {"a": 3, "b": 3})), **columns)
