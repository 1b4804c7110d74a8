"""Runs of the real command line on tiny models."""

import itertools
import json
import math
import os
import shutil
import signal
import sys

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import assert_same_run, metrics_without_times, results_without_times
from transformers import AutoImageProcessor, AutoModelForImageClassification

import cdl_hf.training.trainer as trainer_module
from cdl_hf import ContinualDistillationTrainer
from cdl_hf.arguments.config import DistillationArguments, ModelArguments
from cdl_hf.arguments.stream import StreamArguments
from cdl_hf.data import loaders
from cdl_hf.evaluation import evaluator
from cdl_hf.models import PromptViTForImageClassification
from cdl_hf.runs import distributed
from cdl_hf.runs.checkpointing import save_checkpoint
from cdl_hf.training import CDLConfig
from cdl_hf.training.build import build_models, build_stream
from cdl_hf.training.stage import Epoch


class Killed(BaseException):
    """What stops a run in these tests: nothing may catch it."""


@pytest.fixture
def kill_after_checkpoint(monkeypatch):
    """Lets a run die right after it has written its n-th checkpoint (0: never)."""

    def arm(number: int) -> None:
        written = itertools.count(1)

        def save_and_die(*args):
            save_checkpoint(*args)
            if next(written) == number:
                raise Killed

        monkeypatch.setattr(trainer_module, "save_checkpoint", save_and_die)

    return arm


def test_a_run_from_python_leaves_what_the_command_line_leaves(
    finished_run, command, pair, drawings, tmp_path, monkeypatch
):
    """The same files with the same content: arguments, metrics, results, states, pictures, models and cards."""
    stream_args = StreamArguments(dataset=str(drawings), num_tasks=3)
    model_args = ModelArguments(teacher=str(pair[0]), student=str(pair[1]), pool_size=6, ranpac_width=24)
    args = CDLConfig(num_train_epochs=2, batch_size=4, learning_rate=0.01, output_dir=str(tmp_path / "other"))
    stream = build_stream(stream_args)
    made = build_models(stream, model_args, DistillationArguments(analytic_width=16), args)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, command), "--output_dir", str(tmp_path / "other")])
    results = ContinualDistillationTrainer(stream, made.objective, made.image_processor, args, callbacks=()).train()

    one, other = finished_run, tmp_path / "other"
    files = [{path.relative_to(run) for path in run.rglob("*") if path.is_file()} for run in (one, other)]
    assert files[0] == files[1]
    assert_same_run(one, other)
    assert results == json.loads((other / "results.json").read_text())
    ours, theirs = (yaml.safe_load((run / "args.yaml").read_text()) for run in (one, other))
    told = {"output_dir", "image_size", "teacher", "student", "pool_size", "prompt_length", "prompt_blocks"}
    told |= {"temperature", "kd_prompt_blocks"}  # as resolved
    assert {name for name in ours if ours[name] != theirs[name]} <= told
    cards = [(run / "student" / "README.md").read_text() for run in (one, other)]
    assert len(cards[0].splitlines()) == len(cards[1].splitlines()) and "kdp" in cards[1]


@pytest.mark.parametrize("prompt_method", ["l2p", "dualprompt", "coda_prompt", "apt", "lora"])
def test_run_leaves_results_pictures_and_models(train, command, tmp_path, prompt_method, capsys):
    train(*command, "--prompt_method", prompt_method, "--output_dir", tmp_path / "run")

    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["stream"]["num_tasks"] == 3
    for role in ("teacher", "student"):
        rows = results[role]["accuracy_matrix"]
        assert [len(row) for row in rows] == [1, 2, 3]
        assert results[role]["average_accuracy"] == pytest.approx(sum(rows[-1]) / 3)
        assert set(results[role]["forgetting"]) == {"cdl", "max", "bwt", "coda"}
        assert 0 < results[role]["trainable_parameters"] < results[role]["parameters"]
    assert results["versions"]["timm"] == timm.__version__
    for name in ("args.yaml", "args_given.json", "accuracy.png", "matrices.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    lines = metrics_without_times(tmp_path / "run")
    assert [line["event"] for line in lines] == (["epoch"] * 4 + ["evaluation"]) * 3
    assert all(math.isfinite(line["loss"]) for line in lines if line["event"] == "epoch")
    assert "final accuracy A_N" in capsys.readouterr().out

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "student")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "student")
    assert processor.crop_size["height"] == 16
    assert list(model.config.id2label.values()) == [f"class_{i}" for i in range(6)]
    assert model.config.tasks_seen == 3


