"""What a resumed run, and a run that takes another's model, must have found again; nothing is trained here."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from accelerate import Accelerator
from datasets import Dataset, Features, Image, Value
from tiny_models import tiny_model

from cdl_hf import utils
from cdl_hf.arguments.config import CDLConfig, ModelArguments
from cdl_hf.arguments.stream import StreamArguments
from cdl_hf.data import image_processor_for
from cdl_hf.distillation import TrainingObjective
from cdl_hf.runs.fingerprint import VERSION, compare, fingerprint
from cdl_hf.runs.task_checkpoints import TaskCheckpoints, describe, describe_stream
from cdl_hf.training.build import build_stream
from cdl_hf.utils import code_commit, versions


def noise(seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four classes of five images, in files that all have the same size."""
    for label in range(4):
        place = tmp_path / "data" / f"class_{label}"
        place.mkdir(parents=True)
        for i in range(5):
            noise(10 * label + i).save(place / f"{i}.bmp")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def model():
    return tiny_model("l2p", tasks=0, classes_per_task=[2, 2])


@pytest.fixture
def found(model):
    """The fingerprint of a run on a data set."""

    def find(dataset: Path, stream=(), models=(), training=()) -> dict:
        stream_args = StreamArguments(str(dataset), num_tasks=2, **dict(stream))
        return fingerprint(
            (stream_args, ModelArguments(**dict(models)), CDLConfig(**dict(training))),
            build_stream(stream_args),
            {"teacher": TrainingObjective(model)},
            image_processor_for({"input_size": (3, 32, 32)}),
            Accelerator(cpu=True),
        )

    return find


def replaced_by_noise(folder: Path) -> None:
    for file in folder.rglob("*.bmp"):
        noise(1000 + int(file.stem)).save(file)


def renamed(folder: Path) -> None:
    (folder / "class_1" / "0.bmp").rename(folder / "class_1" / "9.bmp")


def in_another_class(folder: Path) -> None:
    for i in (0, 1):
        one, other = folder / "class_0" / f"{i}.bmp", folder / "class_1" / f"{i}.bmp"
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)


def one_more(folder: Path) -> None:
    noise(5000).save(folder / "class_2" / "7.bmp")


@pytest.mark.parametrize("change", [replaced_by_noise, renamed, in_another_class, one_more])
def test_other_images_are_noticed(folder, found, change):
    before = found(folder)
    assert compare(before, found(folder)) == []
    change(folder)
    with pytest.raises(ValueError, match="images of task .* are others|images was"):
        compare(before, found(folder))


def test_another_split_is_noticed(folder, found, tmp_path):
    lists = []
    for kept in (range(3), range(2, 5)):
        lists.append(tmp_path / f"from_{kept[0]}.yaml")
        names = "".join(f"- class_{label}/{i}.bmp\n" for label in range(4) for i in kept)
        lists[-1].write_text(f"data:\n{names}")
    before = found(folder, {"split_file": str(lists[0])})
    with pytest.raises(ValueError, match="split_file was .*training images of task 1, 2 are others"):
        compare(before, found(folder, {"split_file": str(lists[1])}))
    lists[1].write_text(lists[0].read_text())
    assert compare(before, found(folder, {"split_file": str(lists[1])})) == []
    lists[0].write_text(f"data:\n{names}")
    with pytest.raises(ValueError, match="test images of task 1, 2 are others"):
        compare(before, found(folder, {"split_file": str(lists[0])}))


def test_data_and_weights_that_only_moved_are_the_same(folder, found, tmp_path, monkeypatch):
    before = found(folder, models={"teacher": "here"})
    assert compare(before, found(f"{folder}/", models={"teacher": "there/"})) == []
    monkeypatch.chdir(tmp_path)
    assert compare(before, found("data")) == []
    shutil.move(folder, tmp_path / "elsewhere")
    assert compare(before, found("elsewhere")) == []
    with pytest.raises(ValueError, match="teacher was 'here', is now 'there'; weights of the teacher"):
        compare(before, found("elsewhere", models={"teacher": "there"}) | {"weights of the teacher": "others"})


