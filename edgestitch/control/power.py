"""An average power held by what a meter says.

    loop = PowerLoop(plan.resident, budget_w=12, period_ms=33.3, idle_w=4)
    decision = loop.decide()               # each frame: the steps around the allowed energy, mixed
    loop.reading(time_s, power_w)          # each update of the meter, in watts

The profile says what a call of each step uses; a frame may use `budget x period`. Two neighbouring
steps are mixed by error diffusion (Floyd and Steinberg 1976, in one dimension), so that their sum stays
within one frame of what is allowed. The loop around it:

    scale         measured over predicted power: what the profile is wrong by (proportional part)
    debt          integral of measured power - budget: paid back over `REPAY_S` (integral part)
    allowed       (budget - debt / REPAY_S) / scale

A meter that says nothing, or the same number for too long, is not believed: the last scale is held, then
the profile's own numbers are used, and `state` says so.
"""

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import exp, isfinite
from typing import Literal

from edgestitch.errors import DeviceError
from edgestitch.meters import Meter
from edgestitch.meters.window import mean_power_w
from edgestitch.schedule import Candidate

from .thread import running

SMOOTH_S = 3.0
"""Time over which measured and predicted power are compared; longer than gauges average over."""
REPAY_S = 5.0
"""Time in which what was used too much is saved again."""
MOST_OWED_S = 3.0
"""Seconds of the budget that the debt is bounded by, so that a long rest is no licence."""
HOLD_S = 1.0
"""Age of a reading from which on the last scale is held."""
PATIENCE_S = 3.0
"""Age of a reading, or of its last change, from which on the profile's numbers are used."""


_Point = tuple[float, float, Candidate]
"""Average power while frames are all of this step, milliseconds from one to the next, the step."""


