"""A runtime at work while somebody watches it and moves its budget: in a browser and in the terminal.

view       what is shown, drawn from a recorder
server     the page, its stream, and the way back
terminal   the same as a table
"""

import time
from collections.abc import Sequence
from itertools import cycle, islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgestitch.data import LabelledImages
from edgestitch.runlog import Recorder
from edgestitch.runtime import Runtime
from edgestitch.session import batches

from .server import Server
from .terminal import followed
from .view import Status, View

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Server", "Status", "View", "watch_session"]


def watch_session(
    runtime: Runtime,
    data: LabelledImages,
    *,
    console: "Console",
    rate_hz: float = 30.0,
    frames: int | None = None,
    bind: str = "127.0.0.1",
    port: int = 0,
    log: Path | None = None,
) -> Status:
    """Runs images in turn, as a camera would bring them, while a page and a table follow.

    It ends after `frames`, or when it is interrupted; either way the page is told, the log is
    written, and no thread is left.

    Args:
        runtime: whose budgets the page changes.
        data: images; after the last one the first one follows.
        console: where the URL and the table go; where it is no terminal, a line a second.
        rate_hz: frames in a second, 0 for one after the other. What a slow frame makes late is left
            out, as a camera's driver does.
        frames: how many; `None`: until it is interrupted.
        bind: address that the page is served at; other than loopback it warns.
        port: of the page, 0 for any that is free.
        log: file of the run log.

    Raises:
        ValueError: a rate that is none, or images that do not fit the network.
        DeviceError: the port or the address cannot be had.
        EdgestitchError: the libraries of the extra `live` are not installed.
        ArtifactError: the log cannot be written.
    """
    if not (isfinite(rate_hz) and rate_hz >= 0):
        raise ValueError(f"rate_hz must be a number from 0, not {rate_hz}")
    images, _ = batches(runtime, data)
    recorder = Recorder(runtime)
    # First, so that no log of before is replaced where the port cannot be had.
    server = Server(runtime, recorder, bind=bind, port=port)
    with recorder.saving(log), server:
        console.print(f"live view: {server.url}", soft_wrap=True, highlight=False, markup=False)
        with followed(View(runtime, recorder), console):
            _feed(runtime, recorder, images, rate_hz, frames)
    return View(runtime, recorder).look()[0]


def _feed(
    runtime: Runtime,
    recorder: Recorder,
    images: Sequence[np.ndarray],
    rate_hz: float,
    frames: int | None,
) -> None:
    period_s = 1 / rate_hz if rate_hz else 0.0
    due_s = time.perf_counter()
    for image in islice(cycle(images), frames):
        recorder.frame(runtime.infer(image))
        due_s += period_s
        left_s = due_s - time.perf_counter()
        if left_s > 0:
            time.sleep(left_s)
        elif period_s:
            due_s += -left_s // period_s * period_s  # the frames that came meanwhile