def test_a_table_of_the_same_files_is_the_same_data(folder, found, tmp_path):
    files = sorted(folder.rglob("*.bmp"))
    rows = {"image": [{"bytes": f.read_bytes(), "path": None} for f in files], "label": [f.parent.name for f in files]}
    table = Dataset.from_dict(rows, Features(image=Image(), label=Value("string")))
    table.to_parquet(tmp_path / "table.parquet")
    assert compare(found(folder), found(tmp_path / "table.parquet")) == []
    rows["image"][7]["bytes"] = files[7].read_bytes()[:-1] + b"\0"
    Dataset.from_dict(rows, table.features).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="images of task 1 are others"):
        compare(found(folder), found(tmp_path / "other.parquet"))


def test_other_pixels_from_the_same_images_are_noticed(folder, found):
    before = found(folder)
    with pytest.raises(ValueError, match="image_mean of the images was"):
        compare(before, before | {"image_mean of the images": [0.1, 0.1, 0.1]})


def test_other_versions_are_told_and_not_refused(folder, found):
    now = found(folder)
    assert now[f"{VERSION}commit"] == code_commit() and {"cdl_hf", "torch", "timm", "transformers", "python"} <= {
        name.removeprefix(VERSION) for name in now if name.startswith(VERSION)
    }
    (told,) = compare(now | {f"{VERSION}torch": "2.0", f"{VERSION}commit": None}, now)
    assert "version of torch was '2.0'" in told and "may affect the result" in told


def test_checkpoints_without_digests_go_on_and_say_so(folder, found):
    """Those of earlier versions; arguments that are new since then had their defaults."""
    now = found(folder)
    known = {"train", "validation", "test", "class_names", "weights of the teacher", "num_processes", "precision"}
    old = {name: value for name, value in now.items() if name in known or " " not in name and "images" not in name}
    del old["teacher_merge"]
    (told,) = compare(old, now)
    assert "could not be compared" in told
    assert compare(old, found(f"{folder}/")) == [told]
    shutil.copytree(folder, folder.with_name("copy"))
    with pytest.raises(ValueError, match="dataset was"):  # nothing says that these are the same
        compare(old, found(folder.with_name("copy")))
    with pytest.raises(ValueError, match="teacher_merge was 'own_stage', is now 'after_student'"):
        compare(old, now | {"teacher_merge": "after_student"})


def test_a_copied_teacher_is_the_same_and_another_is_not(folder, found, tmp_path):
    for name in ("run", "copy"):
        (tmp_path / name / "states" / "teacher").mkdir(parents=True)
        (tmp_path / name / "states" / "teacher" / "task_000.safetensors").write_bytes(b"state")
    given = {"stages": "student", "teacher_run": str(tmp_path / "run")}
    before = found(folder, training=given)
    assert compare(before, found(folder, training=given | {"teacher_run": f"{tmp_path / 'copy'}/"})) == []
    (tmp_path / "run" / "states" / "teacher" / "task_000.safetensors").write_bytes(b"another")
    with pytest.raises(ValueError, match="states of the teacher was"):
        compare(before, found(folder, training=given))


def test_a_teacher_of_other_images_is_refused(folder, model, tmp_path):
    args = StreamArguments(str(folder), num_tasks=2)
    states = TaskCheckpoints(tmp_path / "run", "teacher")
    about = describe(model, build_stream(args), CDLConfig(), image_processor_for({}))
    for task in range(2):
        states.save(task, model, [(1, 2)], about)
    assert not states.is_joint(describe_stream(build_stream(args)))
    order = replace(args, class_order="class_0,class_1,class_2,class_3")  # the same one in other words
    assert not states.is_joint(describe_stream(build_stream(order)))
    renamed(folder)
    with pytest.raises(ValueError, match="another stream .other train and test images"):
        states.is_joint(describe_stream(build_stream(args)))


def test_a_teacher_that_kept_no_digests_serves_with_a_warning(folder, model, tmp_path):
    stream = build_stream(StreamArguments(str(folder), num_tasks=2))
    states = TaskCheckpoints(tmp_path / "run", "teacher")
    about = describe(model, stream, CDLConfig(), image_processor_for({}))
    del about["stream"]["images"]
    for task in range(2):
        states.save(task, model, [(1, 2)], about)
    with pytest.warns(UserWarning, match="could not be compared"):
        assert not states.is_joint(describe_stream(stream))


def test_the_commit_is_that_of_a_checkout_only_and_of_the_beginning(tmp_path, monkeypatch):
    assert versions()["commit"] == code_commit()
    monkeypatch.setattr(utils, "code_commit", lambda: "of files that changed while a run was at work")
    assert versions()["commit"] == code_commit()
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "__init__.py").touch()
    assert code_commit(tmp_path / "site-packages") is None
