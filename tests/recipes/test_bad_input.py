"""Mistakes on the real command line: one sentence says what is wrong, where and what to do; no file is touched."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cdl_hf.runs.lock import RunLock
from cdl_hf.training import trainer

ROOT = Path(__file__).parents[2]
TINY = "vit_tiny_patch16_224"


class Trap:
    """Fails the test when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code of a file was run",))


class Workshop:
    """Makes what is given to the command line by mistake; each method returns the arguments.

    Args:
        folder: An empty one.
        drawings, teacher: A sound data set and a sound backbone, of which copies are damaged.
    """

    def __init__(self, folder: Path, drawings: Path, teacher: Path):
        self.folder, self.drawings, self.teacher = folder, drawings, teacher

    def yaml(self, text: str) -> list:
        (self.folder / "my.yaml").write_text(text, encoding="utf-8")
        return ["--config", self.folder / "my.yaml"]

    def images(self, damage: Callable[[Path], object]) -> list:
        copy = shutil.copytree(self.drawings, self.folder / "images")
        damage(copy)
        return ["--dataset", copy]

    def dataset(self, name: str, content: bytes) -> list:
        (self.folder / name).write_bytes(content)
        return ["--dataset", self.folder / name]

    def weights(self, name: str, content: bytes) -> list:
        (self.folder / name).write_bytes(content)
        return ["--teacher", TINY, "--teacher_weights", self.folder / name]

    def pickle(self, content: object, cut: int | None = None) -> list:
        torch.save(content, self.folder / "saved.pth")
        return self.weights("weights.pth", (self.folder / "saved.pth").read_bytes()[:cut])

    def teachers(self, cut: int | None = None) -> list:
        """The teacher's weights, given for another architecture."""
        return self.weights("weights.safetensors", (self.teacher / "model.safetensors").read_bytes()[:cut])

    def backbone(self, name: str, content: bytes | None) -> list:
        """A backbone's folder in which a file has another content, or is missing."""
        copy = shutil.copytree(self.teacher, self.folder / "backbone")
        (copy / name).unlink()
        if content is not None:
            (copy / name).write_bytes(content)
        return ["--teacher", copy]

    def empty_folder(self, argument: str) -> list:
        (self.folder / "empty").mkdir()
        return [argument, self.folder / "empty"]


