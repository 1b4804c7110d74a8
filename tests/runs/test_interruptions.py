"""A run that is told to stop is heard within a batch, wherever it is, and goes on to the same end."""

import os
import signal
import sys
import threading

import psutil
import pytest
import torch
from tiny_runs import arguments, assert_same_run, run_recipe

from cdl_hf.evaluation.evaluator import Evaluator
from cdl_hf.models import PromptViTForImageClassification
from cdl_hf.runs import interruptions
from cdl_hf.runs.interruptions import EX_TEMPFAIL, StopRequest, interruptible
from cdl_hf.runs.output_cache import TeacherOutputCache
from cdl_hf.training import build, classifier_alignment, memory

HEADS = {
    "ranpac": ["--classifier", "ranpac", "--ranpac_width", "24", "--cache_teacher_outputs", "--auto_find_batch_size"],
    "aligned": ["--classifier_alignment"],
}
# What is called once for each batch of what may last, or once for each trial.
PLACES = {
    "storing answers": ("ranpac", TeacherOutputCache, "_compute"),
    "evaluating": ("ranpac", Evaluator, "_predict"),
    "reading features": ("ranpac", PromptViTForImageClassification, "head_features"),
    "trying batch sizes": ("ranpac", memory, "_fits"),
    "aligning heads": ("aligned", classifier_alignment.F, "cross_entropy"),
}


