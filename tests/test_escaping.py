"""Names that hold markup, formulas, paths and passwords."""

import csv
import io
import os

import pytest
from markdown_it import MarkdownIt

from cdl_hf.escaping import csv_table, fenced, markdown_name, markdown_text, portable, portable_arguments

NAMES = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "a\n\n# Title\n| x |",
    "![picture](https://example.org/x.png)",
    "[link](javascript:alert(1))",
    "`code` *bold* _italic_ __bold__ ~~gone~~",
    "snow_man",
    "vit_base_patch16",
    "_a",
    "a_",
    r"back\slash\_ \|",
    "&lt;b&gt; &amp;",
    "R$ 5 and 6 $",
]
BLOCKS = [
    "# a",
    "## a",
    "- a",
    "+ a",
    "* a",
    "1. a",
    "10) a",
    "---",
    "===",
    "- - -",
    "\u2028# a",
    "> a",
    "~~~",
    "    a",
]


@pytest.mark.parametrize("escape", [markdown_text, markdown_name])
@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_names_as_they_are(escape, name):
    table = (
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .parse(f"| {escape(name)} | last |\n| --- | --- |\n")
    )
    cells = [token for token in table if token.type == "inline"]
    assert len(cells) == 2
    assert {child.type for child in cells[0].children} <= {"text", "text_special"}
    assert "".join(child.content for child in cells[0].children) == " ".join(name.split())


@pytest.mark.parametrize("escape", [markdown_text, markdown_name])
@pytest.mark.parametrize("name", [*NAMES, *BLOCKS])
@pytest.mark.parametrize("around", ["{}: 6 classes", "{}", "- {}", "# {}", "text\n{}"])
def test_no_name_at_the_start_of_a_line_is_a_heading_or_a_list(escape, name, around):
    def kinds(text):
        return [token.type for token in MarkdownIt("commonmark", {"html": True}).parse(around.format(text))]

    assert kinds(escape(name)) == kinds("a")


def test_names_stay_readable():
    for name in ("2.5D", "a-b", "3", "c#", "9) lives"):
        assert markdown_text(name).replace("\\", "") == name
    assert markdown_text("cat-1.5 #2") == "cat-1.5 #2"
    assert markdown_name("vit_base_patch16_224") == "vit_base_patch16_224"
    assert markdown_text("snow_man") == r"snow\_man"


@pytest.mark.parametrize("code", ["train.py", "a\n```\n# Title", "````", "a `b`", "```\r```"])
def test_no_code_closes_its_fence(code):
    tokens = MarkdownIt("commonmark").parse(fenced(code) + "\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content == code.replace("\r", "\n") + "\n"


FORMULAS = [
    "=1+1",
    "=cmd|' /C calc'!A0",
    "+a",
    "-a",
    "@SUM(1)",
    "\t=1",
    "\ra",
    "\na",
    " =1",
    "\ufeff=1",
    "\0=1",
    "\uff1d1",
    "\ufe661",
    "\u200b=1",
    "\u202e=1",
    "\x7f=1",
    "\u2060\xa0@a",
]


@pytest.mark.parametrize("text", [*FORMULAS, "-5 apples", "- 1", "1;=1+1", "a\t=1", "a\r\n=1"])
def test_no_text_is_a_formula(text):
    table = csv_table([["name"], [text]])
    for delimiter in ",;":  # in many countries a spreadsheet divides at semicolons
        header, cells = csv.reader(io.StringIO(table, newline=""), delimiter=delimiter)
        for cell in cells:
            seen = cell.lstrip(" \0\ufeff\u200b\u202e\x7f\u2060\xa0")
            assert not seen.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d", "\ufe66"))


@pytest.mark.parametrize(
    "cell", [-1, -0.25, 1e-05, "-1.5", "+2", "-1e5", "0.5", "ant", "a-b=c", "semi;colon", "", "a,b"]
)
def test_numbers_and_plain_text_stay(cell):
    ((same, last),) = csv.reader(io.StringIO(csv_table([[cell, "x"]])))
    assert (same, last) == (str(cell), "x")


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("local-dir:/home/anna/weights/vit", "local-dir:vit"),
        ("--student=local-dir:~/vit/", "--student=local-dir:vit"),
        ("local-dir://home/anna/vit", "local-dir:vit"),
        ("file:///home/anna/images", "images"),
        ("FILE:/home/anna/images", "images"),
        ("file:///C:/Users/Anna/images", "images"),
        (r"file:C:\Users\Anna\images", "images"),
        (r"\\server\anna\images", "images"),
        ("C:/Users/Anna/my images", "my images"),
        ("/home/anna", "..."),
        ("~anna", "..."),
        ("/", "..."),
        ("../../home/anna/images", "images"),
        ("first.yaml,/home/anna/second.yaml", "second.yaml"),
        ("https://anna:secret@example.org/a.parquet", "https://example.org/a.parquet"),
        ("https://anna:se@cr/et@example.org/a", "https://example.org/a"),
        ("https://anna@example.org/a", "https://example.org/a"),
        ("https://example.org/a.parquet?token=secret#page", "https://example.org/a.parquet"),
        ("zip://a.csv::https://anna:secret@example.org/a.zip", "zip://a.csv::https://example.org/a.zip"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("anna:secret@example.org/a", "example.org/a"),
        ("anna@example.org:/data/a", "example.org:a"),
        ("https://example.org:8080/@anna/a", "https://example.org:8080/@anna/a"),
        ("hf_hub:timm/vit@main", "hf_hub:timm/vit@main"),
        ("uoft-cs/cifar100", "uoft-cs/cifar100"),
        ("home/office", "home/office"),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", "vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ("--prompt_blocks", "--prompt_blocks"),
        ("my_hf_AbCdEfGhIjKlMnOpQrStUvWx", "my_hf_..."),
        ("token=hf_oauth_eyJhbGciOi.eyJz_Y-29", "token=hf_..."),
        ("api_org_AbCdEfGhIjKlMnOpQrStUvWx", "hf_..."),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_words_without_what_concerns_nobody_else(word, shown):
    assert portable(word) == shown
    given = {"dataset": word, "prompt_blocks": [0, 1], "files": [word], "class_order": [word], "alpha": None}
    assert portable_arguments(given) == {**given, "dataset": shown, "files": [shown]}


def test_ones_own_home(monkeypatch):
    monkeypatch.setenv("HOME", "/mnt/people/anna")
    assert portable("../anna/images") == "images"
    assert portable("a=/mnt/people/anna/images") == "images"
    assert portable("anna/images") == "anna/images"  # as a data set of the Hub
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # nobody is at home
    assert portable("/mnt/people/anna/images") == "images"
