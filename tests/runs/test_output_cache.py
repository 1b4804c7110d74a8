"""What frozen networks have answered once is not asked again, and nothing comes out differently."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cdl_hf.runs.output_cache as answers_module
import cdl_hf.training.trainer as trainer_module
from cdl_hf.distillation.logit_methods import KD
from cdl_hf.models import PromptViTForImageClassification
from cdl_hf.runs.folder import RunFolder
from cdl_hf.runs.output_cache import QueryCache, TeacherOutputCache
from cdl_hf.training import results
from cdl_hf.training.exits import exit_on_failure
from cdl_hf.utils import atomic_write


@pytest.fixture
def asked(monkeypatch) -> dict[str, int]:
    """How often images went through the query network, and through a teacher for its student."""
    calls = {"query": 0, "teacher": 0}
    query, teach = PromptViTForImageClassification.query, KD._teach

    def counted_query(self, pixel_values):
        calls["query"] += self.prompt_pool.needs_query
        return query(self, pixel_values)

    def counted_teach(self, *args):
        calls["teacher"] += 1
        return teach(self, *args)

    monkeypatch.setattr(PromptViTForImageClassification, "query", counted_query)
    monkeypatch.setattr(KD, "_teach", counted_teach)
    monkeypatch.setattr(results, "latency", lambda model, image: 0.0)  # asks, too
    return calls


def outcome(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    results = json.loads((folder / "results.json").read_text())
    return results["student"], load_file(folder / "student" / "model.safetensors")


def assert_same_student(one: Path, other: Path) -> None:
    (our_results, ours), (their_results, theirs) = outcome(one), outcome(other)
    assert our_results == their_results
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_students_stage_takes_the_queries_of_the_teachers(train, command, tmp_path, asked, monkeypatch):
    train(*command, "--output_dir", tmp_path / "kept")
    kept = asked["query"]
    monkeypatch.setattr(answers_module, "MEMORY_LIMIT", 0)
    asked["query"] = 0
    train(*command, "--output_dir", tmp_path / "again")
    steps = 3 * 2 * 3  # tasks, epochs, steps
    assert kept == steps + 3 and asked["query"] == 2 * steps + 3  # test images are asked once, when they are new
    assert_same_student(tmp_path / "kept", tmp_path / "again")


def test_what_does_not_fit_into_memory_is_asked_again(train, command, tmp_path, asked, monkeypatch):
    train(*command, "--output_dir", tmp_path / "kept")
    monkeypatch.setattr(answers_module, "MEMORY_LIMIT", 14 * 16 * 4)  # one of two epochs
    asked["query"] = 0
    train(*command, "--output_dir", tmp_path / "partly")
    assert asked["query"] == 3 * 2 * 3 + 3 * 3 + 3
    assert_same_student(tmp_path / "kept", tmp_path / "partly")


@pytest.mark.parametrize(
    ("prompt_method", "distillation", "teaching"),
    [("coda_prompt", "kdp", 0), ("l2p", "none", 0), ("apt", "dkd", 0), ("dualprompt", "fitnets", 18)],
)
def test_stored_answers_spare_a_student_its_teacher(
    train, command, tmp_path, asked, prompt_method, distillation, teaching
):
    command = [*command, "--prompt_method", prompt_method, "--distillation", distillation]
    train(*command, "--output_dir", tmp_path / "both")
    train(*command, "--stages", "teacher", "--cache_teacher_outputs", "--output_dir", tmp_path / "teacher")
    asked.update(query=0, teacher=0)
    arguments = ("--stages", "student", "--teacher_run", tmp_path / "teacher")
    train(*command, *arguments, "--output_dir", tmp_path / "student")
    of_the_tests = 0 if prompt_method == "apt" else 3
    assert asked == {"query": of_the_tests, "teacher": teaching}
    assert_same_student(tmp_path / "both", tmp_path / "student")


def test_stored_answers_serve_their_own_run_too(train, command, tmp_path, asked):
    train(*command, "--output_dir", tmp_path / "asking")
    asked["teacher"] = 0
    train(*command, "--cache_teacher_outputs", "--output_dir", tmp_path / "stored")
    assert asked["teacher"] == 0
    assert_same_student(tmp_path / "asking", tmp_path / "stored")


def test_answers_to_other_images_are_not_taken(train, command, tmp_path, asked):
    train(*command, "--stages", "teacher", "--cache_teacher_outputs", "--output_dir", tmp_path / "teacher")
    arguments = ("--stages", "student", "--teacher_run", tmp_path / "teacher", "--seed", "1")
    train(*command, *arguments, "--output_dir", tmp_path / "student")
    assert asked["teacher"] == 3 * 2 * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--num_tasks", "2"], "another stream"),
        (["--class_order", "5,4,3,2,1,0"], "another stream"),
        (["--student", "TEACHER"], "another query network"),
        (["--pool_size", "9"], "is not the one configured here"),
    ],
)
def test_another_teacher_is_refused(train, command, pair, tmp_path, capsys, change, message):
    train(*command, "--stages", "teacher", "--output_dir", tmp_path / "teacher")
    change = [str(pair[0]) if word == "TEACHER" else word for word in change]
    with pytest.raises(SystemExit) as stop:
        train(
            *(*command, "--stages", "student", "--teacher_run", tmp_path / "teacher"),
            *(*change, "--output_dir", tmp_path / "student"),
        )
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_teacher_with_other_prompts_is_refused_with_the_option_to_change(
    train, command, finished_run, tmp_path, capsys
):
    unprompted = tmp_path / "teacher"
    train(
        *command,
        "--num_train_epochs",
        "0",
        "--prompt_method",
        "none",
        "--stages",
        "teacher",
        "--classifier",
        "ncm",
        "--output_dir",
        unprompted,
    )
    for run, given, advice in (
        (unprompted, [], "takes no prompts: pass --teacher_prompt_method none"),
        (finished_run, ["none"], "has a prompt method: pass its --prompt_method and no --teacher_prompt_method"),
    ):
        with pytest.raises(SystemExit):
            train(
                *(*command, "--stages", "student", "--teacher_run", run, "--output_dir", tmp_path / "student"),
                *(word for value in given for word in ("--teacher_prompt_method", value)),
            )
        assert advice in capsys.readouterr().err


def test_a_student_with_another_batch_size_finds_an_answer_for_every_image(train, command, tmp_path, asked):
    """14 images a task: batches of 8 leave out 6 of them, batches of 4 only 2, and others."""
    train(
        *command,
        "--batch_size",
        "8",
        "--stages",
        "teacher",
        "--cache_teacher_outputs",
        "--output_dir",
        tmp_path / "teacher",
    )
    for file in (tmp_path / "teacher" / "states" / "teacher").glob("*.npy"):
        rows = np.load(file)
        assert rows.shape[:2] == (2, 14) and np.isfinite(rows).all() and rows.any(2).all()
    student = (*command, "--stages", "student", "--teacher_run", tmp_path / "teacher", "--output_dir")
    asked.update(query=0, teacher=0)
    train(*student, tmp_path / "stored")
    assert asked == {"query": 3, "teacher": 0}
    for file in (tmp_path / "teacher" / "states" / "teacher").glob("*.npy"):
        file.unlink()
    train(*student, tmp_path / "asking")
    stored, asking = (outcome(tmp_path / name)[1] for name in ("stored", "asking"))
    assert all(torch.allclose(stored[name], asking[name], atol=1e-3) for name in stored)


def test_answers_that_an_earlier_version_left_out_are_computed_again(train, command, tmp_path, asked):
    train(*command, "--output_dir", tmp_path / "both")
    train(*command, "--stages", "teacher", "--cache_teacher_outputs", "--output_dir", tmp_path / "teacher")
    for name in ("query", "teacher_logits"):
        file = tmp_path / "teacher" / "states" / "teacher" / f"task_001.{name}.npy"
        answers = np.load(file)
        answers[1, 5] = 0
        np.save(file, answers)
        file.with_name(f"{file.name}.sha256").unlink()  # which that version did not write
    asked.update(query=0, teacher=0)
    arguments = ("--stages", "student", "--teacher_run", tmp_path / "teacher")
    with pytest.warns(UserWarning, match="lacks the outputs for some images in 1 of 2 epochs"):
        train(*command, *arguments, "--output_dir", tmp_path / "student")
    assert asked == {"query": 3 + 3, "teacher": 3}  # one epoch of three steps
    assert_same_student(tmp_path / "both", tmp_path / "student")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones((2, 13, 3), np.float32), "of shape (2, 13, 3), not float32 outputs of 2 epochs for 14 images"),
        (np.ones((1, 14, 3), np.float32), "of shape (1, 14, 3)"),
        (np.ones((2, 14, 3)), "holds float64 values"),
        ("cut short", "is damaged"),
        ("empty", "is damaged"),
        ("no array", "is damaged"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, content, message):
    answers = TeacherOutputCache(tmp_path / "task_000")
    file = answers.files["query"]
    np.save(file, content if isinstance(content, np.ndarray) else np.ones((2, 14, 3), np.float32))
    whole = file.read_bytes()
    if not isinstance(content, np.ndarray):
        file.write_bytes({"cut short": whole[:-5], "empty": b"", "no array": b"\x80\x04" + whole}[content])
    with pytest.raises(ValueError, match="remove the file") as refused:
        answers.read(2, 14)
    assert message in str(refused.value) and str(file) in str(refused.value)


def test_damaged_answers_are_refused_before_anything_is_trained(train, command, tmp_path, capsys):
    train(*command, "--stages", "teacher", "--cache_teacher_outputs", "--output_dir", tmp_path / "teacher")
    file = tmp_path / "teacher" / "states" / "teacher" / "task_002.query.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(SystemExit) as stop:
        train(
            *(*command, "--stages", "student", "--teacher_run", tmp_path / "teacher"),
            *("--output_dir", tmp_path / "student"),
        )
    assert stop.value.code == 2 and f"{file} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("left", [0, 40, -4])
def test_damaged_answers_of_ones_own_end_a_resumed_run_in_a_sentence(tmp_path, capsys, left):
    answers = TeacherOutputCache(tmp_path / "task_000")
    with atomic_write(answers.files["query"], checksum=True) as file:
        np.save(file, np.ones((1, 4, 3), np.float32))
    file = answers.files["query"]
    file.write_bytes(file.read_bytes()[:left])
    for checksum in (True, False):  # such as an earlier version's
        if not checksum:
            file.with_name(f"{file.name}.sha256").unlink()
        with pytest.raises(SystemExit) as stop, exit_on_failure(RunFolder(tmp_path), None):
            answers.read(1, 4)
        message = capsys.readouterr().err
        assert stop.value.code == 1 and f"Stopped: {file} is damaged: " in message
        assert "remove the file, and its outputs are computed again" in message


def test_queries_of_images_that_another_process_had_are_not_known():
    store = QueryCache(num_images=4)
    store.add(0, torch.tensor([0, 2]), torch.ones(2, 3))
    (rows,) = store.epochs
    assert np.isnan(rows[[1, 3]]).all() and (rows[[0, 2]] == 1).all()


def test_queries_of_another_division_are_computed_again(train, command, tmp_path, asked, monkeypatch):
    """As --auto_find_batch_size may find 2 parts for the teacher and 1 for the student."""
    parts = itertools.cycle([2, 1])
    monkeypatch.setattr(trainer_module, "find_accumulation_steps", lambda *_: next(parts))
    train(*command, "--auto_find_batch_size", "--distillation", "kd", "--output_dir", tmp_path / "run")
    steps = 3 * 2 * 3  # tasks, epochs, steps
    assert asked["query"] == 2 * steps + steps + 3


def test_queries_are_not_read_before_they_have_arrived(monkeypatch):
    """A copy from a GPU holds something else until then."""

    class Late(answers_module.AsyncCopy):
        def has_arrived(self):
            return len(arrived) > 1

        def read(self):
            return super().read() + 1

    arrived = []
    monkeypatch.setattr(answers_module, "AsyncCopy", Late)
    cache = QueryCache(num_images=4)
    cache.add(0, [0], torch.zeros(1, 3))
    arrived += [0, 1]
    assert np.isnan(cache._epochs[0]).all()
    cache.add(1, [2], torch.zeros(1, 3))
    assert (cache._epochs[0][0] == 1).all()
    arrived.clear()
    cache.add(1, [3], torch.full((1, 3), 4.0))
    first, second = cache.epochs
    assert (first[0] == 1).all() and (second[2] == 1).all() and (second[3] == 5).all()
