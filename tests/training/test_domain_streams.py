"""Runs over streams of domains and with blurry boundaries, whose classes come again."""

import json
import re

import numpy as np
import PIL.Image
import pytest
import torch
from tiny_runs import run_recipe

from cdl_hf.data import load_image_dataset
from cdl_hf.models import PromptViTConfig
from cdl_hf.models.classifiers import CLASSIFIERS, RanPAC

DOMAINS = ("ink", "chalk", "rust")


@pytest.fixture(scope="session")
def domains(tmp_path_factory):
    """Three classes of noisy patterns in three colors: <split>/<color>/<class>."""
    folder, rng = tmp_path_factory.mktemp("domains"), np.random.default_rng(0)
    for label in range(3):
        pattern = rng.integers(0, 200, (16, 16, 3))
        for channel, domain in enumerate(DOMAINS):
            for split, count in (("train", 5), ("test", 3)):
                place = folder / split / domain / f"class_{label}"
                place.mkdir(parents=True)
                for i in range(count):
                    noisy = pattern + rng.integers(0, 56, (16, 16, 3))
                    noisy[..., channel] //= 2
                    PIL.Image.fromarray(noisy.astype(np.uint8)).save(place / f"{i}.png")
    return folder


@pytest.fixture
def stream(command, domains):
    """The command line of a run over the domains."""
    words = [str(word) for word in command]
    at = words.index("--num_tasks")
    del words[at : at + 2]
    words[words.index("--dataset") + 1] = str(domains)
    return [*words, "--domain_column", "color", "--domain_order", ",".join(DOMAINS), "--num_train_epochs", "1"]


@pytest.mark.parametrize("name", ["ncm", "ranpac"])
def test_a_classifier_of_a_stream_of_domains_is_that_of_a_joint_fit(name):
    generator = torch.Generator().manual_seed(0)
    config = PromptViTConfig(
        classes_per_task=[5, 0, 0], repeats_classes=True, head=name, ranpac_width=60, prompt_method="none"
    )
    stream, joint = (CLASSIFIERS[name](config, 12) for _ in range(2))
    stream.init_weights()
    joint.init_weights()
    joint.share_random(stream)
    means = torch.randn(5, 12, generator=generator)
    shifts = torch.randn(3, 12, generator=generator)
    labels = torch.arange(5).repeat(8)
    features = [means[labels] + shift + torch.randn(40, 12, generator=generator) / 2 for shift in shifts]
    for of_domain in features:
        stream.fit(of_domain, labels)
    joint.fit(torch.cat(features), labels.repeat(3))
    new = torch.randn(20, 12, generator=generator)
    if isinstance(joint, RanPAC) and isinstance(stream, RanPAC):  # of the same ridge: each chooses its own
        assert joint.sums is not None and stream.sums is not None
        torch.testing.assert_close(stream.sums.gram, joint.sums.gram, rtol=1e-5, atol=1e-4)
        joint.weight.copy_(joint.sums.solve(stream.sums.best_ridge))
    torch.testing.assert_close(stream(new, 5), joint(new, 5), rtol=1e-4, atol=1e-4)


def test_heads_trained_over_domains(train, stream, tmp_path, capsys):
    """R[i,j] is by domain, and all classes compete in each."""
    train(*stream, "--output_dir", tmp_path / "whole")
    shown = capsys.readouterr().out
    assert "task 2/3 (chalk), 3 classes: accuracy teacher" in shown
    assert "After 3 domains with 3 classes" in shown and "final accuracy A_N, mean over domains (%)" in shown
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    about = results["stream"]
    assert about["domains"] == list(DOMAINS) and about["classes_per_task"] == [3, 0, 0]
    assert about["train"] == [15] * 3 and about["test"] == [9] * 3
    assert not {"task_known_accuracies", "right_task_share"} & results["student"].keys(), "a class has no task"
    assert [len(row) for row in results["student"]["accuracy_matrix"]] == [1, 2, 3]
    config = json.loads((tmp_path / "whole" / "student" / "config.json").read_text())
    assert config["repeats_classes"] and config["classes_per_task"] == [3, 0, 0] and config["tasks_seen"] == 3
    card = (tmp_path / "whole" / "student" / "README.md").read_text()
    assert (
        "Domain-incremental image classification" in card
        and "in 3 domains" in card
        and "mean over the domains" in card
    )
    assert re.search(r"\| task \| domain \|.*\n.*\n\| 1 \| ink \|", card)


def test_a_joint_teacher_of_a_stream_of_domains(train, stream, tmp_path):
    """`num_tasks=1` trains on all domains at once; a student of the domains takes such a teacher."""
    computed = [*stream, "--prompt_method", "none", "--classifier", "ranpac", "--num_train_epochs", "0"]
    train(*computed, "--stages", "teacher", "--num_tasks", "1", "--output_dir", tmp_path / "joint")
    given = ["--stages", "student", "--teacher_run", tmp_path / "joint", "--distillation", "none"]
    train(*computed, *given, "--output_dir", tmp_path / "run")
    joint, results = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("joint", "run"))
    assert "domains" not in joint["stream"] and joint["stream"]["train"] == [45]
    rows = results["teacher"]["accuracy_matrix"]
    assert rows[0] == rows[2][:1] and rows[1] == rows[2][:2], "it knows all domains from the start"


def test_alignment_remembers_a_class_once(train, stream, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(*stream, "--classifier_alignment", "true", "--output_dir", tmp_path / "run")
    assert "classes come again in this stream: take classifier=ncm or ranpac" in capsys.readouterr().err


def test_a_stream_of_domains_is_not_tested_while_learning(train, stream, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(*stream, "--eval_steps", "1", "--output_dir", tmp_path / "run")
    assert "in a stream of domains all may come in the first: leave it out" in capsys.readouterr().err


def test_the_domains_are_those_of_the_folders(domains):
    splits = load_image_dataset(str(domains), domain_column="color")
    assert splits["train"].features["domain"].names == sorted(DOMAINS)


def test_a_run_with_blurry_boundaries(train, command, drawings, tmp_path):
    ratios = ["--disjoint_class_ratio", "0.5", "--blurry_sample_ratio", "0.4"]
    alone = ["--stages", "student", "--distillation", "none", "--num_train_epochs", "1", "--prompt_method", "apt"]
    train(*command, *ratios, *alone, "--output_dir", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    about, blurry = results["stream"], results["stream"]["blurry"]
    assert sum(about["classes_per_task"]) == 6 and sum(about["train"]) == 42 and blurry["blurry_sample_ratio"] == 0.4
    assert [len(row) for row in results["student"]["accuracy_matrix"]] == [1, 2, 3]
    shares = results["student"]["right_task_shares"]
    assert len(shares) == 3 and shares[0] >= results["student"]["accuracy_matrix"][0][0]
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "50% of the classes come in one task only" in card and "40% of the training images of the others" in card
    of_class = zip(about["class_names"], blurry["task_of_class"], strict=True)
    own = [name.replace("_", "\\_") for name, task in of_class if task == 1]
    assert f"| 2 | {', '.join(own)} |" in card
    for model, name in ((tmp_path / "run", "student"), (tmp_path / "run" / "student", "model")):
        data = [] if name == "student" else ["--dataset", drawings]
        run_recipe("evaluate_run", model, *data, "--output_dir", tmp_path / "evaluation")
        evaluated = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["models"][name]
        assert evaluated["accuracy_by_task"] == pytest.approx(results["student"]["accuracy_matrix"][-1])
        assert evaluated["right_task_share"] == pytest.approx(shares[-1])
