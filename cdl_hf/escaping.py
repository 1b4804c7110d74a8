"""Text that is not ours, made safe for Markdown, for CSV and for other people's eyes.

Names of data sets, classes, files and runs may hold anything. In HTML, Jinja escapes them.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

_SCHEMES = re.compile(r"((?:[A-Za-z][\w.+-]+:)*)(.*)", re.DOTALL)  # of two letters or more: C: is a drive
# User and password: of a URL, also where what should be quoted in the password is not; and before a bare host.
_LOGIN = re.compile(
    r"(//)(?:[^/?#\s:@]*:(?!\d*/)(?:(?!//)\S)*|[^/?#\s]*)@"
    r"|^(?!hf[_-]hub:)(?:[^/\\\s@]+:[^/\\\s@]*@|[^/\\\s@:]+@(?=[^/\\\s@]+:))",
    re.IGNORECASE,
)
_ABSOLUTE = re.compile(r"~|[/\\]|[A-Za-z]:[/\\]")
_HOMES = {"home", "users"}  # what holds a folder for each person
_TOKEN = re.compile(r"(?<![A-Za-z0-9])(?:hf_oauth_ey[\w.-]+|(?:hf|api_org)_[A-Za-z0-9]{16,})")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_UNSEEN = r"[\s\0-\x1f\x7f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
_SIGN = r"[=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b]"  # also the wide and the small ones
_FORMULA = re.compile(rf"((?:^|[;\t\r\n])(?={_UNSEEN}*{_SIGN})|^(?=[\t\r]))")
_BLOCK = re.compile(r"^(\d{0,9})(?=[#+=.)-])")  # of a heading, a list or a rule


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line: neither markup nor HTML, nor the end of a table's cell.

    Nor the start of a heading or a list, where a line or an entry starts with it.
    """
    text = re.sub(r"([\\`*_|<>\[\]&$~])", r"\\\1", _utf8(" ".join(text.split())))
    return _BLOCK.sub(r"\1\\", text)


def markdown_name(name: str) -> str:
    """The same for names such as `vit_base_patch16`: an underscore within a word needs no escape."""
    return re.sub(r"(?<=[^\W_])\\_(?=[^\W_])", "_", markdown_text(name))


def fenced(code: str) -> str:
    """A block of code in Markdown, with a fence that nothing in the code can close."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return f"{fence}\n{code}\n{fence}"


def csv_table(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV in which no text is a formula for a spreadsheet: an apostrophe goes before what would start one.

    Numbers, negative ones too, stay as they are, also those given as text.
    """
    text = io.StringIO()
    for row in rows:
        cells = [_plain(cell) if isinstance(cell, str) else cell for cell in row]
        odd = any("\r" in str(cell) for cell in cells)  # which Python 3.11 leaves without quotation marks
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL)
        writer.writerow(cells)
    return text.getvalue()


def _plain(text: str) -> str:
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub(r"\1'", text)


def portable(word: str) -> str:
    """A word of a command without what concerns nobody else.

    Of a path that is absolute or leads through a home folder only the last part stays; of a URL neither user and
    password nor query; of a token of the Hub only that there was one. The name of an option (`--dataset=`) and a
    scheme (`local-dir:`) stay, but not `file:`.
    """
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + _TOKEN.sub("hf_...", _utf8(_portable(value)))


def portable_arguments(args: dict[str, Any]) -> dict[str, Any]:
    """A run's arguments with [`portable`] words; names of classes, which may look like paths, stay as they are."""
    return {name: value if name == "class_order" else _each_portable(value) for name, value in args.items()}


def _each_portable(value: Any) -> Any:
    if isinstance(value, list):
        return [_each_portable(each) for each in value]
    return portable(value) if isinstance(value, str) else value


def _portable(value: str) -> str:
    match = _SCHEMES.fullmatch(_LOGIN.sub(lambda login: login[1] or "", value))
    assert match is not None  # it matches any text
    schemes, path = match.groups()
    schemes = re.sub(r"(?<![\w.+-])file:", "", schemes, flags=re.IGNORECASE)
    if path.startswith("//") and schemes and not schemes.lower().endswith("local-dir:"):
        return schemes + re.split("[?#]", path)[0]
    *folders, name = re.split(r"[/\\]+", path.rstrip("/\\"))
    folders, home = [folder.lower() for folder in folders], os.path.expanduser("~")
    owners = _HOMES | {os.path.basename(home).lower()}
    climbs_home = ".." in folders and owners & {*folders, name.lower()}
    if not (_ABSOLUTE.match(path) or _HOMES & set(folders[:-1]) or climbs_home or f"{home}/" in path):
        return schemes + path
    is_home = not name or name.startswith("~") or name.lower() in owners or (folders and folders[-1] in _HOMES)
    return schemes + ("..." if is_home else name)


def _utf8(text: str) -> str:
    """What no UTF-8 is, such as a byte of a file's name that Python keeps as half a character, as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()
