"""recipes/demo.py: its arguments, its server, and the Space that it writes."""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_runs import ROOT, run_recipe

from cdl_hf.commands import demo
from cdl_hf.demo import space as space_module

needs_gradio = pytest.mark.skipif(not find_spec("gradio"), reason="needs gradio: pip install '.[demo]'")


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@needs_gradio
@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        ([], "error: run is required"),
        (["nowhere"], "not the output folder of a run"),
        (["{run}/student"], "not the output folder of a run"),
        (["{run}", "--space", "{run}"], "exists; name a new folder"),
        (["{run}", "--port", "70000"], "from 1 to 65535"),
        (
            ["nowhere", "--port", "{port}"],
            "port {port} of 127.0.0.1 cannot be used: Address already in use; choose another",
        ),
        (["nowhere", "--host", "no.such.host.invalid"], "host 'no.such.host.invalid' is not known"),
    ],
)
def test_mistakes_are_reported(finished_run, capsys, taken_port, arguments, reported):
    """The port is tried before the run is opened."""
    values = {"run": finished_run, "port": taken_port}
    with pytest.raises(SystemExit) as stop:
        run_recipe("demo", *(argument.format(**values) for argument in arguments))
    assert stop.value.code == 2 and reported.format(**values) in capsys.readouterr().err.splitlines()[-1]


def test_without_gradio_it_is_reported(monkeypatch, capsys, finished_run):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["demo.py", str(finished_run)])
    with pytest.raises(SystemExit):
        demo.main()
    assert "pip install 'cdl_hf[demo]'" in capsys.readouterr().err


@needs_gradio
@pytest.mark.slow
def test_it_prints_where_the_page_is_and_ends_with_ctrl_c(finished_run, taken_port):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [sys.executable, ROOT / "recipes" / "demo.py", finished_run, "--port", port, "--host", "0.0.0.0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        printed = [process.stdout.readline().strip() for _ in range(2)]
        assert printed == [
            f"The page is at every address of this machine, such as http://localhost:{port}/",
            "Ctrl-C ends it",
        ]
        with socket.create_connection(("127.0.0.1", int(port))):  # as a browser keeps it open
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            assert process.wait(20) == 0
        assert time.monotonic() - start < (1 if (os.getloadavg()[0] < os.cpu_count()) else 5)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()


@pytest.mark.slow
def test_a_space_stands_alone(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(space_module, "find_spec", lambda name: True)
    monkeypatch.setattr(space_module, "version", lambda name: "6.0" if name == "gradio" else "1.0+cpu")
    space = tmp_path / "space"
    space_module.write_space(finished_run, space)
    header = (space / "README.md").read_text().split("---")[1]
    assert "sdk: gradio\nsdk_version: 6.0\napp_file: app.py\n" in header
    assert "torch==1.0\n" in (space / "requirements.txt").read_text()
    compile((space / "app.py").read_text(), "app.py", "exec")
    own = str(finished_run.parent)
    texts = [file.read_text() for suffix in ("json", "yaml") for file in (space / "run").rglob(f"*.{suffix}")]
    assert not [text for text in texts if own in text]
    use = (
        "import sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path; import torch, cdl_hf\n"
        "from cdl_hf.demo.inputs import Input; from cdl_hf.demo.rendering import render_answers, render_header\n"
        "from cdl_hf.demo.run_facts import read_facts; from cdl_hf.demo.run_models import RunModels\n"
        "assert Path(cdl_hf.__file__).parent == Path('cdl_hf').absolute()\n"
        "models = RunModels(Path('run')); facts = read_facts(Path('run'), models)\n"
        "print(render_header(models, facts), facts.date)\n"
        "print(render_answers(models, facts, 0, Input(torch.zeros(3, 16, 16, dtype=torch.uint8))))"
    )
    done = subprocess.run([sys.executable, "-c", use], cwd=space, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    date = time.strftime("%Y-%m-%d", time.localtime(Path(finished_run / "results.json").stat().st_mtime))
    for text in ("After task 1 of 3", "Teacher: class_", f"Run <b>{finished_run.name}</b>", date):
        assert text in done.stdout
