"""Pieces of HTML: tables and boxes that look alike in notebooks and on pages."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

STYLE = """
.tbr { font: 14px/1.45 system-ui, sans-serif; color: #222; }
.tbr h2 { font-size: 1.15em; margin: 1.6em 0 0.5em; }
.tbr table { border-collapse: collapse; margin: 0.6em 0; font-variant-numeric: tabular-nums; }
.tbr th, .tbr td { padding: 0.2em 0.7em; text-align: left; border: 0; background: none; }
.tbr th { border-bottom: 1px solid #999; font-weight: 600; }
.tbr td.number, .tbr th.number { text-align: right; }
.tbr tr:nth-child(even) td { background: #f5f6f8; }
.tbr .good, .tbr .doubt { padding: 0.5em 0.8em; margin: 0.6em 0; border-left: 4px solid; }
.tbr .good { border-color: #2f8f5b; background: #eef7f1; }
.tbr .doubt { border-color: #c8501e; background: #fdf2ec; }
.tbr .note { color: #555; }
.tbr pre { font-size: 0.92em; line-height: 1.25; background: none; }
"""


def escaped(text: object) -> str:
    """Text as HTML shows it."""
    return html.escape(str(text))


def box(text: object, *, good: bool) -> str:
    """A verdict that stands out."""
    return f'<p class="{"good" if good else "doubt"}">{escaped(text)}</p>'


def paragraph(text: object, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escaped(text)}</p>' if kind else f"<p>{escaped(text)}</p>"


def listing(items: Iterable[object]) -> str:
    """A list of plain texts; nothing where there are none."""
    rows = "".join(f"<li>{escaped(item)}</li>" for item in items)
    return f"<ul>{rows}</ul>" if rows else ""


def block(text: object) -> str:
    """Text that keeps its lines."""
    return f"<pre>{escaped(text)}</pre>"


def table(columns: Iterable[object], rows: Iterable[Iterable[Any]]) -> str:
    """Rows of cells below their names; numbers stand at the right, with three digits."""
    body = [list(row) for row in rows]
    names = list(columns)
    right = [all(_is_number(row[i]) for row in body) and bool(body) for i in range(len(names))]
    kinds = [' class="number"' if number else "" for number in right]
    head = "".join(f"<th{k}>{escaped(n)}</th>" for n, k in zip(names, kinds, strict=True))
    lines = [
        "".join(f"<td{k}>{escaped(_cell(v))}</td>" for v, k in zip(row, kinds, strict=True))
        for row in body
    ]
    inside = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{inside}</tbody></table>"


def fragment(*parts: str) -> str:
    """Pieces together with their style, as a notebook shows them."""
    return f'<style>{STYLE}</style><div class="tbr">{"".join(parts)}</div>'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    """A cell's text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}" if abs(value) >= 1000 else f"{value:.3f}"
    return str(value)
