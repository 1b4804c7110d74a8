"""--dry_run tells what a run would be, offline and without weights."""

import re
import shutil

import PIL.Image
import pytest

from cdl_hf.presets import preset_names

PRESETS = [name for name in preset_names() if not name.startswith("quickdraw100/")]


@pytest.fixture
def told(train, tmp_path, monkeypatch, capsys):
    """What a dry run prints; it leaves nothing behind."""

    def dry_run(*arguments):
        monkeypatch.chdir(tmp_path)
        train("--dry_run", *arguments)
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().out

    return dry_run


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_come_to_the_download(train, preset, capsys):
    with pytest.raises(SystemExit) as stop:
        train("--dry_run", "--config", preset)
    message = capsys.readouterr().err
    local = {"cifar100": "path/to/cifar-100-python", "imagenet_r": "path/to/imagenet-r"}[preset.split("/")[0]]
    assert stop.value.code == 2 and message.count("\n") == 1
    assert "the Hub cannot be reached" in message and f"--dataset {local}" in message


def test_a_preset_on_local_images_needs_no_weights(told, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for label in range(10):
        for name, count in (("train", 3), ("test", 1)):
            (folder / name / f"class_{label}").mkdir(parents=True)
            for number in range(count):
                PIL.Image.new("L", (8, 8), 20 * label).save(folder / name / f"class_{label}" / f"{number}.png")
    out = told("--config", "cifar100/base_to_tiny", "--dataset", folder, "--batch_size", "2")
    # a ViT-B of 85.8 million parameters and the ViT-T of 5.5 that makes its queries; CODA-Prompt's pool
    pool = 5 * 100 * (8 * 768 + 2 * 192)
    assert f"{85_798_656 + 5_524_416 + pool + 10 * 769:,} parameters, {pool + 10 * 769:,} of them trained" in out
    assert "10 classes in natural order, 10 tasks of 1" in out and "30 train" in out
    # a step for each task's 3 images, 20 epochs; a test image more at each of 10 evaluations
    assert "200 of 2 images" in out and "55 test images in 10 evaluations" in out
    assert "224x224, pixels in [0, 1]" in out


def test_each_stage_has_its_memory(told, command):
    online = ["--num_train_epochs", "1", "--eval_steps", "2"]
    alone = told(*command, *online, "--stages", "student", "--distillation", "none")
    # at two points of each task, all of whose classes have been seen
    assert "48 test images in 3 evaluations, and 96 while training" in alone
    assert "training the student" in alone and "evaluating" in alone and "training the teacher" not in alone
    assert "training the teacher and the student" in told(*command, "--schedule", "same_step")


def test_memory_follows_the_part_of_a_batch(told, command):
    half, other = (
        re.search(r"training the teacher (.+?), ", told(*command, *more))[1]
        for more in (("--batch_size", "2"), ("--gradient_accumulation_steps", "2"))
    )
    assert half == other


def test_mistakes_are_found(train, command, capsys):
    with pytest.raises(SystemExit):
        train("--dry_run", *command, "--pool_size", "7")
    assert "multiple of the number of tasks" in capsys.readouterr().err


def test_a_given_teacher_must_be_there(train, told, command, finished_run, tmp_path_factory, capsys):
    command = [*command, "--stages", "student", "--teacher_run"]
    assert "for the student" in told(*command, finished_run)
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("damaged") / "run")
    last = run / "states" / "teacher" / "task_002.safetensors"
    last.write_bytes(last.read_bytes()[:-10])
    for arguments, mistake in (
        ([run], "task_002.safetensors of teacher_run is damaged"),
        ([finished_run, "--num_tasks", "2"], "another stream"),
        ([run / "teacher"], "task_000.safetensors is missing"),
    ):
        with pytest.raises(SystemExit):
            train("--dry_run", *command, *arguments)
        assert mistake in capsys.readouterr().err
