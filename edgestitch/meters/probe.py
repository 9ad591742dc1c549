"""Whether a meter reads something, from its readings.

Known to happen: all calls are refused although the library was initialised (Jetson Orin), every
reading is 0 and called a success (early drivers of Jetson Thor), the counter stands still.
"""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack

from edgestitch.errors import DeviceError

from . import Clock, Trace
from .recorder import PolledMeter, Readings
from .window import clock_jumped, ticks, update_period_s

BURN_S = 0.5
"""How long work is done under which the readings must change."""
PERIOD_CAP_S = 2.0
"""How long a counter is watched for its period at most."""
PERIOD_TICKS = 8
"""Updates after which its period is known well enough."""
ATTEMPTS = 3
"""Failures after which a meter that never read anything is given up."""


def probe(
    meter: PolledMeter,
    burn: Callable[[], object] | None,
    clock: Clock,
    sleep: Callable[[float], object],
) -> PolledMeter:
    """The meter with the reason why it does not work; a counter with its measured period."""
    meter = dataclasses.replace(meter, clock=clock)
    if meter.reason is not None:
        return meter
    trace = _watch(meter, burn, sleep)
    reason = _why_not(trace, burned=burn is not None)
    if reason is not None or meter.quantity == "power_w":
        return dataclasses.replace(meter, reason=reason)
    period_s = update_period_s(trace)
    if burn is not None and (period_s is None or period_s < 3 * _spacing_s(trace)):
        # Work that takes longer than an update hides updates.
        period_s = update_period_s(_watch(meter, None, sleep))
    if period_s is None:
        reason = f"the counter was updated less than three times in {PERIOD_CAP_S:g} s"
        return dataclasses.replace(meter, reason=reason)
    return dataclasses.replace(meter, period_s=period_s, poll_s=max(meter.poll_s, period_s / 10))


def _watch(
    meter: PolledMeter, burn: Callable[[], object] | None, sleep: Callable[[float], object]
) -> Trace:
    readings = Readings(meter)
    start = meter.clock()
    with ExitStack() as stack:
        try:
            read = stack.enter_context(meter.open())
        except (OSError, DeviceError) as error:
            readings.fail(error)
            return readings.trace()
        readings.take(read)
        while not _enough(meter, readings, (meter.clock() - start) / 1e9, burn is not None):
            if burn is None:
                sleep(meter.poll_s)
            else:
                burn()
            readings.take(read)
    return readings.trace()


def _enough(meter: PolledMeter, readings: Readings, elapsed_s: float, burning: bool) -> bool:
    hopeless = not readings.values and len(readings.failures) >= ATTEMPTS
    if hopeless or elapsed_s >= PERIOD_CAP_S:
        return True
    if burning and elapsed_s < BURN_S:
        return False
    if meter.quantity == "power_w":
        return burning or len(readings.values) >= 2 or len(readings.failures) >= ATTEMPTS
    return len(set(readings.values)) > PERIOD_TICKS


def _why_not(trace: Trace, *, burned: bool) -> str | None:
    if len(trace.values) < 2:
        return trace.failures[0].partition(": ")[2] if trace.failures else "no second reading"
    if clock_jumped(trace):
        return "the clock ran backwards while it was read"
    if not trace.values.any():
        return "all readings are 0 although they are said to succeed"
    if trace.quantity == "energy_mj" and len(ticks(trace)) == 0:
        return "the counter stands still"
    if burned and len(set(trace.values)) == 1:
        return f"it read {trace.values[0]:g} W and did not change under {BURN_S:g} s of work"
    return None


def _spacing_s(trace: Trace) -> float:
    return float(trace.times_ns[-1] - trace.times_ns[0]) / 1e9 / (len(trace.times_ns) - 1)
