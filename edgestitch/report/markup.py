"""HTML from values: text that stays text, tables, sections."""

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from .units import decimals

T = TypeVar("T")
R = TypeVar("R")

text = html.escape


def paragraph(words: str) -> str:
    """A note; what stands between backticks is code."""
    said = re.sub("`([^`]+)`", r"<code>\1</code>", text(words))
    return f'<p class="note">{said}</p>'


def section(heading: str, content: str, name: str, *, css: str = "") -> str:
    """A part of the page; `name` is what links lead to."""
    kind = f' class="{css}"' if css else ""
    return f'<section id="{name}"{kind}><h2>{text(heading)}</h2>{content}</section>'


def definitions(items: Iterable[tuple[str, str]]) -> str:
    pairs = (f"<div><dt>{text(term)}</dt><dd>{text(words)}</dd></div>" for term, words in items)
    return f"<dl>{''.join(pairs)}</dl>"


def picture(name: str, label: str, *, controls: str = "") -> str:
    """Where the page's script draws; `label` says what is seen, for those who cannot."""
    return (
        f'<div class="picture"><div class="controls">{controls}</div>'
        f'<div class="legend" id="{name}-legend" role="group" aria-label="Show" hidden></div>'
        f'<div class="plot" id="{name}" role="img" aria-label="{text(label)}"></div>'
        '<noscript><p class="note">The picture needs JavaScript. The tables hold the same numbers.'
        "</p></noscript></div>"
    )


def choices(name: str, legend: str) -> str:
    """Where the script puts radio buttons."""
    return f'<fieldset id="{name}" hidden><legend>{text(legend)}</legend></fieldset>'


def folded(summary: str, content: str) -> str:
    """What is read on demand; on paper it is open."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


class Column(NamedTuple):
    """A column of a table; where a cell is `None`, the table says what is missing."""

    head: str
    cells: Sequence[str | None]
    css: str = "number"
    missing: str = "not measured"


def numbers(head: str, values: Sequence[float | None], missing: str = "not measured") -> Column:
    """A column of numbers in one precision, so that they compare at a glance."""
    places = decimals(values)
    return Column(head, each(values, lambda value: f"{value:.{places}f}"), missing=missing)


def each(values: Iterable[T | None], function: Callable[[T], R]) -> list[R | None]:
    return [None if value is None else function(value) for value in values]


def table(caption: str, columns: Sequence[Column], css: Sequence[str] = ()) -> str:
    """A table whose first column heads the rows; `css` has the classes of each row."""
    heads = "".join(f'<th scope="col" class="{c.css}">{text(c.head)}</th>' for c in columns)
    body = []
    for index, head in enumerate(columns[0].cells):
        cells = "".join(_cell(column, index) for column in columns[1:])
        first = f'<th scope="row" class="{columns[0].css}">{text(head or "")}</th>'
        body.append(f'\n<tr class="{css[index] if css else ""}">{first}{cells}</tr>')
    return framed(caption, f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody>")


def framed(caption: str, content: str, css: str = "") -> str:
    """A table that scrolls by itself where it is wider than the page, by keyboard as well."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="{css}"><caption>{text(caption)}</caption>{content}</table></div>'
    )


def _cell(column: Column, index: int) -> str:
    words = column.cells[index]
    if words is None:
        return f'<td class="{column.css} missing">{text(column.missing)}</td>'
    return f'<td class="{column.css}">{text(words)}</td>'


def as_json(data: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element: without a `<`, which could end it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
