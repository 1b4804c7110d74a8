"""recipes/benchmark.py measures what it says; how fast it is, no test says."""

import json
import runpy
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def benchmark(monkeypatch, tmp_path, capsys):
    """Runs it, and gives what it prints and what it writes."""

    def run(*arguments):
        file = tmp_path / "figures.json"
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments), "--json", str(file)])
        monkeypatch.syspath_prepend(str(RECIPES))
        runpy.run_path(str(RECIPES / "benchmark.py"), run_name="__main__")
        return capsys.readouterr().out, json.loads(file.read_text())

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process as Linux tells it")
def test_stream(benchmark):
    out, figures = benchmark("--stream", "--rows", "2000000")
    measured = figures["stream"]
    assert "a stream over 2,000,000 rows" in out
    assert measured["peak_bytes_per_row"] < 40  # what is aimed at; an index alone takes 8


def test_nothing_to_measure(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark()
    assert "nothing to measure" in capsys.readouterr().err