class PowerLoop:
    """Which step each frame runs, so that the average power is that of the budget.

    One thread decides; another may bring the readings.

    Args:
        candidates: Those that have a measured energy; `admit` changes them.
        budget_w: Average of all that the meter's scope covers.
        period_ms: From frame to frame, as a camera asks; `None`: back to back.
        idle_w: Power of the device while it waits for the next frame, if the profile has it.

    Raises:
        DeviceError: none of them has a measured energy.
    """

    def __init__(
        self,
        candidates: Iterable[Candidate],
        budget_w: float,
        *,
        period_ms: float | None = None,
        idle_w: float = 0.0,
    ) -> None:
        for name, value in {"budget_w": budget_w, "period_ms": period_ms}.items():
            if value is not None and not (isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above zero and finite, not {value}")
        self._budget_w = budget_w
        self._period_ms = period_ms
        self._idle_w = idle_w
        self.admit(candidates)
        self.reset()

    def admit(self, candidates: Iterable[Candidate]) -> None:
        """Mixes these from now on.

        Raises:
            DeviceError: none of them has a measured energy.
        """
        points = []
        for candidate in candidates:
            if candidate.energy_mj is not None:
                slot_ms = max(candidate.median_ms, self._period_ms or 0.0)
                waits_ms = slot_ms - candidate.median_ms
                energy_mj = candidate.energy_mj + self._idle_w * waits_ms
                points.append((energy_mj / slot_ms, slot_ms, candidate))
        if not points:
            raise DeviceError(
                "a power budget needs measured energy, and no topology has one; use a latency "
                "budget, or profile with a meter"
            )
        self._points = {point[2].topology: point for point in points}
        self._hull = _hull(points)
        self._powers_w = [power_w for power_w, _, _ in self._hull]

    def reset(self) -> None:
        """Forgets all readings: the profile's numbers hold."""
        self.state: Literal["profile", "measured", "holding"] = "profile"
        """Which numbers the next frame goes by."""
        self.reason = "no reading so far"
        """Why not by the meter's; empty if it does."""
        self.scale = 1.0
        self.debt_j = 0.0
        """What was used beyond the budget; below 0, what is left of it."""
        self._bank_mj = 0.0
        self._predicted_w: float | None = None
        self._smooth_w: float | None = None
        self._used_mj = self._took_ms = 0.0
        self._time_s: float | None = None
        self._value_w: float | None = None
        self._changed_s = 0.0

    @property
    def budget_w(self) -> float:
        return self._budget_w

    @property
    def allowed_w(self) -> float:
        """Average power by the profile's numbers that the next frames may have."""
        return max((self._budget_w - self.debt_j / REPAY_S) / self.scale, 0.0)

    @property
    def feasible(self) -> bool:
        """Whether the most frugal step is within what is allowed."""
        return self._powers_w[0] <= self.allowed_w

    def decide(self, at_most: Candidate | None = None) -> Candidate:
        """The step that the next frame runs; `at_most` is what its deadline allows, if it has one."""
        candidate = self.peek(at_most)
        if candidate.topology not in self._points:
            return candidate
        power_w, slot_ms, _ = self._points[candidate.topology]
        if not self._powers_w[0] <= self.allowed_w < self._powers_w[-1]:
            self._bank_mj = 0.0  # nothing is mixed, so nothing is saved for later
        # What is saved is spent as soon as there is some: the sum never strays by a frame's energy.
        most = (self._powers_w[-1] - self._powers_w[0]) * slot_ms
        banked = self._bank_mj + (self.allowed_w - power_w) * slot_ms
        self._bank_mj = min(max(banked, -most), most)
        self._used_mj += power_w * slot_ms
        self._took_ms += slot_ms
        return candidate

    def peek(self, at_most: Candidate | None = None) -> Candidate:
        """What `decide` would answer."""
        step = self._mixed()
        if at_most is not None and at_most.latency_ms < step[2].latency_ms:
            return at_most  # where what it uses is not known, the deadline comes first all the same
        return step[2]

    def _mixed(self) -> _Point:
        """The step above what is allowed if there is something saved, else that below."""
        hull, above = self._hull, bisect_right(self._powers_w, self.allowed_w)
        if above == 0 or above == len(hull):  # nothing to mix
            return hull[max(above - 1, 0)]
        return hull[above if self._bank_mj >= 0 else above - 1]

    def reading(self, time_s: float, power_w: float | None) -> None:
        """Takes in the mean power since the last reading, or that there is none (`None`).

        Readings that are no number, below zero, or not later than the one before count as none.
        Called as well when the meter is silent, once a second or so, since that is how it is noticed.
        """
        if not isfinite(time_s) or (self._time_s is not None and time_s < self._time_s):
            return
        if power_w is None or not (isfinite(power_w) and power_w >= 0):
            self._silent(time_s, "the meter does not answer")
            return
        if power_w != self._value_w:
            self._value_w, self._changed_s = power_w, time_s
        elif time_s - self._changed_s >= PATIENCE_S:
            self._stop_believing(
                f"the meter has said {power_w:g} W for {PATIENCE_S:g} s and longer"
            )
            self._time_s = time_s
            return
        elapsed_s = 0.0 if self._time_s is None else time_s - self._time_s
        self._time_s = time_s
        if self.state != "measured":
            self.state, self.reason = "measured", ""
            self._predicted_w = self._smooth_w = None  # of before the gap
            self._used_mj = self._took_ms = 0.0
            return
        self._learn(elapsed_s, power_w)

    def _learn(self, elapsed_s: float, power_w: float) -> None:
        if elapsed_s <= 0 or self._took_ms <= 0:
            return
        predicted_w = self._used_mj / self._took_ms
        self._used_mj = self._took_ms = 0.0
        weight = 1 - exp(-elapsed_s / SMOOTH_S)
        # Both through the same filter, so that a change of the mix alone does not look like an error.
        if self._smooth_w is None or self._predicted_w is None:
            self._smooth_w, self._predicted_w = power_w, predicted_w
        self._smooth_w += weight * (power_w - self._smooth_w)
        self._predicted_w += weight * (predicted_w - self._predicted_w)
        if self._predicted_w > 0:
            self.scale = min(max(self._smooth_w / self._predicted_w, 0.25), 4.0)
        most = MOST_OWED_S * self._budget_w
        owed = self.debt_j + (power_w - self._budget_w) * elapsed_s
        self.debt_j = min(max(owed, -most), most)

    def _silent(self, time_s: float, why: str) -> None:
        if self._time_s is None:
            return
        age_s = time_s - self._time_s
        if age_s >= PATIENCE_S:
            self._stop_believing(f"{why}, for {PATIENCE_S:g} s and longer")
        elif age_s >= HOLD_S and self.state == "measured":
            self.state, self.reason = "holding", why

    def _stop_believing(self, why: str) -> None:
        """Goes by the profile; a scale above 1 stays, since to use less is the safe side."""
        self.state, self.reason = "profile", f"{why}: going by the profile's numbers"
        self.scale = max(self.scale, 1.0)
        self.debt_j = max(self.debt_j, 0.0)


@contextmanager
def readings(
    find: Callable[[], Meter], tell: Callable[[float, float | None], object], period_s: float = 1.0
) -> Iterator[None]:
    """Brings a meter's mean power once a period, in a thread of its own, until the context is left.

    Args:
        find: Gives the meter; it is called in that thread, since looking for one takes a while.
        tell: Called with the end of each period, in seconds of the host's monotonic clock, and the
            mean power in watts, or `None` where the meter did not say.
        period_s: Over which each mean is taken.
    """

    def work(stop: threading.Event) -> None:
        meter = find()
        while meter.reason is None and not stop.is_set():
            with meter.record() as recording:
                start_ns = time.perf_counter_ns()
                stop.wait(period_s)
                end_ns = time.perf_counter_ns()
            tell(end_ns / 1e9, mean_power_w(recording.trace, start_ns, end_ns))

    with running(work, "edgestitch-power"):
        yield


def _hull(points: list[_Point]) -> list[_Point]:
    """Those between which a mixture is more accurate than any other of the same power.

    What is mixed is frames of equal length where frames come at a period; back to back, frames of a
    dearer step are longer, and this is close.
    """
    hull: list[_Point] = []
    for point in sorted(points, key=lambda p: (p[0], -p[2].top1)):
        if hull and point[2].top1 <= hull[-1][2].top1:
            continue
        while len(hull) > 1 and _below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _below(left: _Point, middle: _Point, right: _Point) -> bool:
    """Whether a mixture of the outer two is as good as the middle one."""
    gain = (right[2].top1 - left[2].top1) * (middle[0] - left[0])
    return (middle[2].top1 - left[2].top1) * (right[0] - left[0]) <= gain
