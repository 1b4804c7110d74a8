"""What callbacks see, and what they can change."""

import json

import pytest
import torch
from tiny_models import tiny_backbone, tiny_model

from cdl_hf import ContinualDistillationTrainer, TaskStream, load_image_dataset
from cdl_hf.data import image_processor_for
from cdl_hf.distillation import METHODS
from cdl_hf.runs import lock as run_lock
from cdl_hf.training import CDLConfig, ContinualCallback, ShowAccuracy, Stopped


@pytest.fixture
def make_trainer(drawings, tmp_path):
    def make(*callbacks, class_order="natural", **args):
        stream = TaskStream(load_image_dataset(str(drawings)), num_tasks=3, class_order=class_order)
        torch.manual_seed(0)  # the same weights each time
        backbone = tiny_backbone()
        config = {"tasks": 0, "backbone": backbone, "classes_per_task": stream.classes_per_task}
        student, teacher = (tiny_model("l2p", **config) for _ in range(2))
        args = CDLConfig(**{"num_train_epochs": 1, "batch_size": 4, "output_dir": str(tmp_path / "run"), **args})
        processor = image_processor_for({"input_size": (3, 32, 32)})
        method = METHODS["kd"](student, teacher)
        return ContinualDistillationTrainer(stream, method, processor, args, callbacks=callbacks)

    return make


class Diary(ContinualCallback):
    def __init__(self):
        self.events = []

    def on_stage_end(self, trainer, task, roles):
        self.events.append(("stage", task.index, *roles))

    def on_evaluation(self, trainer, task):
        assert len(trainer.matrices["student"].rows) == task.index + 1
        self.events.append(("evaluation", task.index))

    def on_task_end(self, trainer, task):
        assert (trainer.folder.path / "states" / "student" / f"task_{task.index:03d}.safetensors").is_file()
        assert not trainer.models["student"].training
        self.events.append(("task", task.index))


def events_of(task):
    return [("stage", task, "teacher"), ("stage", task, "student"), ("evaluation", task), ("task", task)]


def test_events_in_order(make_trainer, capsys):
    diary = Diary()
    make_trainer(ShowAccuracy(), diary).train()
    assert diary.events == events_of(0) + events_of(1) + events_of(2)
    assert "task 3/3, 6 classes: accuracy teacher " in capsys.readouterr().out


def test_a_callback_stops_the_run_which_can_be_resumed(make_trainer):
    class StopAfterTheSecondTask(ContinualCallback):
        def on_evaluation(self, trainer, task):
            if task.index == 1:
                trainer.stop()

    diary = Diary()
    trainer = make_trainer(diary, StopAfterTheSecondTask())
    with pytest.raises(Stopped):
        trainer.train()
    assert diary.events == events_of(0) + events_of(1)
    later = Diary()
    resumed = make_trainer(later, resume_from_checkpoint=True)
    resumed.resume()
    resumed.train()
    assert later.events == events_of(2)


def test_a_trainer_trains_once(make_trainer):
    """A second call would begin the stream again with models that have learnt a part of it."""
    trainer = make_trainer()
    trainer.stop()
    with pytest.raises(Stopped):
        trainer.train()
    before = {path: path.read_bytes() for path in trainer.folder.path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="has trained already: make a new one, with resume_from_checkpoint=True"):
        trainer.train()
    assert before == {path: path.read_bytes() for path in trainer.folder.path.rglob("*") if path.is_file()}


def test_the_time_left_is_known_from_the_first_step_on(make_trainer):
    class Longer(ContinualCallback):
        left = []

        def on_task_end(self, trainer, task):
            self.left.append(trainer.seconds_left)
            trainer.args.num_train_epochs += 1  # more steps than were foreseen

    trainer = make_trainer(Longer())
    assert trainer.seconds_left is None
    trainer.train()
    assert all(left >= 0 for left in Longer.left) and Longer.left[-1] == 0


def test_a_run_that_cannot_begin_lets_others_in(make_trainer):
    trainer = make_trainer()
    trainer.stop()
    with pytest.raises(Stopped):
        trainer.train()
    resumed = make_trainer(resume_from_checkpoint=True, learning_rate=0.5)
    with pytest.raises(ValueError, match="cannot go on"):
        resumed.begin()
    assert resumed.folder.path.resolve() / run_lock.NAME not in run_lock._held


def test_what_cannot_run_overwrites_nothing(make_trainer):
    trainer = make_trainer()
    trainer.begin()
    folder = trainer.folder
    folder.write_results({})
    folder.close()
    with pytest.raises(ValueError, match="teacher_run has no teacher of task 1"):
        make_trainer(overwrite_output_dir=True, stages="student", teacher_run=str(folder.path / "nowhere"))
    assert folder.is_finished
    make_trainer(overwrite_output_dir=True).begin()
    assert not folder.is_finished


def test_a_callback_alters_the_next_stage(make_trainer):
    class LowerRate(ContinualCallback):
        def on_task_end(self, trainer, task):
            trainer.args.learning_rate /= 10

    trainer = make_trainer(LowerRate(), learning_rate=1e-3)
    trainer.train()
    lines = [json.loads(line) for line in (trainer.folder.path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if line["event"] == "epoch" and line["stage"] == "student"]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-5])


def test_a_resumed_run_goes_on_by_itself_with_its_own_arguments_alone(make_trainer):
    trainer = make_trainer()
    trainer.stop()
    with pytest.raises(Stopped):
        trainer.train()
    with pytest.raises(ValueError, match="is not empty"):
        make_trainer()
    for changed in ({"learning_rate": 0.5}, {"seed": 7}, {"num_train_epochs": 3}, {"class_order": "seeded"}):
        with pytest.raises(ValueError, match="cannot go on"):
            make_trainer(resume_from_checkpoint=True, **changed).train()
    resumed = make_trainer(resume_from_checkpoint=True)
    resumed.train()
    lines = [json.loads(line) for line in (resumed.folder.path / "metrics.jsonl").read_text().splitlines()]
    stages = [(line["task"], line["stage"]) for line in lines if line["event"] == "epoch"]
    assert stages == [(task, role) for task in range(3) for role in ("teacher", "student")]
