"""The report's pages: HTML files without other files, with a banner that says how private they are."""

import html
from collections.abc import Sequence

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 1.5rem; }
.private { border-left: .35rem solid #D55E00; background: #fdf1ea; padding: .6rem 1rem; max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; white-space: nowrap; }
th, td { padding: .4rem .9rem; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th.text, td.text { text-align: left; }
.unit { display: block; font-weight: normal; font-size: .85em; color: #666; }
p { max-width: 60rem; color: #444; }
h2 { margin-top: 2.2rem; }
"""

_BANNER = (
    '<p class="private"><strong>This page is as private as the data.</strong> Its numbers and texts come from the '
    "training and held-out records, without noise, and no ε covers them. Only what stands in a package's privacy "
    "receipt may be passed on.</p>"
)


def page(title: str, body: Sequence[str], *, style: str = "") -> str:
    """Return a whole page with the banner about its privacy; `body` is HTML, `title` is text."""
    name = html.escape(title)
    head = f'<head><meta charset="utf-8"><title>{name}</title><style>{_STYLE}{style}</style></head>'
    content = "\n".join([f"<h1>{name}</h1>", _BANNER, *body])
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{content}\n</body>\n</html>\n'


def table(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], *, text: Sequence[int]) -> str:
    """Return a table of text cells.

    Args:
        heads: each column's title, and its unit or an empty text.
        rows: the cells, as text.
        text: the columns that hold text and are aligned to the left.
    """
    head = "".join(_head(title, unit, left=column in text) for column, (title, unit) in enumerate(heads))
    body = "\n".join(
        f"<tr>{''.join(_cell(cell, left=column in text) for column, cell in enumerate(row))}</tr>" for row in rows
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _head(title: str, unit: str, *, left: bool) -> str:
    note = f'<span class="unit">{html.escape(unit)}</span>' if unit else ""
    return f"<th{_side(left)}>{html.escape(title)}{note}</th>"


def _cell(text: str, *, left: bool) -> str:
    return f"<td{_side(left)}>{html.escape(text)}</td>"


def _side(left: bool) -> str:
    return ' class="text"' if left else ""
