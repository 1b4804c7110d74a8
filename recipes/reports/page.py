"""The report as one HTML page that needs nothing else."""

import base64
import re
from pathlib import Path

STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; font-size: .85rem }
th, td { border: 1px solid #d0d7de; padding: .3rem .6rem; white-space: nowrap } th { background: #f6f8fa }
img { max-width: 100% }
code { background: #f6f8fa; padding: .1rem .3rem } pre code { display: block; overflow-x: auto }
"""


def as_page(markdown: str, folder: Path) -> str:
    """One HTML page with its pictures in it."""
    from markdown_it import MarkdownIt

    def embedded(match: re.Match) -> str:
        kind = {"svg": "svg+xml", "png": "png"}[match[1].rsplit(".")[-1]]
        content = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/{kind};base64,{content}"'

    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    body = re.sub(r'src="(?!https?:)([^"]+\.(?:svg|png))"', embedded, body)
    title = markdown.splitlines()[0].lstrip("# ")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