# What the mistake is, how it is made, and words of the message.
CASES: list[tuple[str, list | Callable[[Workshop], list], tuple[str, ...]]] = [
    # The form of arguments
    ("unknown argument", ["--learnin_rate", "1"], ("--learnin_rate", "did you mean --learning_rate?")),
    ("unknown key", lambda w: w.yaml("seed: 1\nlearnin_rate: 1"), ("learnin_rate", "my.yaml, line 2")),
    ("wrong type", ["--num_train_epochs", "many"], ("--num_train_epochs", "a whole number", "'many'")),
    ("wrong type in YAML", lambda w: w.yaml("num_train_epochs: two"), ("num_train_epochs", "line 1", "'two'")),
    ("nested YAML", lambda w: w.yaml("seed: {a: 1}"), ("seed", "line 1", "nested")),
    ("key twice in YAML", lambda w: w.yaml("seed: 1\nseed: 2"), ("seed is set twice", "line 2")),
    ("no YAML", lambda w: w.yaml("seed: [1"), ("my.yaml", "not valid YAML")),
    ("no YAML file", ["--config", "/nowhere.yaml"], ("/nowhere.yaml", "No such file")),
    ("two values for one", ["--num_tasks", "3", "4"], ("--num_tasks takes one value", "3 4")),
    ("not a number", ["--learning_rate", "nan"], ("--learning_rate", "finite")),
    ("infinite", ["--learning_rate", "inf"], ("--learning_rate", "finite")),
    ("negative", ["--learning_rate", "-1"], ("--learning_rate", "at least 0")),
    ("above its range", ["--kd_alpha", "1.5"], ("--kd_alpha", "from 0 to 1")),
    ("no choice", ["--prompt_method", "l3p"], ("--prompt_method", "l2p", "did you mean")),
    ("no distillation method", ["--distillation", "kpd"], ("--distillation", "kdp")),
    ("range turned round", ["--crop_scale", "0.9", "0.1"], ("crop_scale", "low <= high")),
    ("batch in unequal parts", ["--batch_size", "5", "--gradient_accumulation_steps", "2"], ("multiple",)),
    ("overwrite and resume", ["--overwrite_output_dir", "--resume_from_checkpoint"], ("contradict", "choose one")),
    ("nothing to resume", ["--resume_from_checkpoint"], ("nothing to resume",)),
    # The data
    ("unknown data set", ["--dataset", "quikdraw100"], ("quikdraw100", "quickdraw100")),
    ("data set not on the Hub", ["--dataset", "nobody/nothing"], ("nobody/nothing", "local copy")),
    ("empty folder", lambda w: w.empty_folder("--dataset"), ("empty", "<class>/<image file>")),
    ("truncated Parquet", lambda w: w.dataset("cut.parquet", b"PAR1 and no more"), ("cut.parquet", "damaged")),
    ("archive", lambda w: w.dataset("images.zip", b"PK"), ("images.zip", "extract")),
    ("unknown image column", ["--image_column", "picture"], ("picture", "its columns are image, label")),
    ("unknown label column", ["--label_column", "kind"], ("kind", "its columns are image, label")),
    ("broken image", lambda w: w.images(lambda d: (d / "train/class_3/0.png").write_bytes(b"")), ("class_3/0.png",)),
    ("no test images", lambda w: w.images(lambda d: shutil.rmtree(d / "test/class_3")), ("test", "class_3")),
    ("list for divided data", ["--split_file", "/nowhere.yaml"], ("test split of its own", "do not pass split_file")),
    ("more tasks than classes", ["--num_tasks", "7"], ("6 classes", "7 tasks")),
    ("tasks of two sizes", ["--classes_per_task", "4"], ("classes_per_task=4", "not 3")),
    ("first task too large", ["--first_task_classes", "7"], ("first_task_classes must be from 1", "1 to 6")),
    ("order of unknown classes", ["--class_order", "cat,dog"], ("cat, dog", "not in the data")),
    ("order of some classes", ["--class_order", "0,1"], ("each of the 6 classes once", "2 entries")),
    # Backbones and their weights
    ("unknown backbone", ["--teacher", "vit_tinny"], ("vit_tinny", "no such folder")),
    ("backbone without tag", ["--teacher", "vit_base_patch16_224"], ("does not name pretrained weights", "augreg")),
    ("prompts for a CNN", ["--teacher", "resnet18"], ("does not name pretrained weights", "resnet18.")),
    ("backbone not on the Hub", ["--teacher", "hf_hub:nobody/nothing"], ("nobody/nothing", "Hub")),
    ("no backbone's folder", lambda w: w.empty_folder("--teacher"), ("no config.json", "cdl-hf pretrain")),
    ("damaged configuration", lambda w: w.backbone("config.json", b"{"), ("config.json", "damaged")),
    ("another configuration", lambda w: w.backbone("config.json", b"{}"), ("config.json", "architecture")),
    ("folder without weights", lambda w: w.backbone("model.safetensors", None), ("model.safetensors", "not exist")),
    ("folder, cut weights", lambda w: w.backbone("model.safetensors", b"1234"), ("model.safetensors", "damaged")),
    ("no weights file", ["--teacher", TINY, "--teacher_weights", "/nowhere.pth"], ("/nowhere.pth", "not exist")),
    ("weights for a folder", ["--teacher_weights", "/nowhere.pth"], ("its own weights", "do not pass weights")),
    ("truncated weights", lambda w: w.teachers(cut=-100), ("weights.safetensors", "damaged")),
    (
        "truncated pickle",
        lambda w: w.pickle({"cls_token": torch.zeros(999)}, cut=-100),
        ("weights.pth", "damaged"),
    ),
    ("text as weights", lambda w: w.weights("weights.pth", b"hello"), ("weights.pth", "cannot be read as weights")),
    ("other architecture", lambda w: w.teachers(), ("weights.safetensors", "another architecture", "cls_token")),
    ("other content", lambda w: w.pickle({"epoch": 3}), ("weights.pth", "150 of 150 tensors are missing")),
    (
        "pickle with code",
        lambda w: w.pickle({"cls_token": Trap()}),
        ("weights.pth", "code", "not run", ".safetensors"),
    ),
    ("image not of patches", ["--image_size", "17"], ("17 pixels", "patches of 8", "multiple")),
    # Prompts and distillation
    ("pool not for all tasks", ["--pool_size", "7"], ("pool_size", "multiple of the number of tasks")),
    ("pool wider than query", ["--pool_size", "18"], ("18 components", "pool_size to at most 15")),
    ("odd prompt", ["--prompt_length", "5"], ("prompt_length", "even")),
    ("block that is not there", ["--prompt_blocks", "0", "9"], ("9", "blocks 0 to 5")),
    ("block twice", ["--prompt_blocks", "0", "0"], ("prompt_blocks names a block twice",)),
    ("KD blocks beyond the depth", ["--kd_prompt_blocks", "9"], ("kd_prompt_blocks is 9", "6 blocks")),
    ("odd KD prompt", ["--kd_prompt_length", "5"], ("kd_prompt_length", "even")),
    ("more selected than there are", ["--prompt_method", "l2p", "--top_k", "9"], ("top_k", "pool_size (6)")),
    ("block of both", ["--prompt_method", "dualprompt", "--g_prompt_blocks", "2"], ("g_prompt_blocks", "[2]")),
    ("methods that do not fit", ["--prompt_method", "apt", "--distillation", "cdl_prompt"], ("cdl_prompt", "APT")),
    ("queries that do not fit", ["--distillation", "cdl_prompt", "--query", "own"], ("CDL-Prompt", "query")),
    ("student without its teacher", ["--stages", "student"], ("kdp needs a teacher", "teacher_run")),
    ("distillation without training", ["--num_train_epochs", "0"], ("num_train_epochs=0", "KDP cannot distil")),
    (
        "heads without training",
        ["--num_train_epochs", "0", "--distillation", "none"],
        ("num_train_epochs=0", "classifier=ncm"),
    ),
    ("teacher from nowhere", ["--stages", "student", "--teacher_run", "/nowhere"], ("/nowhere", "task 1")),
    # What is not installed, and where nothing can be written
    ("tracker not installed", ["--report_to", "aim"], ("aim", "pip install")),
    ("folder that cannot be", ["--output_dir", "/proc/run"], ("/proc/run", "cannot be written to")),
    ("name too long", ["--output_dir", "x" * 300], ("xxx", "too long")),
]


