"""The report as one HTML page that needs nothing else."""

import base64
import re
from pathlib import Path
from urllib.parse import unquote

from jinja2 import Environment

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; font-size: .85rem }
th, td { border: 1px solid #d0d7de; padding: .3rem .6rem; white-space: nowrap } th { background: #f6f8fa }
img { max-width: 100% }
code { background: #f6f8fa; padding: .1rem .3rem } pre code { display: block; overflow-x: auto }
</style>
</head>
<body>
{{ body | safe }}</body>
</html>
"""


def as_page(markdown: str, folder: Path) -> str:
    """One HTML page with its pictures in it. Of HTML in the Markdown only line breaks are kept; the rest is shown.

    Raises:
        ValueError: A picture is not there.
    """
    from markdown_it import MarkdownIt
    from markdown_it.common.utils import escapeHtml

    def embedded(match: re.Match) -> str:
        picture = folder / unquote(match[1])
        kind = {".svg": "svg+xml", ".png": "png"}[picture.suffix]
        try:
            content = base64.b64encode(picture.read_bytes()).decode()
        except OSError as error:
            raise ValueError(f"the picture {picture} cannot be read: {error.strerror}") from error
        return f'src="data:image/{kind};base64,{content}"'

    def shown(renderer, tokens, index, options, env) -> str:
        html = tokens[index].content
        return html if html == "<br>" else escapeHtml(html)

    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    for kind in ("html_inline", "html_block"):
        parser.add_render_rule(kind, shown)
    body = re.sub(r'src="(?!https?:)([^"]+\.(?:svg|png))"', embedded, parser.render(markdown))
    page = Environment(autoescape=True, keep_trailing_newline=True).from_string(PAGE)
    return page.render(title=markdown.splitlines()[0].lstrip("# "), body=body)
