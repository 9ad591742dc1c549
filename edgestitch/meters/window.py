"""From a meter's trace to the energy of a window in it: arithmetic only.

    counter   ....|....:....|.........|.........|..:......|    | the counter was updated
                  start     `---- energy -------'  stop        : the window asked for

A counter is updated in steps, so the energy between two arbitrary moments is wrong by up to a step
at each end (a second of a 100 ms counter: 20 %). Between two updates it is right: the window is
shrunk to the first and the last one in it. A gauge's power is interpolated linearly between
readings and integrated over the very window.
"""

from dataclasses import dataclass

import numpy as np

from . import Trace

MAX_GAP_PERIODS = 5
"""Readings of a gauge further apart than so many periods leave a hole in which nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The energy of a window, or why there is none."""

    energy_mj: float | None
    start_ns: int
    stop_ns: int
    """The window that the energy is of; the one asked for, where there is none."""
    readings: int
    """In the window."""
    largest_gap_s: float | None
    """Between two readings; `None` without two of them."""
    error_mj: float | None
    """Bound of what the steps of values and times can amount to, not of the sensor's own error;
    `None` if unknown."""
    reason: str | None

    @property
    def duration_s(self) -> float:
        return (self.stop_ns - self.start_ns) / 1e9


def energy(trace: Trace, start_ns: int, stop_ns: int) -> Reading:
    """The energy used between two moments, or the reason why it is not known.

    Raises:
        ValueError: the window does not end after it starts.
    """
    if stop_ns <= start_ns:
        raise ValueError(f"a window from {start_ns} to {stop_ns} ns is none; stop after the start")
    if len(trace.times_ns) == 0:
        return _unknown(trace, start_ns, stop_ns, "there is no reading")
    if clock_jumped(trace):
        return _unknown(trace, start_ns, stop_ns, "the clock ran backwards while it was recorded")
    of = _counted if trace.quantity == "energy_mj" else _integrated
    return of(trace, start_ns, stop_ns)


def mean_power_w(trace: Trace, start_ns: int, stop_ns: int) -> float | None:
    """Mean power over the window that `energy` covers; `None` where that has a reason."""
    reading = energy(trace, start_ns, stop_ns)
    return None if reading.energy_mj is None else reading.energy_mj / 1e3 / reading.duration_s


def update_period_s(trace: Trace) -> float | None:
    """Median time between two updates of a counter; `None` with fewer than three updates.

    No shorter than the time between readings: updates between two of them look like one.
    """
    times = trace.times_ns[ticks(trace)]
    return float(np.median(np.diff(times))) / 1e9 if len(times) >= 3 else None


def ticks(trace: Trace) -> np.ndarray:
    """Indices of the readings that differ from the one before: the first after an update."""
    return np.flatnonzero(np.diff(trace.values)) + 1


def clock_jumped(trace: Trace) -> bool:
    """Whether a reading is stamped earlier than the one before it."""
    return bool((np.diff(trace.times_ns) < 0).any())


def _counted(trace: Trace, start_ns: int, stop_ns: int) -> Reading:
    times, values = trace.times_ns, trace.values
    updates = ticks(trace)
    inside = updates[(times[updates] >= start_ns) & (times[updates] <= stop_ns)]
    if (np.diff(values)[inside - 1] < 0).any():
        return _unknown(trace, start_ns, stop_ns, "the counter was reset (driver reloaded)")
    if len(inside) < 2:
        return _unknown(
            trace,
            start_ns,
            stop_ns,
            f"the counter was updated {len(inside)} times, two are needed: the window is too short "
            f"for its period of {trace.period_s:.3g} s",
        )
    first, last = int(inside[0]), int(inside[-1])
    return Reading(
        energy_mj=float(values[last] - values[first]),
        start_ns=int(times[first]),
        stop_ns=int(times[last]),
        readings=last - first + 1,
        largest_gap_s=_largest_gap_s(times[first : last + 1]),
        error_mj=_counting_error_mj(trace, inside),
        reason=None,
    )


def _counting_error_mj(trace: Trace, updates: np.ndarray) -> float:
    """One step of the values, and what was used between an update and its being seen.

    An update is seen up to one reading late. At the start that takes energy away, at the end it
    adds, so the larger of both is the bound, at the highest power there can have been between two
    updates, as far as one can see.
    """
    times, values = trace.times_ns, trace.values
    first, last = int(updates[0]), int(updates[-1])
    late_ns = max(int(times[i] - times[i - 1]) for i in (first, last))
    energy_mj, duration_ns = float(values[last] - values[first]), int(times[last] - times[first])
    step = trace.resolution or 0.0
    if duration_ns <= late_ns:  # of two readings only: either may be off by all that lies between
        return energy_mj + step
    steepest = np.diff(values[updates]) / np.maximum(np.diff(times[updates]), 1)
    return max(float(steepest.max()), energy_mj / (duration_ns - late_ns)) * late_ns + step


def _integrated(trace: Trace, start_ns: int, stop_ns: int) -> Reading:
    times, values = trace.times_ns, trace.values
    if times[0] > start_ns or times[-1] < stop_ns:
        return _unknown(trace, start_ns, stop_ns, "the readings do not cover the window")
    # The readings that enclose the window, since power at its ends lies between two of them.
    first = int(np.searchsorted(times, start_ns, "right")) - 1
    last = int(np.searchsorted(times, stop_ns, "left"))
    gap_s = _largest_gap_s(times[first : last + 1])
    if gap_s is not None and gap_s > MAX_GAP_PERIODS * trace.period_s:
        return _unknown(
            trace,
            start_ns,
            stop_ns,
            f"no reading for {gap_s:.3g} s, more than {MAX_GAP_PERIODS} periods of "
            f"{trace.period_s:.3g} s",
        )
    inside = (times > start_ns) & (times < stop_ns)
    moments = np.concatenate(([start_ns], times[inside], [stop_ns]))
    # Nanoseconds since boot have too many digits for a product of floats.
    since_s = (moments - start_ns) / 1e9
    powers = np.interp(since_s, (times - start_ns) / 1e9, values)
    joules = float(np.sum(np.diff(since_s) * (powers[1:] + powers[:-1])) / 2)
    return Reading(
        energy_mj=joules * 1e3,
        start_ns=start_ns,
        stop_ns=stop_ns,
        readings=int(((times >= start_ns) & (times <= stop_ns)).sum()),
        largest_gap_s=gap_s,
        error_mj=None if trace.resolution is None else trace.resolution * float(since_s[-1]) * 1e3,
        reason=None,
    )


def _unknown(trace: Trace, start_ns: int, stop_ns: int, reason: str) -> Reading:
    if trace.failures:
        reason += f"; {len(trace.failures)} readings failed, the first {trace.failures[0]}"
    times = trace.times_ns[(trace.times_ns >= start_ns) & (trace.times_ns <= stop_ns)]
    return Reading(
        energy_mj=None,
        start_ns=start_ns,
        stop_ns=stop_ns,
        readings=len(times),
        largest_gap_s=_largest_gap_s(times),
        error_mj=None,
        reason=reason,
    )


def _largest_gap_s(times: np.ndarray) -> float | None:
    return float(np.diff(times).max()) / 1e9 if len(times) >= 2 else None
