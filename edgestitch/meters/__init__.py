"""Energy meters. A number that was not measured is null, with the reason: never 0, never a guess.

    meter = find_meter(device, totals=rails)      the best one that really reads something
    with meter.record() as recording:             a thread polls it meanwhile
        start = time.perf_counter_ns(); work(); stop = time.perf_counter_ns()
    window.energy(recording.trace, start, stop)   millijoules, or the reason why not

A meter is an energy counter or a power gauge. Which one reads is found out by reading it: a library
that loads and a file that is there prove nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from edgestitch.device import Device
    from edgestitch.nvml import Nvml

    from .recorder import PolledMeter

Clock = Callable[[], int]
Quantity = Literal["energy_mj", "power_w"]

# Modules of this package and their meters.
_MODULES = {
    "nvml": ("nvml-energy", "nvml-power"),
    "hwmon": ("ina238", "ina3221"),
    "rapl": ("rapl",),
}
NAMES = tuple(name for names in _MODULES.values() for name in names)
"""What `find_meter` knows, the best first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """What a meter said while it was recorded."""

    quantity: Quantity
    """A counter's energy, or a gauge's power."""
    times_ns: np.ndarray
    """int64, of the host's monotonic clock (`time.perf_counter_ns`): the middle of each reading."""
    values: np.ndarray
    """float64: millijoules since some fixed moment, or watts."""
    period_s: float
    """Between the sensor's updates (counter, measured) or between readings (gauge)."""
    resolution: float | None = None
    """Least step of the values, in their unit; `None` if unknown."""
    failures: tuple[str, ...] = ()
    """Readings that failed while it was recorded, in words, each with its time."""


class Recording(Protocol):
    @property
    def trace(self) -> Trace:
        """What was recorded; complete once the context was left."""


class Meter(Protocol):
    """What can tell the energy that a device uses."""

    @property
    def name(self) -> str:
        """One of `NAMES`, `replay` or `none`."""

    @property
    def scope(self) -> str:
        """What its number covers: `GPU`, `module (VDD_IN)`, `CPU package`."""

    @property
    def reason(self) -> str | None:
        """Why it cannot read; `None` if it can."""

    @property
    def period_s(self) -> float:
        """Between the sensor's updates (counter) or between readings (gauge)."""

    @property
    def lag_s(self) -> float:
        """How long a gauge still shows what was before: the time that it averages over."""

    @property
    def notes(self) -> Mapping[str, str]:
        """Settings of the sensor that its numbers depend on, for the profile."""

    def record(self) -> AbstractContextManager[Recording]:
        """Reads it until the context is left. Failures are in the trace, never raised."""


@dataclass(frozen=True)
class Recorded:
    """A recording that is over."""

    trace: Trace


@dataclass(frozen=True)
class NoMeter:
    """The meter of a device whose energy nothing here measures: its traces are empty."""

    reason: str | None
    name: str = "none"
    scope: str = "nothing"
    period_s: float = 0.0
    lag_s: float = 0.0
    notes: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> AbstractContextManager[Recording]:
        nothing = Trace(
            quantity="energy_mj",
            times_ns=np.empty(0, np.int64),
            values=np.empty(0),
            period_s=self.period_s,
            failures=(self.reason,) if self.reason else (),
        )
        return nullcontext(Recorded(nothing))


@dataclass(frozen=True)
class Tried:
    """A meter that was tried."""

    name: str
    scope: str
    reason: str | None
    """Why it does not work; `None` if it does."""


def find_meter(
    device: "Device",
    *,
    totals: Sequence[Sequence[str]] = (),
    burn: Callable[[], object] | None = None,
    root: Path = Path("/"),
    nvml: "Nvml | None" = None,
    only: str | None = None,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> Meter:
    """The best meter that works on a device, or a `NoMeter` that says why each one does not.

    A meter works if two readings succeed, they are not all zero, a counter counts, and, where
    there is a `burn`, they change while it runs: a short piece of work, called for half a second.

    `totals` are sets of rails whose sum is the board's power, the best first; the first set is read
    whose rails are all there and work. NVML is connected to unless given. `only` names the one meter to try,
    also one that covers another part than the device's.

    Raises:
        ValueError: `only` is no meter's name.
    """
    reasons = []
    for meter in _probed(device, totals, burn, root, nvml, only, clock, sleep):
        if meter.reason is None:
            return meter
        reasons.append(f"{meter.name}: {meter.reason}")
    return NoMeter("; ".join(reasons))


def survey(
    device: "Device",
    *,
    totals: Sequence[Sequence[str]] = (),
    burn: Callable[[], object] | None = None,
    root: Path = Path("/"),
    nvml: "Nvml | None" = None,
    only: str | None = None,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[Tried, ...]:
    """Every meter and why it does not work, the best first; arguments as of `find_meter`."""
    return tuple(
        Tried(meter.name, meter.scope, meter.reason)
        for meter in _probed(device, totals, burn, root, nvml, only, clock, sleep)
    )


def _probed(
    device: "Device",
    totals: Sequence[Sequence[str]],
    burn: Callable[[], object] | None,
    root: Path,
    nvml: "Nvml | None",
    only: str | None,
    clock: Clock,
    sleep: Callable[[float], object],
) -> "Iterator[PolledMeter]":
    if only is not None and only not in NAMES:
        raise ValueError(f"no meter {only!r}; there are {', '.join(NAMES)}")
    # Which part computes decides which meter sees the work; who names one knows what it covers.
    parts = {"cpu", "cuda"} if only else {device.accelerator}
    # By name, since each of them imports this module.
    probe = import_module(".probe", __name__).probe
    for module, names in _MODULES.items():
        if only is None or only in names:
            candidates = import_module(f".{module}", __name__).candidates
            for meter in _named(tuple(candidates(parts, totals, root, nvml)), only):
                yield probe(meter, burn, clock, sleep)


def _named(found: "tuple[PolledMeter, ...]", only: str | None) -> "tuple[PolledMeter, ...]":
    chosen = tuple(meter for meter in found if only in (None, meter.name))
    if chosen or only is None:
        return chosen
    other = found[0]
    reason = other.reason or f"the board's total is measured by the {other.name} alone"
    return (replace(other, name=only, reason=reason),)
