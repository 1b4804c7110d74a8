"""recipes/gpu_sitting.py: no check ends the others; the checks themselves, as far as a CPU can run them."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import load_recipe, run_recipe, save_backbone

from cdl_hf.benchmark.gpu_checks import CHECKS, Workbench

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


@pytest.fixture
def recipe():
    return load_recipe("gpu_sitting")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, time; {code}"]


def test_no_check_ends_the_others(recipe, tmp_path):
    output = tmp_path / "sitting"
    sitting = recipe.Sitting(output, time.monotonic() + 30, {"date": "today"})
    began = time.monotonic()
    figures = output / "figures" / "good.json"
    good = python(f"open({str(figures)!r}, 'w').write('{{\"a\": {{\"b\": 0.12345}}}}')")
    bad = python("raise ValueError('no such kernel')")
    sitting.run({"good": (good, 10), "bad": (bad, 10), "dead": (python("os.abort()"), 10)})
    child = tmp_path / "child"
    begun = output / "figures" / "late.json"
    begun.write_text('{"a": 1}')
    hang = python(f"(os.fork() or open({str(child)!r}, 'w').write(str(os.getpid()))) and None; time.sleep(60)")
    sitting.run({"late": (hang, 1)})
    assert time.monotonic() - began < 10
    time.sleep(0.1)
    status = Path(f"/proc/{child.read_text()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"  # what it has started has ended, too
    sitting.deadline = time.monotonic() + 4
    sitting.run({"last": (good, 10)})
    found = json.loads((output / "sitting.json").read_text())
    assert found["date"] == "today"
    assert {name: outcome["state"] for name, outcome in found["checks"].items()} == {
        "good": "done",
        "bad": "failed",
        "dead": "failed",
        "late": "late",
        "last": "left out",
    }
    assert found["checks"]["bad"]["reason"] == "ValueError: no such kernel"
    assert found["checks"]["late"]["figures"] == {"a": 1}, "figures of a check that was ended are lost"
    text = (output / "sitting.txt").read_text()
    assert "    a; b: 0.1235\n" in text and "bad: failed" in text and "last: left out, 0.0 s no time" in text


def test_checks_share_the_cores(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "num_cores", lambda: 6)
    sitting = recipe.Sitting(tmp_path / "sitting", time.monotonic() + 30, {})
    figures = tmp_path / "sitting" / "figures"
    code = "open('{}', 'w').write('{{\"threads\": ' + os.environ['OMP_NUM_THREADS'] + '}}')"
    sitting.run({name: (python(code.format(figures / f"{name}.json")), 10) for name in ("one", "two")})
    assert [outcome.figures for outcome in sitting.outcomes.values()] == [{"threads": 3}] * 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "checks", "memry"], "memry is none of checks, pretrain, machine"),
        ([], "dataset is needed to pretrain"),
    ],
)
def test_mistakes(tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        run_recipe("gpu_sitting", "--output_dir", tmp_path, *more)
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """As wide as CODA-Prompt's pool needs it."""
    folder = tmp_path_factory.mktemp("wide")
    teacher, student = (str(save_backbone(folder / str(width), width)) for width in (128, 112))
    return Workbench(torch.device("cpu"), teacher, student, (2,), 1, (10,))


@pytest.mark.parametrize("name", ["ranpac", "machine"])
def test_checks(bench, name):
    json.dumps(dict(CHECKS[name](bench)))


def test_crops_have_the_same_bits(bench):
    assert [figures["same_bits"] for figures in dict(CHECKS["crops"](bench)).values()] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHECKS.keys() - {"ranpac", "machine", "crops"}))
def test_longer_checks(bench, name, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: None)  # takes minutes
    figures = dict(CHECKS[name](replace(bench, batch_sizes=(2,))))
    json.dumps(figures)
    if name == "precision":
        assert 0.99 < figures["lowest_bf16_cosine"] <= 1


@pytest.mark.slow
def test_a_rehearsal(drawings, tmp_path, capsys):
    # A check and the tests in processes of their own; test_checks runs the others. Pre-training takes the whole time.
    only = ["--only", "ranpac", "figures"]
    run_recipe(
        "gpu_sitting", "--rehearse", "--dataset", drawings, "--time_limit", "90", "--output_dir", tmp_path / "a", *only
    )
    checks = json.loads((tmp_path / "a" / "sitting.json").read_text())["checks"]
    assert {name: check["state"] for name, check in checks.items()} == dict.fromkeys(checks, "done")
    assert checks["figures"]["figures"]["tests"] == 1 and checks["figures"]["figures"]["logits and losses"] < 1e-4