@pytest.mark.parametrize(("mistake", "told"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_mistakes_are_told_in_one_sentence(train, command, pair, drawings, tmp_path, capsys, mistake, told):
    arguments = mistake if isinstance(mistake, list) else mistake(Workshop(tmp_path, drawings, pair[0]))
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train(*command, "--output_dir", tmp_path / "run", *arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    _, told_once, message = printed.partition("train.py: error: ")  # libraries may have logged something before
    assert told_once and "Traceback" not in message and len(message) < 1000
    assert [words for words in told if words not in message] == []
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_are_enough_cases():
    assert len({case[0] for case in CASES}) == len(CASES) >= 40


def test_output_folder_with_something_in_it_is_left_alone(train, command, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for arguments, told in (
        ([], "--overwrite_output_dir"),
        (["--overwrite_output_dir"], "thesis.tex"),
        (["--resume_from_checkpoint"], "nothing to resume"),
    ):
        with pytest.raises(SystemExit):
            train(*command, "--output_dir", folder, *arguments)
        assert told in capsys.readouterr().err
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_output_folder_that_is_a_file(train, command, tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    for folder, told in ((tmp_path / "run", "is a file"), (tmp_path / "run" / "within", "cannot be written to")):
        with pytest.raises(SystemExit):
            train(*command, "--output_dir", folder)
        assert told in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "mine"


def test_two_e_minus_three_is_a_number_in_yaml_too(train, command, tmp_path, capsys):
    """PyYAML alone would read a text."""
    (tmp_path / "my.yaml").write_text("alpha: 2e-3\nlearning_rate: 2e3x")
    with pytest.raises(SystemExit):
        train(*command, "--config", tmp_path / "my.yaml")
    assert "learning_rate" in (message := capsys.readouterr().err) and "alpha" not in message


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", disk], check=True)


def test_disk_that_is_read_only(train, command, small_disk, capsys, monkeypatch):
    """From the start, which is a mistake, or from the first checkpoint on: it and the files before it are left."""
    command, run = [*command, "--num_train_epochs", "1", "--output_dir", small_disk / "run"], small_disk / "run"
    (small_disk / "mine").write_text("kept")
    remount(small_disk, "ro")
    with pytest.raises(SystemExit) as stop:
        train(*command)
    assert stop.value.code == 2 and "cannot be written to: Read-only file system" in capsys.readouterr().err
    assert contents(small_disk) == {str(small_disk / "mine"): b"kept"}

    remount(small_disk, "rw,size=50m")
    save = trainer.save_checkpoint

    def save_the_last(*args):
        save(*args)
        remount(small_disk, "ro")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", save_the_last)
        # No disk is mounted anew while a file on it is open for writing, as the lock is; one that fails turns so.
        patch.setattr(RunLock, "acquire", lambda self, patience=0.0: None)
        with pytest.raises(SystemExit) as stop:
            train(*command)
    message = capsys.readouterr().err
    assert stop.value.code == 1 and "Stopped: " in message and "Read-only file system" in message
    assert "--resume_from_checkpoint" in message and len(list((run / "checkpoints").iterdir())) == 1
    remount(small_disk, "rw")
    train(*command, "--resume_from_checkpoint")
    assert "Resuming in task 1, student." in capsys.readouterr().out and (run / "results.json").exists()


@pytest.mark.slow
def test_disk_that_gets_full_during_training(command, small_disk):
    """As a user's own process: it keeps the last checkpoint that fits, and ends when there is room."""

    def run(*more: str) -> subprocess.CompletedProcess:
        arguments = [*command, "--num_train_epochs", "1", "--output_dir", str(small_disk / "run"), *more]
        recipe = [sys.executable, ROOT / "recipes" / "train.py", *arguments]
        return subprocess.run(recipe, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    filler = small_disk / "filler"
    filler.write_bytes(bytes(int(700e3)))
    done = run()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "Stopped: " in done.stderr
        and "No space left on device" in done.stderr
        and "--resume_from_checkpoint" in done.stderr
    )
    filler.unlink()
    remount(small_disk, "size=50m")
    done = run("--resume_from_checkpoint")
    assert done.returncode == 0, done.stderr
    assert "Resuming in task" in done.stdout and (small_disk / "run" / "results.json").exists()
