"""The papers' reported figures: the pages show what the CSV files hold."""

import re
from pathlib import Path

import pytest

from cdl_hf.comparison.reported import page_tables, read_reported
from cdl_hf.presets import reported_files

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = reported_files()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_tables_of_the_page_are_made_from_the_file(file):
    page = (RECIPES / file.parent.name / "README.md").read_text(encoding="utf-8")
    tables = page_tables(file)
    for title, table in tables.items():
        assert f"\n## {title}\n" in page and f"\n{table}\n" in page
    shown = re.findall(r"[\d.]+ / [\d.]+(?= \|)", page)
    assert 2 * len(shown) == len(read_reported(file))  # and no figure beyond
    assert "reported by the authors" in page


def test_every_row_has_its_source():
    for row in (row for file in FILES for row in read_reported(file)):
        assert row.paper.startswith("arXiv:") and row.table and row.note
        assert row.metric in ("A_N", "F_N") and 0 < float(row.value) < 100


def test_an_unknown_column_is_refused(tmp_path):
    file = tmp_path / "reported.csv"
    file.write_text(FILES[0].read_text().replace("value", "score", 1))
    with pytest.raises(ValueError, match="the columns must be paper, table"):
        read_reported(file)