@pytest.fixture(scope="module")
def whole_runs(pair, drawings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    short = [*arguments(pair, drawings), "--num_train_epochs", "1", "--num_tasks", "2"]
    short = [word for i, word in enumerate(short) if word != "--num_tasks" and short[i - 1] != "--num_tasks"]
    short = [
        word for i, word in enumerate(short) if word != "--num_train_epochs" and short[i - 1] != "--num_train_epochs"
    ]
    short += ["--num_tasks", "2", "--num_train_epochs", "1", "--eval_batch_size", "3"]
    commands = {head: [*short, *options] for head, options in HEADS.items()}
    for head, command in commands.items():
        run_recipe("train", *command, "--output_dir", folder / head)
    return commands, folder


@pytest.mark.parametrize("place", PLACES)
def test_a_run_stops_within_a_batch_and_goes_on_to_the_same_end(whole_runs, tmp_path, monkeypatch, capsys, place):
    commands, whole = whole_runs
    head, owner, name = PLACES[place]
    command = [*commands[head], "--output_dir", tmp_path / "run"]
    called = vars(owner)[name]
    function, calls = getattr(owner, name), []

    def told_to_stop(*args, **settings):
        calls.append(None)
        if len(calls) == at:
            signal.raise_signal(signal.SIGTERM)
        return function(*args, **settings)

    at = 3 if place != "aligning heads" else 60  # in the second task, or within the alignment after the first
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, staticmethod(told_to_stop) if isinstance(called, staticmethod) else told_to_stop)
        with pytest.raises(SystemExit) as stop:
            run_recipe("train", *command)
    assert stop.value.code == EX_TEMPFAIL and len(calls) == at
    assert "The run is saved; resume with" in capsys.readouterr().err
    run_recipe("train", *command, "--resume_from_checkpoint")
    assert_same_run(whole / head, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_the_training_a_signal_ends_the_run_in_a_sentence(
    command, train, tmp_path, monkeypatch, capsys, number
):
    monkeypatch.setattr(build, "load_image_dataset", lambda *args, **settings: signal.raise_signal(number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        train(*command, "--output_dir", tmp_path / "run")
    assert stop.value.code == EX_TEMPFAIL
    assert "Interrupted; start it again with the same command." in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and signal.getsignal(number) == before


def test_a_signal_during_the_imports_too(capsys):
    with pytest.raises(SystemExit) as stop, interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == EX_TEMPFAIL and capsys.readouterr().err.startswith("\nInterrupted before the training")


def test_signals_sent_twice_are_one_and_a_later_ctrl_c_is_another(monkeypatch):
    seconds = iter([10.0, 10.1, 11.0, 13.0])
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    with StopRequest(type("One", (), {"num_processes": 1})) as request:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):  # the third asks for no time
            signal.raise_signal(number)
        assert request.stop_requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_ctrl_c_that_the_shell_ignores_for_a_background_job_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest(type("One", (), {"num_processes": 1})) as request:
            signal.raise_signal(signal.SIGINT)
            assert not request.stop_requested()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("words", "launches"),
    [
        ("python3 /usr/bin/accelerate launch train.py", True),
        ("/usr/bin/python3.12 -u -m accelerate.commands.launch --num_processes 1 train.py", True),
        ("python /venv/bin/torchrun --standalone train.py", True),
        ("python -m torch.distributed.run train.py", True),
        (r"torchrun.exe train.py", True),
        ("python recipes/compare.py grid.yaml --output_dir runs", True),
        ("python /usr/bin/cdl-hf compare grid.yaml --output_dir runs", True),
        ("python -m cdl_hf.commands.compare grid.yaml --output_dir runs", True),
        ("-bash", False),
        ("bash run_accelerate.sh accelerate", False),
        ("/sbin/init", False),
        ("python -m pytest", False),
        ("", False),
    ],
)
def test_launchers_are_known_by_their_command_line(monkeypatch, words, launches):
    monkeypatch.setattr(psutil.Process, "cmdline", lambda process: words.split())
    assert (interruptions.launcher() is not None) == launches


def test_the_end_of_the_launcher_comes_as_sigterm(monkeypatch):
    came = threading.Event()
    parent = psutil.Process(os.getppid())
    monkeypatch.setattr(interruptions, "launcher", lambda: parent)
    monkeypatch.setattr(interruptions, "WATCH_INTERVAL", 0.01)
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        interruptions.stop_with_launcher()
        assert not came.wait(0.1)
        monkeypatch.setattr(os, "getppid", lambda: 1 if parent.pid != 1 else 2)
        assert came.wait(10)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_nobody_reads_ends_no_run(monkeypatch):
    reader, writer = os.pipe()
    with open(writer, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with interruptible():
            os.close(reader)
            for _ in range(3):
                print("a message", file=sys.stderr, flush=True)


def test_a_divergence_in_a_classifier_and_its_kinds_are_told_in_a_sentence(whole_runs, tmp_path, monkeypatch, capsys):
    """Whatever cannot be computed any more, and wherever: exit code 1, and one line that says so."""
    commands, _ = whole_runs
    not_finite = torch.full((), torch.nan)
    kinds = [
        (
            "ranpac",
            TeacherOutputCache,
            "_compute",
            lambda answers: {n: v * not_finite for n, v in answers.items()},
            "outputs",
        ),
        ("ranpac", Evaluator, "_predict", lambda columns: columns * 0 - 1, "test images of task 1 are not numbers"),
        (
            "ranpac",
            PromptViTForImageClassification,
            "head_features",
            lambda f: f * not_finite,
            "classifier after task",
        ),
        ("ranpac", PromptViTForImageClassification, "fit_classifier", raising(torch.linalg.LinAlgError), "classifier"),
        ("ranpac", TeacherOutputCache, "_compute", raising(torch.OutOfMemoryError), "--gradient_accumulation_steps"),
        ("ranpac", Evaluator, "_predict", raising(MemoryError), "--eval_batch_size"),
        (
            "ranpac",
            PromptViTForImageClassification,
            "head_features",
            raising(torch.OutOfMemoryError),
            "--ranpac_width",
        ),
        (
            "ranpac",
            PromptViTForImageClassification,
            "start_task",
            raising(torch.OutOfMemoryError),
            "not enough memory",
        ),
        ("ranpac", Evaluator, "_predict", raising(RuntimeError, "DataLoader worker (pid 7) is killed"), "num_workers"),
    ]
    for i, (head, owner, name, change, told) in enumerate(kinds):
        function, is_static = getattr(owner, name), isinstance(vars(owner)[name], staticmethod)

        def changed(*args, _function=function, _change=change, **settings):
            return _change(_function(*args, **settings))

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, staticmethod(changed) if is_static else changed)
            with pytest.raises(SystemExit) as stop:
                run_recipe("train", *commands[head], "--output_dir", tmp_path / str(i))
        (message,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("Stopped: "))
        assert stop.value.code == 1 and told in message, (name, message)


def raising(kind: type[Exception], message: str = "no"):
    def change(output):
        raise kind(message)

    return change


def test_weights_that_are_not_finite_after_the_last_step_are_told(command, train, tmp_path, monkeypatch, capsys):
    step = torch.optim.Adam.step

    def explode(self, *args):
        step(self, *args)
        self.param_groups[0]["params"][0].data.fill_(torch.inf)

    monkeypatch.setattr(torch.optim.Adam, "step", explode)
    with pytest.raises(SystemExit) as stop:
        train(*command, "--batch_size", "14", "--num_train_epochs", "1", "--output_dir", tmp_path / "run")
    message = capsys.readouterr().err
    assert stop.value.code == 1 and "Stopped: the teacher's weights are not finite after task 1/3 teacher" in message