def test_loaded_models_reach_the_accuracy_of_results(finished_run, drawings):
    from cdl_hf.data import load_image_dataset

    results = json.loads((finished_run / "results.json").read_text())
    test = load_image_dataset(str(drawings))["test"]
    for role in ("teacher", "student"):
        model = PromptViTForImageClassification.from_pretrained(finished_run / role)
        processor = AutoImageProcessor.from_pretrained(finished_run / role)
        with torch.inference_mode():
            predicted = model(**processor(test["image"][:], return_tensors="pt")).logits.argmax(1)
        accuracy = 100 * (predicted == torch.tensor(test["label"][:])).double().mean().item()
        assert accuracy == pytest.approx(results[role]["average_accuracy_by_image"])


def test_same_seed_same_run_other_seed_another(train, command, tmp_path, finished_run):
    train(*command, "--seed", 0, "--output_dir", tmp_path / "same")
    assert_same_run(tmp_path / "same", finished_run)
    train(*command, "--seed", 2, "--output_dir", tmp_path / "other")
    assert metrics_without_times(tmp_path / "other") != metrics_without_times(finished_run)


@pytest.mark.parametrize(
    ("extra", "checkpoints"),
    [
        ([], (1, 8, 11)),
        (["--classifier_alignment", "--drift_compensation"], (11, 14)),
        (["--classifier", "ranpac", "--ranpac_width", "24"], (11,)),
        (
            ["--prompt_method", "none", "--distillation", "none", "--classifier", "ncm", "--num_train_epochs", "0"],
            (3,),
        ),
    ],
    ids=["linear", "aligned and carried along", "ranpac", "nothing trained"],
)
def test_killed_runs_resume_to_the_same_end(
    train, command, tmp_path, finished_run, kill_after_checkpoint, extra, checkpoints
):
    """Checkpoints every 2 steps and after each stage: 1 in a teacher's stage, 8 before an evaluation, 11 in one."""
    whole = tmp_path / "whole" if extra else finished_run  # which has saved fewer checkpoints
    command = [*command, "--save_steps", "2", *extra]
    if extra:
        train(*command, "--output_dir", whole)
    for checkpoint in checkpoints:
        kill_after_checkpoint(checkpoint)
        with pytest.raises(Killed):
            train(*command, "--output_dir", tmp_path / "killed", "--overwrite_output_dir")
        kill_after_checkpoint(0)
        train(*command, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint")
        assert_same_run(whole, tmp_path / "killed")


def test_signal_saves_within_the_step_and_the_run_goes_on(train, command, tmp_path, finished_run, monkeypatch):
    show = Epoch._show

    def interrupt(epoch):  # between two steps of the second task's teacher
        if epoch.stage.settings.name.startswith("task 2/3 teacher"):
            signal.raise_signal(signal.SIGTERM)
        show(epoch)

    monkeypatch.setattr(Epoch, "_show", interrupt)
    with pytest.raises(SystemExit) as stop:
        train(*command, "--output_dir", tmp_path / "stopped")
    assert stop.value.code == os.EX_TEMPFAIL
    assert not (tmp_path / "stopped" / "results.json").exists()
    monkeypatch.setattr(Epoch, "_show", show)
    train(*command, "--output_dir", tmp_path / "stopped", "--resume_from_checkpoint")
    assert_same_run(finished_run, tmp_path / "stopped")


def test_tensorboard_shows_a_resumed_run_once(train, command, tmp_path, kill_after_checkpoint):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    command = [*command, "--num_train_epochs", "1", "--report_to", "tensorboard", "--output_dir", tmp_path / "run"]
    kill_after_checkpoint(4)  # after the first stage of the second task; its student then is not logged yet
    with pytest.raises(Killed):
        train(*command)
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    shutil.rmtree(checkpoints[-1])  # from the end of the first task, then
    kill_after_checkpoint(0)
    train(*command, "--resume_from_checkpoint")
    events = accumulator(str(tmp_path / "run" / "logs" / "cdl_hf")).Reload()
    shown = {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert shown["teacher/loss"] == [3, 9, 15] and shown["student/loss"] == [6, 12, 18]
    assert shown["teacher/average_accuracy"] == shown["student/average_accuracy"] == [6, 12, 18]
    assert (next((tmp_path / "run" / "logs").rglob("hparams.yml"))).read_text().count("learning_rate: 0.01") == 1


def test_resume_lists_what_differs_and_refuses_what_decides(train, command, tmp_path, capsys):
    train(*command, "--output_dir", tmp_path / "run")
    before = results_without_times(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        train(
            *command,
            "--output_dir",
            tmp_path / "run",
            "--resume_from_checkpoint",
            "--learning_rate",
            "0.02",
            "--seed",
            "3",
        )
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "learning_rate was 0.01, is now 0.02; seed was 0, is now 3" in message and "eval_batch_size" not in message

    further = ("--eval_batch_size", "5", "--save_steps", "7", "--gradient_accumulation_steps", "2")
    train(*command, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", *further)
    told = capsys.readouterr().out
    assert "without effect on the result: save_steps was 1000, is now 7." in told
    changed = "rounding of the result: eval_batch_size was 128, is now 5; gradient_accumulation_steps was 1, is now 2."
    assert changed in told
    after = results_without_times(tmp_path / "run")
    assert before.pop("gradient_accumulation_steps") and after.pop("gradient_accumulation_steps")
    assert before == after


def test_checkpoints_of_another_run_are_refused(train, command, tmp_path, capsys):
    train(*command, "--num_train_epochs", "1", "--output_dir", tmp_path / "run")
    train(
        *command,
        "--num_train_epochs",
        "1",
        "--stream_seed",
        "5",
        "--class_order",
        "seeded",
        "--output_dir",
        tmp_path / "b",
    )
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json*")}
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "b" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(SystemExit) as stop:
        train(*command, "--num_train_epochs", "1", "--output_dir", tmp_path / "run", "--resume_from_checkpoint")
    message = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "stream_seed was 5, is now 0" in message and "class_names was" in message
    assert all(path.read_bytes() == content for path, content in files.items())


def test_checkpoints_do_not_grow_with_the_tasks_finished(train, command, tmp_path, monkeypatch):
    """Beyond names of classes and counts: what is learnt has its full size from the start."""
    sizes = []

    def measure(*args):
        path = save_checkpoint(*args)
        sizes.append((path / "state.pt").stat().st_size)

    monkeypatch.setattr(trainer_module, "save_checkpoint", measure)
    train(*command, "--num_train_epochs", "1", "--output_dir", tmp_path / "run")
    assert len(sizes) == 9 and max(sizes) - min(sizes) < 0.02 * min(sizes)


def test_one_teacher_serves_further_students(train, command, tmp_path):
    train(*command, "--distillation", "kd", "--output_dir", tmp_path / "both")
    train(
        *(*command, "--distillation", "kd", "--stages", "student"),
        *("--teacher_run", tmp_path / "both", "--output_dir", tmp_path / "student"),
    )
    one, other = (results_without_times(tmp_path / name) for name in ("both", "student"))
    assert one.pop("baseline").keys() == {"chance", "frozen_ranpac", "frozen_analytic"}  # of a run that trains both
    assert one == other
    ours, theirs = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("both", "student"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_student_learns_from_heads_as_they_were_trained_alone(train, command, tmp_path, capsys):
    """Aligned heads are other ones; cached logits are those of the training."""
    aligned = (*command, "--classifier_alignment", "--num_train_epochs", "1")
    train(*aligned, "--stages", "teacher", "--output_dir", tmp_path / "plain")
    further = ("--stages", "student", "--teacher_run", tmp_path / "plain")
    with pytest.raises(SystemExit):
        train(*aligned, *further, "--distillation", "kd", "--output_dir", tmp_path / "refused")
    assert "a student learns from heads as they were trained" in capsys.readouterr().err
    train(*aligned, "--distillation", "kd", "--cache_teacher_outputs", "--output_dir", tmp_path / "both")
    further = ("--stages", "student", "--teacher_run", tmp_path / "both")
    train(*aligned, *further, "--distillation", "kd", "--output_dir", tmp_path / "student")
    one, other = (results_without_times(tmp_path / name)["student"] for name in ("both", "student"))
    assert one == other
    with pytest.raises(SystemExit):
        train(*aligned, *further, "--distillation", "fitnets", "--output_dir", tmp_path / "refused")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("--prompt_blocks", "1"), "prompt_blocks was [0], is now [1]"),
        (("--top_k", "2"), "top_k was 3, is now 2"),
        (("--normalization", "none"), "prepared otherwise (do_normalize)"),
    ],
)
def test_a_teacher_that_would_predict_otherwise_is_refused(train, command, tmp_path, capsys, changed, told):
    command = (*command, "--prompt_method", "l2p", "--num_train_epochs", "1")
    given = {"--prompt_blocks": "0", "--top_k": "3", "--normalization": "backbone"}
    train(*command, *itertools.chain(*given.items()), "--stages", "teacher", "--output_dir", tmp_path / "teacher")
    given |= dict([changed])
    further = ("--stages", "student", "--teacher_run", tmp_path / "teacher", "--output_dir", tmp_path / "student")
    with pytest.raises(SystemExit):
        train(*command, *itertools.chain(*given.items()), *further)
    assert told in capsys.readouterr().err


def test_a_resumed_run_goes_on_with_its_loss_scale_and_its_time(train, command, tmp_path, monkeypatch):
    """As on a GPU in fp16; here with the scaler of a CPU."""
    made, build = [], distributed.build_accelerator

    def scaled(*args):
        accelerator = build(*args)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        made.append(accelerator)
        return accelerator

    monkeypatch.setattr(distributed, "build_accelerator", scaled)
    train(*command, "--output_dir", tmp_path / "whole")
    save, saved = trainer_module.save_checkpoint, []

    def stopped(*args):
        save(*args)
        saved.append(args[2])
        if len(saved) == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "save_checkpoint", stopped)
        with pytest.raises(Killed):
            train(*command, "--save_steps", "1", "--output_dir", tmp_path / "parts")
    assert saved[-1]["state"] is not None and saved[-1]["seconds"]["teacher"] > 0  # within a stage
    train("--output_dir", tmp_path / "parts", "--resume_from_checkpoint")
    whole, parts = made[0].scaler.state_dict(), made[-1].scaler.state_dict()
    assert whole == parts and whole["scale"] > 4


def test_student_alone(train, command, tmp_path):
    train(*command, "--distillation", "none", "--stages", "student", "--output_dir", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "student" in results and "teacher" not in results
    assert not (tmp_path / "run" / "teacher").exists()


def test_accumulated_batch_gives_the_same_losses(train, command, tmp_path):
    train(*command, "--output_dir", tmp_path / "whole")
    train(*command, "--gradient_accumulation_steps", "2", "--output_dir", tmp_path / "parts")
    for one, other in zip(*(metrics_without_times(tmp_path / name) for name in ("whole", "parts")), strict=True):
        if one["event"] == "epoch":
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_one_loader_serves_the_evaluations_after_all_tasks(train, command, tmp_path, monkeypatch):
    made = []

    def counting(accelerator, tasks, *options):
        made.append(len(tasks))
        return loaders.TaskLoader(accelerator, tasks, *options)

    monkeypatch.setattr(evaluator, "TaskLoader", counting)
    train(*command, "--num_train_epochs", "1", "--output_dir", tmp_path)
    assert made == [3, 3]  # one for the run, one for its baselines


def test_same_step_trains_both_on_every_batch(train, command, tmp_path):
    train(*command, "--schedule", "same_step", "--distillation", "cdl_prompt", "--output_dir", tmp_path / "run")
    lines = metrics_without_times(tmp_path / "run")
    assert [line.get("stage") for line in lines][:5] == ["teacher", "student", "teacher", "student", None]
    # the teacher learns what it learns in a stage of its own
    train(*command, "--stages", "teacher", "--output_dir", tmp_path / "alone")
    alone = metrics_without_times(tmp_path / "alone")
    assert [line for line in lines if line.get("stage") == "teacher"] == [line for line in alone if "stage" in line]


def test_apts_teacher_may_be_merged_after_the_student(train, command, tmp_path):
    """In the first task the authors' student then learns from a teacher whose merged prompts are still zero."""
    for order in ("own_stage", "after_student"):
        arguments = ("--prompt_method", "apt", "--teacher_merge", order, "--output_dir", tmp_path / order)
        train(*command, *arguments)
    lines = {order: metrics_without_times(tmp_path / order) for order in ("own_stage", "after_student")}
    assert lines["own_stage"][0] == lines["after_student"][0]  # the teacher's first epoch
    assert lines["own_stage"][2]["soft_loss"] != lines["after_student"][2]["soft_loss"]
    ours, authors = (load_file(tmp_path / order / "teacher" / "model.safetensors") for order in lines)
    assert all(torch.equal(ours[name], authors[name]) for name in ours)


def test_task_smaller_than_the_batch_trains(train, command, tmp_path):
    train(*command, "--batch_size", "64", "--output_dir", tmp_path / "run")
    assert [line["event"] for line in metrics_without_times(tmp_path / "run")][:2] == ["epoch", "epoch"]


def test_validation_images_replace_the_test_images(train, command, tmp_path):
    train(*command, "--validation_fraction", "0.3", "--output_dir", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["tested_on"] == "validation" and sum(results["stream"]["validation"]) > 0


def test_images_are_resized_as_asked(train, command, tmp_path):
    train(*command, "--dry_run")  # the backbone's own
    train(
        *command,
        "--stages",
        "teacher",
        "--interpolation",
        "bilinear",
        "--num_train_epochs",
        "1",
        "--output_dir",
        tmp_path,
    )
    assert AutoImageProcessor.from_pretrained(tmp_path / "teacher").resample == 2


def test_only_apts_saved_teacher_cannot_be_merged_later(train, command, tmp_path, capsys):
    given = ("--stages", "student", "--teacher_run", tmp_path, "--teacher_merge", "after_student", "--dry_run")
    with pytest.raises(SystemExit):
        train(*command, *given, "--prompt_method", "apt")
    assert "take teacher_merge=own_stage" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train(*command, *given, "--prompt_method", "l2p")
    assert "has no teacher of task 1" in capsys.readouterr().err


def test_resume_takes_what_moved_and_refuses_what_changed(train, pair, drawings, tmp_path, capsys, monkeypatch):
    """A run's data and backbones, named in another way and moved; then its images are exchanged between the splits."""
    shutil.copytree(drawings, tmp_path / "data")
    for path, role in zip(pair, ("teacher", "student"), strict=True):
        shutil.copytree(path, tmp_path / role)
    monkeypatch.chdir(tmp_path)
    short = ("--stages", "student", "--distillation", "none", "--num_tasks", "2", "--num_train_epochs", "1")
    run = (*short, "--batch_size", "4", "--pool_size", "6", "--output_dir", tmp_path / "run")
    named = ("--dataset", tmp_path / "data", "--teacher", tmp_path / "teacher", "--student", tmp_path / "student")
    train(*named, *run)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["versions"].keys() >= {"python", "commit"}
    (tmp_path / "data").rename("elsewhere")
    (tmp_path / "student").rename("other_student")
    named = ("--dataset", "elsewhere/", "--teacher", "teacher", "--student", "other_student/")
    train(*named, *run, "--resume_from_checkpoint")
    assert "was finished" in capsys.readouterr().out
    one, other = (tmp_path / "elsewhere" / split / "class_3" / "0.png" for split in ("train", "test"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        train(*named, *run, "--resume_from_checkpoint")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "the training images of task 2 are others" in message
    assert "the test images of task 2 are others" in message
