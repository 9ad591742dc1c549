"""A meter from a file or from memory: what an external power meter wrote, or a trace of before.

The file is CSV. Its header says which: `time_s,power_w` for a gauge, `time_s,energy_mj` for a
counter. A line that begins with `#` and a space tells of a reading that failed.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from math import isfinite
from pathlib import Path
from typing import get_args

import numpy as np

from edgestitch.artifact import read, write
from edgestitch.errors import ArtifactError

from . import Clock, Quantity, Recording, Trace
from .window import update_period_s


@dataclass(frozen=True)
class ReplayMeter:
    """A meter that says again what a trace says, at the moments of the trace.

    A recording holds the part of the trace that lies between its start and its end on `clock`, and
    the readings just before and after. See `load_trace` for how to bring a file to that clock.
    """

    source: Trace
    clock: Clock = time.perf_counter_ns
    name: str = "replay"
    scope: str = "what the external meter covers"
    reason: str | None = None
    lag_s: float = 0.0
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def period_s(self) -> float:
        return self.source.period_s

    @contextmanager
    def record(self) -> Iterator[Recording]:
        recording = _Replayed(self.source, self.clock())
        try:
            yield recording
        finally:
            recording.stop_ns = self.clock()


class _Replayed:
    def __init__(self, source: Trace, start_ns: int) -> None:
        self._source = source
        self._start_ns = start_ns
        self.stop_ns: int | None = None

    @property
    def trace(self) -> Trace:
        times = self._source.times_ns
        stop_ns = self._start_ns if self.stop_ns is None else self.stop_ns
        first = max(int(np.searchsorted(times, self._start_ns, "right")) - 1, 0)
        last = int(np.searchsorted(times, stop_ns, "left")) + 1
        return replace(
            self._source, times_ns=times[first:last], values=self._source.values[first:last]
        )


def load_trace(path: Path, *, zero_ns: int = 0) -> Trace:
    """The trace in a CSV file; `zero_ns` is what the monotonic clock showed at its time 0.

    Raises:
        ArtifactError: the file is missing or no such CSV; the message has the line.
    """
    try:
        lines = read(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is no text: {error}") from error
    rows = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
    quantity = _quantity(path, rows[0][1] if rows else "")
    numbers = [_numbers(path, n, line) for n, line in rows[1:]]
    times_ns = np.array([zero_ns + t for t, _ in numbers], np.int64)
    if len(times_ns) < 2 or (np.diff(times_ns) <= 0).any():
        raise ArtifactError(f"{path}: needs two readings or more, each later than the one before")
    trace = Trace(
        quantity=quantity,
        times_ns=times_ns,
        values=np.array([value for _, value in numbers], np.float64),
        period_s=float(np.median(np.diff(times_ns))) / 1e9,
        failures=tuple(line[2:] for line in lines if line.startswith("# ")),
    )
    if quantity == "power_w":
        return trace
    return replace(trace, period_s=update_period_s(trace) or trace.period_s)


def save_trace(trace: Trace, path: Path) -> None:
    """Writes a trace as `load_trace` reads it, to the nanosecond and the last digit."""
    lines = [f"time_s,{trace.quantity}"]
    lines += [
        f"{Decimal(int(t)).scaleb(-9):f},{float(value)!r}"
        for t, value in zip(trace.times_ns, trace.values, strict=True)
    ]
    lines += [f"# {' '.join(failure.split())}" for failure in trace.failures]
    write(path, ("\n".join(lines) + "\n").encode())


def _quantity(path: Path, header: str) -> Quantity:
    found = [column.strip() for column in header.split(",")]
    quantities: tuple[Quantity, ...] = get_args(Quantity)
    for quantity in quantities:
        if found == ["time_s", quantity]:
            return quantity
    raise ArtifactError(
        f"{path} begins with {header!r}; its first line must be time_s,power_w or time_s,energy_mj"
    )


def _numbers(path: Path, number: int, line: str) -> tuple[int, float]:
    try:
        moment, value = line.split(",")
        pair = int(Decimal(moment.strip()).scaleb(9)), float(value)
    except (ValueError, OverflowError, InvalidOperation):
        pair = 0, float("nan")
    if not isfinite(pair[1]):
        raise ArtifactError(f"{path}, line {number}: {line!r} are not two finite numbers")
    return pair
