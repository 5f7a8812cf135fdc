"""Records as tables in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["html_table"]


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """A table, and lines of text under it.

    The first column is text and the others are numbers, set to the right. Nothing but the notebook's own style is used,
    so that it is as readable in a dark theme.

    Args:
        header: names of the columns.
        rows: their cells, as text.
        notes: one line each.

    Example:
        >>> html_table(["term", "mean"], [["L[q]", "-1.0"]], ["N = 3"])
        '<table><thead><tr><th style="text-align: left">term</th><th style="text-align: right">mean</th></tr></thead>...
    """
    sides = ["left", *["right"] * (len(header) - 1)]

    def line(tag: str, cells: Sequence[str]) -> str:
        pairs = zip(cells, sides, strict=True)
        return (
            "<tr>"
            + "".join(f'<{tag} style="text-align: {side}">{escape(text)}</{tag}>' for text, side in pairs)
            + "</tr>"
        )

    body = "".join(line("td", row) for row in rows)
    text = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"<table><thead>{line('th', header)}</thead><tbody>{body}</tbody></table>{text}"
