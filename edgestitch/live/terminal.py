"""The live view in a terminal: a table that follows the run, or a line a second where there is none."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgestitch.control.thread import running

from .view import View, words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

REFRESH_HZ = 4
LINE_S = 1.0
"""From line to line."""


@contextmanager
def followed(view: View, console: "Console") -> Iterator[None]:
    """Shows the run on a console until the context is left; the last state stays."""
    if not console.is_terminal:
        with running(lambda stop: _lines(view, console, stop), "edgestitch-lines"):
            yield
        console.print(_line(view), soft_wrap=True, highlight=False, markup=False)
        return
    from rich.live import Live

    # In rich's own thread, so that drawing takes nothing from the time of a frame.
    with Live(get_renderable=lambda: _table(view), console=console, refresh_per_second=REFRESH_HZ):
        yield


def _lines(view: View, console: "Console", stop: threading.Event) -> None:
    while not stop.wait(LINE_S):
        console.print(_line(view), soft_wrap=True, highlight=False, markup=False)


def _line(view: View) -> str:
    status, _ = view.look()
    said = {name: word for name, word in words(status).items() if word}
    return f"{status.time_s:.0f} s  " + "  ".join(f"{name} {word}" for name, word in said.items())


def _table(view: View) -> "Table":
    from rich.table import Table
    from rich.text import Text

    status, _ = view.look()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    styles = {
        "topology": "bold",
        "missed": "red" if status.missed else "",
        "state": {"OK": "green", "WARN": "yellow", "ERROR": "red"}[status.level],
    }
    for name, word in words(status).items():
        # Text, so that no name is taken for markup.
        table.add_row(name, Text(word or "-", style=styles.get(name, "")))
    return table
