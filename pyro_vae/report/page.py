"""A page of HTML with everything in it: style, pictures, tables that sort; it asks no network for anything."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

__all__ = [
    "commands",
    "details",
    "drawing",
    "figures",
    "number_table",
    "page",
    "paragraphs",
    "warnings_of",
    "word_table",
]

_HERE = Path(__file__).parent
# Letters beyond which the text of a cell is broken into lines.
_LONG = 40


def page(title: str, subtitle: str, sections: Iterable[tuple[str, str]]) -> str:
    """A page of its own.

    Args:
        title: plain text.
        subtitle: plain text.
        sections: headings in plain text, each with the HTML under it.
    """
    body = "\n".join(f"<section><h2>{escape(head)}</h2>\n{html}\n</section>" for head, html in sections)
    style, script = _asset("style.css"), _asset("sort.js")
    # Nothing is fetched: what the page shows lies in it.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="pale">{escape(subtitle)}</p>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def number_table(head: Sequence[str], rows: Iterable[Sequence[str | float]], *, sortable: bool = True) -> str:
    """A table; floats to four digits behind the point, sorted by their full value.

    Args:
        head: names of the columns.
        rows: their cells; what is not finite is shown as a dash.
        sortable: whether a click on a column's name sorts by it.
    """
    rows = [list(row) for row in rows]
    # A column of words is set to the left, its name too.
    sides = [' class="text"' if rows and all(isinstance(row[n], str) for row in rows) else "" for n in range(len(head))]
    names = [f"<button>{escape(name)}</button>" if sortable else escape(name) for name in head]
    heads = "".join(f'<th scope="col"{side}>{name}</th>' for side, name in zip(sides, names, strict=True))
    lines = ["<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows]
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{heads}</tr></thead><tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def word_table(rows: Mapping[str, Any]) -> str:
    """Names and what they are."""
    lines = [
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>' for name, value in rows.items()
    ]
    return '<table class="words"><tbody>\n' + "\n".join(lines) + "\n</tbody></table>"


def details(summary: str, record: Any) -> str:  # noqa: ANN401
    """A record in full, folded away."""
    text = escape(json.dumps(record, indent=2, default=str))
    return f"<details><summary>{escape(summary)}</summary><pre>{text}</pre></details>"


def paragraphs(texts: Iterable[str], *, pale: bool = False) -> str:
    """Plain text."""
    kind = ' class="pale"' if pale else ""
    return "".join(f"<p{kind}>{escape(text)}</p>" for text in texts)


def warnings_of(notes: Iterable[str], *, label: str = "Warning") -> str:
    """Sentences that a reader must not miss."""
    return "".join(f'<p class="warning"><strong>{escape(label)}.</strong> {escape(note)}</p>' for note in notes)


def commands(told: Iterable[tuple[str, str]], *, warn: bool) -> str:
    """What to do, each with the command that does it."""
    kind = "warning" if warn else "pale"
    return "".join(f'<p class="{kind}">{escape(text)} <code>{escape(command)}</code></p>' for text, command in told)


def figures(folder: Path, captions: Mapping[str, str]) -> str:
    """The pictures of a folder: those that have a caption, in the captions' order, then any others by their names."""
    there = {file.stem: file for file in sorted(folder.glob("*.png"))}
    order = [name for name in captions if name in there] + [name for name in there if name not in captions]
    shown = [_figure(there[name].read_bytes(), captions.get(name, name.replace("_", " "))) for name in order]
    return (
        f'<div class="figures">{"".join(shown)}</div>' if shown else paragraphs(["There are no pictures."], pale=True)
    )


def drawing(ax: Axes, caption: str) -> str:
    """A picture that is drawn for the page; its figure is closed."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("ax: expected Axes that belong to a figure.")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", bbox_inches="tight", dpi=150)
    plt.close(figure)
    return f'<div class="figures">{_figure(stream.getvalue(), caption)}</div>'


def _figure(image: bytes, caption: str) -> str:
    text, data = escape(caption), base64.b64encode(image).decode()
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        kind = "text long" if len(value) > _LONG else "text"
        return f'<td class="{kind}">{escape(value)}</td>'
    if not math.isfinite(value):
        return '<td data-value="">–</td>'
    shown = str(value) if isinstance(value, int) else f"{value:.4f}"
    return f'<td data-value="{value!r}">{escape(shown)}</td>'


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
