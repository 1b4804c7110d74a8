"""Which images a saved model may be tested on; the runs here have left their records and have trained nothing."""

import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from cdl_hf.arguments.config import RUN
from cdl_hf.cli import parse, to_yaml
from cdl_hf.data import load_image_dataset
from cdl_hf.training.build import build_stream
from cdl_hf.training.run_images import NAME, RunImages, own_test_images, run_of, unseen_images

CLASSES = ["class_0", "class_1"]


def save_images(folder: Path, numbers: range) -> None:
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in numbers:
            pixels = np.random.default_rng((label, i)).integers(0, 256, (8, 8, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(folder / name / f"{i:02d}.bmp")


@pytest.fixture
def run(tmp_path):
    """A run on a folder of ten images a class, two of them for the test, drawn with another seed than usual."""
    save_images(tmp_path / "data", range(10))
    arguments = parse(RUN, ["--dataset", str(tmp_path / "data"), "--num_tasks", "1", "--stream_seed", "3"])
    stream = build_stream(next(iter(arguments)))
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "run" / "args.yaml").write_text(to_yaml(arguments))
    (tmp_path / "run" / "split.yaml").write_text(stream.split_list())
    (tmp_path / "run" / NAME).write_bytes(RunImages.of(stream).content())
    return tmp_path / "run"


def contents(views) -> set[bytes]:
    return {image.tobytes() for view in views for image in view["image"]}


def test_a_run_of_a_method_that_the_command_line_does_not_know_has_its_test_images(run):
    record = run / "args.yaml"
    record.write_text(record.read_text().replace("distillation: kdp", "distillation: MyMethod"))
    assert "MyMethod" in record.read_text()
    (view,), notes = own_test_images(run, CLASSES, skip_unreadable_images=False)
    assert len(view) == 4 and not notes
    record.write_text("[cut")
    with pytest.raises(ValueError, match="args.yaml is damaged"):
        own_test_images(run, CLASSES, skip_unreadable_images=False)


def test_its_own_test_images_are_found_however_the_folder_grew(run, tmp_path):
    (before,), notes = own_test_images(run, CLASSES, skip_unreadable_images=False)
    assert len(before) == 4 and not notes
    pixels = contents([before])
    for name in CLASSES:  # other names, in another order
        for file in sorted((tmp_path / "data" / name).iterdir()):
            file.rename(file.with_stem(f"{99 - int(file.stem):02d}"))
    save_images(tmp_path / "data", range(20, 25))
    (after,), notes = own_test_images(run, CLASSES, skip_unreadable_images=False)
    assert contents([after]) == pixels and len(after) == 4
    (note,) = notes
    assert note.startswith("10 images of") and "are not among those of" in note


def test_lost_test_images_are_counted_and_none_is_refused(run, tmp_path):
    (view,), _ = own_test_images(run, CLASSES, skip_unreadable_images=False)
    files = [
        Path(row["path"]) for row in view.cast_column("image", view.features["image"].__class__(decode=False))["image"]
    ]
    files[0].unlink()
    (_,), (note,) = own_test_images(run, CLASSES, skip_unreadable_images=False)
    assert note.startswith("1 of the 4 test images")
    for file in files[1:]:
        file.unlink()
    with pytest.raises(ValueError, match="none of the test images"):
        own_test_images(run, CLASSES, skip_unreadable_images=False)


def test_of_another_folder_all_that_is_new_is_tested(run, tmp_path):
    save_images(tmp_path / "other", range(5, 15))
    whole = load_image_dataset(str(tmp_path / "other"), test_fraction=None)
    assert list(whole) == ["test"] and whole.split_list() is None
    trained = RunImages.load(run).digests["train"]
    assert len(trained) == 16
    view, (note,) = unseen_images(whole["test"], "other", run_of(run / "student"))
    count = len(whole["test"]) - len(view)
    assert len(view) >= 10 and note.startswith(f"{count} of the 20 images of other are left out")
    (own,), _ = own_test_images(run, CLASSES, skip_unreadable_images=False)
    assert len(view) == 10 + len(contents([own]) & contents([whole["test"]]))
    shutil.rmtree(tmp_path / "other")
    save_images(tmp_path / "other", range(20, 22))
    view, notes = unseen_images(load_image_dataset(str(tmp_path / "other"), test_fraction=None)["test"], "other", run)
    assert len(view) == 4 and not notes


def test_a_model_that_was_trained_on_all_of_them_is_not_tested(run, tmp_path):
    names = (run / "split.yaml").read_text().split("targets")[0].splitlines()[1:]
    for name in (name.removeprefix("- ").strip('"') for name in names):
        (tmp_path / "seen" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "data" / name, tmp_path / "seen" / name)
    view = load_image_dataset(str(tmp_path / "seen"), test_fraction=None)["test"]
    with pytest.raises(ValueError, match="trained on all 16 images of seen"):
        unseen_images(view, "seen", run)


def test_what_is_not_known_is_said(run, tmp_path):
    view = load_image_dataset(str(tmp_path / "data"), test_fraction=None)["test"]
    shutil.copytree(run / "student", tmp_path / "elsewhere" / "student")
    assert run_of(tmp_path / "elsewhere" / "student") is None and run_of(run) == run
    same, (note,) = unseen_images(view, "data", None)
    assert len(same) == 20 and "not known" in note
    (run / NAME).write_bytes((run / NAME).read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        own_test_images(run, CLASSES, skip_unreadable_images=False)


@pytest.mark.parametrize(
    ("field", "bit"), [(6, 1), (8, 1), (8, 32), (10, 1)], ids=["version", "key", "patch", "method"]
)
def test_a_bit_in_the_directory_of_the_list_is_damage_too(tmp_path, field, bit):
    splits = ("train", "validation", "test")
    content = bytearray(RunImages(*({name: np.arange(2) for name in splits} for _ in range(2))).content())
    content[content.index(b"PK\1\2") + field] ^= bit  # where zipfile raises errors of several kinds
    (tmp_path / NAME).write_bytes(content)
    try:
        assert RunImages.load(tmp_path).digests.keys() == set(splits)
    except ValueError as error:
        assert "is damaged" in str(error)


def test_runs_of_earlier_versions_go_by_their_list(run, tmp_path):
    before, _ = own_test_images(run, CLASSES, skip_unreadable_images=False)
    view = load_image_dataset(str(tmp_path / "data"), test_fraction=None)["test"]
    (run / NAME).unlink()
    after, (note,) = own_test_images(run, CLASSES, skip_unreadable_images=False)
    assert contents(after) == contents(before) and "no digests" in note
    unseen, _ = unseen_images(view, "data", run)
    assert contents([unseen]) == contents(before)
    shutil.rmtree(tmp_path / "data")
    _, (note,) = unseen_images(view, "data", run)
    assert "not known" in note and "data" in note


def test_images_for_the_test_that_are_trained_on_are_counted(run, tmp_path):
    assert RunImages.load(run).repeats() is None
    save_images(tmp_path / "two" / "train", range(6))
    save_images(tmp_path / "two" / "test", range(5, 9))  # under other names, or linked, they are the same
    arguments = parse(RUN, ["--dataset", str(tmp_path / "two"), "--num_tasks", "1"])
    images = RunImages.of(build_stream(next(iter(arguments))))
    assert images.repeats().startswith("2 of the 8 test images are trained on too")
