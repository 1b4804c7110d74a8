"""Calls of train.py by a comparison: exit codes, messages and signals."""

import os
import signal
import sys

import pytest

from cdl_hf.comparison.runner import Interrupted, call


def test_a_call_returns_the_exit_code_and_the_last_message(capfd):
    script = "import sys; print('out'); sys.stderr.write('bar\\rtrain.py: error: too large\\n\\n'); sys.exit(2)"
    assert call([sys.executable, "-c", script]) == (2, "too large")
    assert "too large" in capfd.readouterr().err  # passed on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_run_end_and_interrupts_the_grid(number):
    before = signal.getsignal(number)
    ends = "signal.pause()" if number == signal.SIGTERM else ""  # which is passed on; a Ctrl-C reaches both
    script = (
        "import os, signal\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(75))\n"
        f"os.kill({os.getpid()}, {int(number)})\n{ends}"
    )
    with pytest.raises(Interrupted):
        call([sys.executable, "-c", script])
    assert signal.getsignal(number) is before


def test_progress_bars_are_drawn_rarely_where_there_is_no_terminal(capfd, monkeypatch):
    script = "import sys, time\nfrom tqdm import tqdm\nfor _ in tqdm(range(30)): time.sleep(0.02)"
    call([sys.executable, "-c", script])
    assert capfd.readouterr().err.count("%|") == 2  # its begin and its end
    monkeypatch.setenv("TQDM_MININTERVAL", "0.05")  # the user's own wish
    call([sys.executable, "-c", script])
    assert capfd.readouterr().err.count("%|") > 2
