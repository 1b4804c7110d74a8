"""The command `cdl-hf` and its subcommands."""

import subprocess
import sys
from importlib import import_module
from inspect import signature

import pytest

import cdl_hf
from cdl_hf.commands import COMMANDS, main


def run(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cdl-hf", *map(str, words)])
    main()


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_a_module_whose_help_names_it(name, monkeypatch, capsys):
    assert list(signature(import_module(f"cdl_hf.commands.{name}").main).parameters) == ["argv"]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, name, "--help")
    assert not stop.value.code and capsys.readouterr().out.startswith(f"usage: cdl-hf {name} ")


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = (
        "import sys; from cdl_hf.commands import main; sys.argv = ['cdl-hf', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'numpy', 'torch', 'transformers', 'datasets'} & set(sys.modules), 'slow to answer'"
    )
    for words in ([], ["--help"], ["train", "--help"], ["predict", "-h"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert all(name in done.stdout for name in (COMMANDS if len(words) < 2 else words[:1]))


def test_the_version(monkeypatch, capsys):
    run(monkeypatch, "--version")
    assert capsys.readouterr().out == f"{cdl_hf.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "cdl-hf: error: unknown command 'trian'; did you mean train? (cdl-hf --help lists all commands)"),
        (["train", "--lerning_rate", "1"], "cdl-hf train: error: unknown argument --lerning_rate; did you mean"),
        (["predict"], "cdl-hf predict: error: checkpoint is required"),
    ],
)
def test_mistakes_name_the_command(words, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *words)
    assert stop.value.code == 2 and capsys.readouterr().err.startswith(message)
