"""What frozen networks have answered once is not asked again, and nothing comes out differently."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import cdl_hf.training.answers as answers_module
from cdl_hf.distillation.logit_methods import KD
from cdl_hf.models import PromptViTForImageClassification
from cdl_hf.training import report


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
    monkeypatch.setattr(report, "latency", lambda model, image: 0.0)  # asks, too
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
    train(*command, "--stages", "teacher", "--store_answers", "--output_dir", tmp_path / "teacher")
    asked.update(query=0, teacher=0)
    arguments = ("--stages", "student", "--teacher_from", tmp_path / "teacher")
    train(*command, *arguments, "--output_dir", tmp_path / "student")
    of_the_tests = 0 if prompt_method == "apt" else 3
    assert asked == {"query": of_the_tests, "teacher": teaching}
    assert_same_student(tmp_path / "both", tmp_path / "student")


def test_stored_answers_serve_their_own_run_too(train, command, tmp_path, asked):
    train(*command, "--output_dir", tmp_path / "asking")
    asked["teacher"] = 0
    train(*command, "--store_answers", "--output_dir", tmp_path / "stored")
    assert asked["teacher"] == 0
    assert_same_student(tmp_path / "asking", tmp_path / "stored")


def test_answers_to_other_images_are_not_taken(train, command, tmp_path, asked):
    train(*command, "--stages", "teacher", "--store_answers", "--output_dir", tmp_path / "teacher")
    arguments = ("--stages", "student", "--teacher_from", tmp_path / "teacher", "--seed", "1")
    train(*command, *arguments, "--output_dir", tmp_path / "student")
    assert asked["teacher"] == 3 * 2 * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--num_tasks", "2"], "another stream"),
        (["--class_order", "5,4,3,2,1,0"], "another stream"),
        (["--student", "TEACHER"], "takes its query from others"),
        (["--pool_size", "9"], "is not the one configured here"),
    ],
)
def test_another_teacher_is_refused(train, command, pair, tmp_path, capsys, change, message):
    train(*command, "--stages", "teacher", "--output_dir", tmp_path / "teacher")
    change = [str(pair[0]) if word == "TEACHER" else word for word in change]
    with pytest.raises(SystemExit) as stop:
        train(
            *(*command, "--stages", "student", "--teacher_from", tmp_path / "teacher"),
            *(*change, "--output_dir", tmp_path / "student"),
        )
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
