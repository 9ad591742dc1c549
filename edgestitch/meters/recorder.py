"""Reading a sensor again and again, in a thread of its own.

    stamp | read | stamp      wait      stamp | read | stamp      wait      ...
          `--x--' the reading's time is the middle

A reading that fails is missing: its words are kept, no number takes its place, and it is not tried
again before the next one is due. A sensor that is power-gated answers EAGAIN for as long as it is.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from . import Clock, Quantity, Recording, Trace

Read = Callable[[], float]
"""One reading: millijoules of a counter or watts of a gauge."""

_PATIENCE_S = 5.0
"""How long a driver may take for one reading before it is given up."""


@dataclass(frozen=True, kw_only=True)
class PolledMeter:
    """A meter that is read in intervals; see `Meter` for the fields that it has in common."""

    name: str
    scope: str
    quantity: Quantity
    open: Callable[[], AbstractContextManager[Read]]
    """Opens the sensor for one recording; what it yields is called from one thread."""
    poll_s: float
    """From the end of a reading to the next."""
    period_s: float
    lag_s: float = 0.0
    reason: str | None = None
    resolution: float | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    clock: Clock = time.perf_counter_ns

    def record(self) -> AbstractContextManager[Recording]:
        return Recorder(self)


class Readings:
    """The readings so far, with their stamps, and the failures."""

    def __init__(self, meter: PolledMeter) -> None:
        self._meter = meter
        self._start_ns = meter.clock()
        self.times_ns: list[int] = []
        self.values: list[float] = []
        self.failures: list[str] = []

    def take(self, read: Read) -> None:
        """Reads once."""
        before = self._meter.clock()
        try:
            value = read()
        except Exception as error:  # whatever a driver may think of; it is kept in words
            self.fail(error)
        else:
            self.values.append(value)
            self.times_ns.append((before + self._meter.clock()) // 2)

    def fail(self, error: Exception) -> None:
        elapsed_s = (self._meter.clock() - self._start_ns) / 1e9
        self.failures.append(f"after {elapsed_s:.3f} s: {error or type(error).__name__}")

    def trace(self) -> Trace:
        count = len(self.times_ns)  # a thread may still be adding; values come first
        return Trace(
            quantity=self._meter.quantity,
            times_ns=np.asarray(self.times_ns[:count], np.int64),
            values=np.asarray(self.values[:count], np.float64),
            period_s=self._meter.period_s,
            resolution=self._meter.resolution,
            failures=tuple(self.failures),
        )


class Recorder:
    """Reads a meter in a thread while its context lasts: once at the beginning, once at the end."""

    def __init__(self, meter: PolledMeter) -> None:
        self._meter = meter
        self._readings = Readings(meter)
        self._begun = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name=f"meter {meter.name}", daemon=True)

    @property
    def trace(self) -> Trace:
        return self._readings.trace()

    def __enter__(self) -> "Recorder":
        self._thread.start()
        # What is measured begins after the first reading: power is interpolated between two.
        self._begun.wait(_PATIENCE_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            self._readings.fail(TimeoutError(f"no answer from the sensor for {_PATIENCE_S:g} s"))

    def _poll(self) -> None:
        try:
            with self._meter.open() as read:
                self._readings.take(read)
                self._begun.set()
                while not self._stop.wait(self._meter.poll_s):
                    self._readings.take(read)
                self._readings.take(read)
        except Exception as error:  # the sensor went away since it was found
            self._readings.fail(error)
        finally:
            self._begun.set()
