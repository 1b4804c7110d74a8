"""recipes/benchmark.py: its figures are complete and consistent; no test depends on the speed of a machine."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import images, labels_for, tiny_pair

from cdl_hf.benchmark.plain import PlainPromptViT, plain_method

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def benchmark(monkeypatch, tmp_path, capsys):
    """Runs it, and gives what it prints and what it writes."""

    def run(*arguments):
        file = tmp_path / "figures.json"
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments), "--json", str(file)])
        runpy.run_path(str(RECIPES / "benchmark.py"), run_name="__main__")
        return capsys.readouterr().out, json.loads(file.read_text())

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from Linux's /proc")
def test_stream(benchmark):
    out, measured = benchmark("--stream", "--rows", "2000000")
    assert "a stream over 2,000,000 rows" in out
    assert measured["peak_bytes_per_row"] < 40  # what is aimed at; an index alone takes 8


def test_long_stream(benchmark, drawings, pair, monkeypatch, capsys):
    from cdl_hf.benchmark import long_streams

    arguments = [
        "--long_stream",
        "--dataset",
        drawings,
        "--student",
        pair[1],
        "--teacher",
        pair[0],
        "--ranpac_width",
        24,
    ]
    with pytest.raises(SystemExit):
        benchmark(*arguments)
    assert "at least 10 classes" in capsys.readouterr().err
    monkeypatch.setattr(long_streams, "NUM_TASKS", 2)
    out, figures = benchmark(*arguments)
    short, long = figures["2 tasks"], figures["6 tasks"]
    assert all(row["seconds_first"] > 0 and row["seconds_last"] > 0 for row in (short, long))
    assert min(short["accuracy"], long["accuracy"]) > 50  # six classes, whose chosen ridges may differ
    assert f"| 6 tasks | {long['accuracy']:.2f} |" in out


@pytest.mark.parametrize(
    ("prompt_method", "method"), [("l2p", "none"), ("dualprompt", "deit"), ("coda_prompt", "kdp"), ("apt", "fitnets")]
)
def test_the_plain_implementation_is_the_same_mathematics(prompt_method, method):
    teacher, ours = tiny_pair(prompt_method, method)
    models = [PlainPromptViT.like(model) for model in (ours.model, teacher)]
    plain = plain_method(ours, *models)
    pixel_values, labels = images(4, 32), labels_for(ours.model, 4)
    parameters = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    for module in (ours, plain):
        module.train()(pixel_values, labels)["loss"].backward()
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)
    assert gradients["model.backbone.blocks.0.mlp.fc1.weight"] is not None  # ours have none
    with torch.no_grad():
        for model, same in zip(models, (ours.model, teacher), strict=True):
            torch.testing.assert_close(model.eval()(pixel_values).logits, same.eval()(pixel_values).logits)


def test_steps(benchmark, command, tmp_path):
    trace = tmp_path / "trace.json"
    out, figures = benchmark(*command, "--repeats", "1", "--precision", "fp32", "--profile", trace)
    ours, plain = figures["fp32"]["ours"], figures["fp32"]["plain"]
    assert ours["student step"]["gflops"] < plain["student step"]["gflops"]
    both = "student step, stored queries and teacher's logits"
    assert ours[both]["gflops"] < ours["student step, stored queries"]["gflops"] < ours["student step"]["gflops"]
    assert list(ours["student step"]["parts"]) == ["query", "teacher", "student", "backward", "optimizer"]
    assert list(ours[both]["parts"]) == ["student", "backward", "optimizer"]
    assert all(step["gain"] > 0 and step["share_of_linear_rate"] > 0 for step in ours.values())
    assert all(f"| {name} |" in out for name in ours)
    events = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"teacher step", "student step"} <= events


def test_roofline(benchmark, command):
    out, figures = benchmark(*command, "--roofline")
    rates = [row["H100"] for row in figures.values()]
    assert all(row["H100"] > row["A100"] > 0 for row in figures.values()) and "| teacher step |" in out
    # the fewer networks are asked, the faster a student's step
    assert rates[1] < rates[2] < rates[3]
    # no step is faster than its arithmetic alone, in images a second
    assert all(row["A100"] <= 312e3 / row["gflops"] for row in figures.values())


def test_a_teacher_alone_has_no_student_step(benchmark, command, capsys):
    with pytest.raises(SystemExit):
        benchmark(*command, "--stages", "teacher")
    assert "leave stages out" in capsys.readouterr().err


def test_input(benchmark, monkeypatch):
    from cdl_hf.benchmark import inputs

    monkeypatch.setattr(inputs, "KINDS", {"tiny PNG": (16, 12, "PNG", 32), "JPEG": (40, 30, "JPEG", 32)})
    out, figures = benchmark("--input", "--repeats", "1")
    assert set(figures) == {"tiny PNG", "JPEG"} and "| tiny PNG |" in out
    assert all(each["plain"] > 0 and each["ours"] > 0 and each["gain"] > 0 for each in figures.values())


def test_growth(benchmark, command):
    out, figures = benchmark(*command, "--growth", "--repeats", "1", "--precision", "fp32")
    assert set(figures["fp32"]) == {"teacher step", "student step"} and "| teacher step |" in out
    for row in figures["fp32"].values():
        assert row["seconds_first"] > 0 and row["time"] == pytest.approx(row["seconds_last"] / row["seconds_first"])
        assert 1 <= row["memory"] < 1.5  # a tiny model's prompts are a larger part of it


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="ends a session of processes as POSIX does")
def test_startup(benchmark, command, monkeypatch, capsys):
    out, figures = benchmark(*command, "--startup", "--repeats", "1")
    assert figures["seconds"] == figures["rounds"][0] > 0 and "until its first step" in out
    with pytest.raises(SystemExit):
        benchmark(*command, "--startup", "--repeats", "1", "--teacher", "no_such_backbone")
    assert "ended before its first step" in capsys.readouterr().err
