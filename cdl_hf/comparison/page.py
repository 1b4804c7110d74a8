"""A report as one HTML page that needs no other file: contents, pictures, tables to sort and filter, data to save."""

import base64
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jinja2 import Environment

ASSETS = Path(__file__).parents[1] / "assets" / "report"
LONG = 30  # rows from which a table is folded


def as_page(markdown: str, folder: Path, drawn: Collection[str] = ()) -> str:
    """One HTML page that embeds its pictures and CSV files.

    HTML in the Markdown is shown as text, but for line breaks. Links to files that are not embedded become text.

    Args:
        markdown: Content of the page.
        folder: Where the files are that it names.
        drawn: Names of SVG files that become elements of the page. Others may come from anybody, with scripts, and
            are embedded as pictures, which run none.

    Raises:
        ValueError: A picture cannot be read.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = parser.parse(markdown)
    contents = _mark(tokens)
    for kind, rule in _rules(folder, drawn).items():
        parser.add_render_rule(kind, rule)
    body = parser.renderer.render(tokens, parser.options, {})
    page = Environment(autoescape=True, keep_trailing_newline=True).from_string(_asset("page.html"))
    return page.render(
        title=markdown.splitlines()[0].lstrip("# "),
        contents=contents,
        body=f"{body}</section>\n" if "<section" in body else body,
        style=_asset("page.css"),
        script=_asset("page.js"),
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _mark(tokens: Sequence[Any]) -> list[dict[str, str | int]]:
    """Gives headings anchors, tables a label and their number of rows, and first cells the role of headers.

    Returns:
        Level, text and anchor of each heading below the title.
    """
    contents: list[dict[str, str | int]] = []
    heading, start, table = "Table", 0, tokens[0]
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            inline, start = tokens[i + 1], i
            heading = "".join(child.content for child in inline.children)
            anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
            taken = {entry["anchor"] for entry in contents}
            number = next(n for n in range(1, len(tokens)) if (anchor if n == 1 else f"{anchor}-{n}") not in taken)
            anchor += f"-{number}" if number > 1 else ""
            token.meta = {"anchor": anchor, "text": heading}
            if token.tag != "h1":
                contents.append({"level": int(token.tag[1]), "text": heading, "anchor": anchor})
        elif token.type == "table_open":
            table = token
            in_section = sum(token.type == "table_close" for token in tokens[start:i])
            label = f"{heading}, table {in_section + 1}" if in_section else heading
            table.meta = {"label": label, "rows": -1}  # the header
        elif token.type == "table_close":
            token.meta = table.meta
        elif token.type == "tr_open":
            table.meta["rows"] += 1
            if tokens[i + 1].type == "td_open" and tokens[i + 2].content:
                cell, end = tokens[i + 1], next(t for t in tokens[i:] if t.type == "td_close")
                cell.tag = end.tag = "th"
                cell.attrSet("scope", "row")
        elif token.type == "th_open":
            token.attrSet("scope", "col")
    return contents


def _rules(folder: Path, drawn: Collection[str]) -> dict[str, Callable]:
    """Render rules of markdown-it by the type of a token."""
    from markdown_it.common.utils import escapeHtml

    sections = 0

    def heading_open(renderer, tokens, i, options, env) -> str:
        nonlocal sections
        tag, anchor = tokens[i].tag, tokens[i].meta["anchor"]
        if tag != "h2":
            return f'<{tag} id="{anchor}">'
        sections += 1
        close = "</section>\n" if sections > 1 else ""
        return f'{close}<section id="{anchor}" aria-labelledby="{anchor}-title">\n<h2 id="{anchor}-title">'

    def heading_close(renderer, tokens, i, options, env) -> str:
        tag, meta = tokens[i].tag, tokens[i - 2].meta
        if tag == "h1":
            return "</h1>\n"
        label = escapeHtml(f"Link to {meta['text']}")
        return f'<a class="anchor" href="#{meta["anchor"]}" aria-label="{label}">#</a></{tag}>\n'

    def table_open(renderer, tokens, i, options, env) -> str:
        label, rows = escapeHtml(tokens[i].meta["label"]), tokens[i].meta["rows"]
        fold = f"<details>\n<summary>Show the {rows} rows</summary>\n" if rows > LONG else ""
        return f'{fold}<div class="table" role="region" aria-label="{label}" tabindex="0">\n<table>\n'

    def table_close(renderer, tokens, i, options, env) -> str:
        return "</table>\n</div>\n" + ("</details>\n" if tokens[i].meta["rows"] > LONG else "")

    def image(renderer, tokens, i, options, env) -> str:
        return _picture(tokens[i].attrs["src"], tokens[i].content, folder, drawn)

    def link_open(renderer, tokens, i, options, env) -> str:
        target = tokens[i].attrs["href"]
        file = folder / unquote(target)
        if re.match(r"https?:|mailto:|#", target):
            return f'<a href="{escapeHtml(target)}">'
        if file.suffix == ".csv" and file.is_file():
            content = base64.b64encode(file.read_bytes()).decode()
            return f'<a download="{escapeHtml(file.name)}" href="data:text/csv;base64,{content}">'
        return "<a>"  # a file that is not in the page

    def shown(renderer, tokens, i, options, env) -> str:
        html = tokens[i].content
        return html if html == "<br>" else escapeHtml(html)

    rules = [heading_open, heading_close, table_open, table_close, image, link_open]
    return {rule.__name__: rule for rule in rules} | {"html_inline": shown, "html_block": shown}


def _picture(source: str, alt: str, folder: Path, drawn: Collection[str]) -> str:
    """A drawn SVG as elements, so that its text can be found and its points named; another picture as data."""
    from markdown_it.common.utils import escapeHtml

    if re.match("https?:", source):
        return f'<img src="{escapeHtml(source)}" alt="{escapeHtml(alt)}">'
    file = folder / unquote(source)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"the picture {file} cannot be read: {error.strerror}") from error
    if source not in drawn:
        data = base64.b64encode(content).decode()
        kind = "svg+xml" if file.suffix == ".svg" else file.suffix[1:]
        return f'<img src="data:image/{kind};base64,{data}" alt="{escapeHtml(alt)}">'
    svg = content.decode()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    unique = re.sub(r"[^\w-]", "-", file.stem)  # ids are of the page, and matplotlib's are those of every picture
    svg = re.sub(r'((?:id|href)="#?|url\(#)(?=[\w.-]+["\)])', rf"\1{unique}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escapeHtml(alt)}" ', 1).strip()
