import pytest
import yaml

from cdl_hf.data import SourceError, load_source

from .conftest import labelled, noise, save_images


@pytest.fixture
def folder(tmp_path):
    return save_images(tmp_path / "images", {"a": 3, 'b "1"': 3, "猫: ü": 3})


def write_list(folder, content):
    file = folder.parent / "split.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(file)


def test_names_in_any_script_survive(folder):
    splits = load_source(str(folder))
    file = write_list(folder, splits.split_list())
    assert yaml.safe_load(splits.split_list())["targets"] == [0, 0, 1, 1, 2, 2]
    again = load_source(str(folder), split_file=file, seed=9)
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
    with pytest.raises(SourceError, match=message):
        load_source(str(folder), split_file=write_list(folder, content))


def test_list_that_is_not_there(folder):
    with pytest.raises(SourceError, match="split_file 'nowhere.yaml' cannot be read: No such file"):
        load_source(str(folder), split_file="nowhere.yaml")


def test_images_that_no_list_tells_apart(tmp_path):
    file = tmp_path / "split.yaml"
    file.write_text("data: [b/0.png]")
    save_images(tmp_path / "images", {"a/b": 2, "c/b": 2})
    with pytest.raises(SourceError, match="images of one folder and file name"):
        load_source(str(tmp_path / "images"), split_file=str(file))
    labelled([0, 0], ["x"], [noise(), noise(1)]).save_to_disk(tmp_path / "saved")
    with pytest.raises(SourceError, match="stores images without file names"):
        load_source(str(tmp_path / "saved"), split_file=str(file))
    assert load_source(str(tmp_path / "saved")).split_list() is None
