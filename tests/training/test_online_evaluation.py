"""Models tested while they learn: where, on what, and the same after a crash."""

import itertools
import json

import numpy as np
import pytest
import torch

from cdl_hf import TaskStream
from cdl_hf.evaluation.evaluator import Evaluator
from cdl_hf.runs.checkpointing import load_newest_checkpoint, save_checkpoint
from cdl_hf.training import CDLConfig
from cdl_hf.training import trainer as trainer_module
from cdl_hf.training.online_evaluation import OnlineEvaluation, OnlinePoints
from cdl_hf.training.stage import Epoch


class Killed(BaseException):
    """Nothing may catch it."""


@pytest.fixture
def online(command):
    return [*command, "--num_train_epochs", "1", "--eval_steps", "2"]


def test_points_of_a_blurry_stream(stream_data):
    """Every 2 steps of 4 images and at the end of a task; a class is seen from its first image on."""
    stream = TaskStream(stream_data(6, 10), num_tasks=2, disjoint_class_ratio=0.5, blurry_sample_ratio=0.5, seed=1)
    args = CDLConfig(num_train_epochs=1, batch_size=4, eval_steps=2)
    points = OnlinePoints(stream, args)
    before = tested = 0
    for task, of_task in zip(stream, points.of_tasks, strict=True):
        steps = len(task.train) // 4
        assert list(of_task) == [*range(2, steps, 2), steps]
        assert [point.is_end for point in of_task.values()] == [False] * (len(of_task) - 1) + [True]
        assert [point.images for point in of_task.values()] == [before + 4 * step for step in of_task]
        before += 4 * steps
    last = points.of_tasks[-1]
    assert all(point.seen[points.class_order[: point.seen.sum()]].all() for point in last.values())
    for point in itertools.chain(*(each.values() for each in points.of_tasks)):
        tested += 3 * int(point.seen.sum())
    assert points.num_tested(np.repeat(np.arange(6), 3)) == tested
    first = points.of_tasks[0][2]
    assert first.seen.sum() < 6 and sorted(points.class_order) == list(range(6))


def test_a_run_tested_while_it_learns(train, online, tmp_path, monkeypatch, capsys):
    """The classes seen are those of the images shown, the model learns as without it, and a crash changes nothing."""
    online += ["--stages", "student", "--distillation", "none", "--prompt_method", "dualprompt"]
    shown, points, step, evaluate = [], [], Epoch._train, OnlineEvaluation._evaluate

    def note_images(epoch, batch, index):
        shown.extend(batch["labels"].tolist())
        step(epoch, batch, index)

    def note_point(self, trainer, task, roles, point):
        points.append((set(np.flatnonzero(point.seen)), set(shown), point.images, len(shown)))
        evaluate(self, trainer, task, roles, point)
        assert len(trainer.accelerator._dataloaders) <= 1  # that of the training, not one for each point
        assert point.is_end or trainer.learners["student"].objective.training

    with monkeypatch.context() as patch:
        patch.setattr(Epoch, "_train", note_images)
        patch.setattr(OnlineEvaluation, "_evaluate", note_point)
        train(*online, "--output_dir", tmp_path / "whole")
    assert all(seen == of_shown and images == count for seen, of_shown, images, count in points)
    results = json.loads((tmp_path / "whole" / "results.json").read_text())["student"]
    curve = results["online_accuracy"]
    assert [images for images, _ in curve] == [8, 12, 20, 24, 32, 36]  # 3 steps of 4 images in each task
    at_ends = [accuracy for _, accuracy in curve[1::2]]  # where all classes of the task have been seen
    assert at_ends == pytest.approx([np.mean(row) for row in results["accuracy_matrix"]])
    steps = np.diff([0, *(images for images, _ in curve)])
    assert results["a_auc"] == pytest.approx(np.average([accuracy for _, accuracy in curve], weights=steps))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    logged = [[line["images"], line["accuracy"]] for line in lines if line["event"] == "online_evaluation"]
    assert "--student_run" in (hint := capsys.readouterr().out) and "--eval_steps none" in hint  # for RanPAC
    assert logged == curve and (tmp_path / "whole" / "online.png").is_file()
    assert "Area under online accuracy, A_AUC (%)" in (tmp_path / "whole" / "student" / "README.md").read_text()

    train(
        *online[: online.index("--eval_steps")],
        *online[online.index("--stages") :],
        "--output_dir",
        tmp_path / "plain",
    )
    plain = json.loads((tmp_path / "plain" / "results.json").read_text())["student"]
    assert "a_auc" not in plain and plain["accuracy_matrix"] == results["accuracy_matrix"]
    assert not (tmp_path / "plain" / "online.png").exists()

    counts = itertools.count(1)

    def save_and_die(*args):
        save_checkpoint(*args)
        if next(counts) == 7:  # after the first two steps of the second task
            raise Killed

    command = [*online, "--save_steps", "1", "--output_dir", tmp_path / "killed"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer_module, "save_checkpoint", save_and_die)
        train(*command)
    checkpoint = load_newest_checkpoint(tmp_path / "killed" / "checkpoints")
    assert [images for images, *_ in checkpoint["online"]["student"]] == [8, 12, 20]
    train(*command, "--resume_from_checkpoint")
    killed = json.loads((tmp_path / "killed" / "results.json").read_text())["student"]
    assert killed == results


def test_an_error_says_when_it_was_tested(train, online, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        Evaluator, "_predict", lambda _, models, shares, pixels, query, in_task: torch.full((len(pixels), 1, 1), -1)
    )
    with pytest.raises(SystemExit):
        train(*online, "--stages", "student", "--distillation", "none", "--output_dir", tmp_path / "run")
    place = "test images, in the online evaluation in task 1 after 8 training images of the stream, are not numbers"
    assert f"the student's logits of {place}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--num_train_epochs", "2"], "needs num_train_epochs=1, not 2"),
        (["--classifier", "ranpac"], "classifier=ranpac is computed at its end: take classifier=linear"),
        (["--prompt_method", "apt"], "apt predicts with what it merges at its end"),
        (["--classifier_alignment"], "classifier_alignment aligns heads at its end: leave one of them out"),
        (["--student_run", "run", "--stages", "student"], "with student_run none is"),
    ],
)
def test_what_cannot_be_tested_while_learning_is_refused(train, online, tmp_path, capsys, options, sentence):
    with pytest.raises(SystemExit) as stop:
        train(*online, *options, "--output_dir", tmp_path / "run")
    assert stop.value.code == 2 and sentence in capsys.readouterr().err.splitlines()[-1]
