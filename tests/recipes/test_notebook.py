"""The notebook of the recipes, executed as a user would."""

import re
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT

import cdl_hf

NOTEBOOK = ROOT / "recipes" / "further_classes.ipynb"


def notebook():
    return pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)


def printed(cells) -> str:
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def further_accuracies(text: str) -> list[int]:
    """In %, on the further classes: before and after they were learned."""
    return [int(found) for found in re.findall(r"accuracy on the further classes: (\d+)%", text)]


def test_the_stored_pictures_are_small_and_of_a_finished_execution():
    shown = notebook()
    code = [cell for cell in shown.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    pictures = [output for cell in code for output in cell.outputs if output.output_type == "display_data"]
    assert len(pictures) == 2 and NOTEBOOK.stat().st_size < 150_000
    assert not re.search(r"(?<![\w.])/(?!/)\w+/\w", printed(shown.cells))  # of the machine that it was executed on
    assert further_accuracies(printed(shown.cells))[0] == 0


@pytest.mark.slow
def test_the_notebook_teaches_the_student_two_classes(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    command = tmp_path / "bin" / "cdl-hf"  # the package may be on the path, and not installed
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom cdl_hf.commands import main\nmain()\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(Path(cdl_hf.__file__).parents[1]), prepend=":")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    executed = notebook()
    nbclient.NotebookClient(executed, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    before, after = further_accuracies(printed(executed.cells))
    assert before == 0 and after >= 60  # 92 where it was written
