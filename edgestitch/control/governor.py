"""Which topology keeps the deadline, now that the device is slower than it was when profiled.

    governor = Governor(plan.resident, fixed_ms=fixed_ms(profile))
    decision = governor.decide(budget_ms)            # before a call, half a microsecond
    governor.observe(decision.candidate.topology, latency_ms, budget_ms)   # after it

A topology is allowed whose `profiled bound x slowdown x margin` is within the budget, and that the plan
allows: a device that is faster than profiled changes nothing. What has become slower counts at once,
what has become faster only after `dwell` calls that all say so, and by more than `RISE`. A call that is
slower than noise explains may be the first of a step: the next one runs what would fit then.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from math import ceil, exp, inf, log
from typing import Literal, NamedTuple

from edgestitch.artifact import Value
from edgestitch.schedule import Candidate, staircase

from .margin import Margin
from .slowdown import Slowdown

LEAST_MS = 1e-6
"""A nanosecond: what takes less was not measured."""
RISE = 0.02
"""Share of a budget by which there must be more room before a more accurate topology is tried."""


HEDGE = 1.5
"""Standard deviations of the device's share of a slowdown that are kept away from at other budgets."""


class Decision(NamedTuple):
    """What to run."""

    candidate: Candidate
    feasible: bool
    """Whether it is expected to keep the deadline; if not, it is the fastest there is."""


class Status(Value, frozen=True, kw_only=True):
    """A governor's view of the device."""

    state: Literal["as profiled", "slowed", "infeasible"]
    """`infeasible`: nothing was expected to keep the last deadline."""
    slowdown: float
    """Factor on what the device computes."""
    host_slowdown: float
    """Factor on the fixed part of a call; 1 where that is not known."""
    noise: float
    """Standard deviation of a latency around its prediction, relative."""
    margin: float
    """Factor on the profile's bounds, beside the slowdown."""
    target: float
    """Share of deadlines that may be missed."""
    deadlines: int
    misses: int
    infeasible: int
    """Deadlines that nothing was expected to keep; they are among the deadlines."""
    ignored: int
    """Latencies that were none, or of topologies that the plan does not have."""
    steps: int
    """Sudden changes of speed that were followed."""

    @property
    def miss_rate(self) -> float | None:
        """`None`: there was no deadline so far."""
        return self.misses / self.deadlines if self.deadlines else None


class _Steps(NamedTuple):
    """The staircase; replaced as a whole, so that readers need no lock."""

    bounds_ms: list[float]
    answers: list[Decision]
    """For each number of steps that are within a budget."""


class _Room(NamedTuple):
    """What profiled bounds a budget has room for.

    Straight lines: `slope x budget + offset` is known well between what the last call needed and what
    it had. Farther off it depends on how much of a slowdown is the host's, which a step leaves open:
    each millisecond is worth `doubt` less there, in both directions.
    """

    slope: float = 1.0
    offset: float = 0.0
    doubt: float = 0.0
    low_ms: float = 0.0
    high_ms: float = inf

    def at(self, budget_ms: float) -> float:
        slope, offset, doubt, low_ms, high_ms = self
        allowed = slope * budget_ms + offset
        if budget_ms < low_ms:
            return allowed - doubt * (low_ms - budget_ms)
        return allowed - doubt * (budget_ms - high_ms) if budget_ms > high_ms else allowed


class Governor:
    """Chooses a topology for each call, and learns from what the call took.

    `decide` and `observe` are called by one thread at a time; `admit` and `status` by any.

    Args:
        candidates: Those of a plan that are resident.
        fixed_ms: What every call takes however small the network, if known: `slowdown.fixed_ms`.
        target: Share of deadlines that may be missed.
        dwell: Calls that must all say that the device has become faster.
    """

    def __init__(
        self,
        candidates: Iterable[Candidate],
        *,
        fixed_ms: float = 0.0,
        target: float = 0.01,
        dwell: int = 5,
    ) -> None:
        if dwell < 1:
            raise ValueError(f"dwell must be 1 or more, not {dwell}")
        self.slowdown = Slowdown(fixed_ms)
        # Of a window there must be some scores beyond the quantile, or it is one frame's whim.
        self.margin = Margin(target, window=max(1000, ceil(5 / target)) if target > 0 else 1000)
        self._fixed_ms = fixed_ms
        self._dwell = dwell
        known = tuple(candidates)
        self._known = {candidate.topology: candidate for candidate in known}
        self.admit(known)
        self.reset()

    def reset(self) -> None:
        """Forgets what it has seen: the profile holds."""
        self.slowdown.reset()
        self.margin.reset()
        self._room = self._rising_room = _Room()
        self._rising = 0
        self._hurry = 1.0  # factor on the budget of a call after an alarm
        self._reference_ms = self._steps.bounds_ms[-1]
        self._needed_ms = 0.0
        self._feasible = True
        self._deadlines = self._misses = self._infeasible = self._ignored = 0

    def admit(self, candidates: Iterable[Candidate]) -> None:
        """Chooses among these from now on: those that have not failed, and that other budgets admit.

        Raises:
            ValueError: there are none.
        """
        pool = tuple(candidates)
        if not pool:
            raise ValueError("a governor needs a candidate or more")
        bounds, steps = staircase(pool)
        answers = [Decision(steps[0], False), *(Decision(step, True) for step in steps)]
        self._steps = _Steps(bounds, answers)

    def decide(self, budget_ms: float | None) -> Decision:
        """What to run in that time; `None` is for a call without a deadline.

        No time left, or not a number: the fastest.
        """
        bounds, answers = self._steps
        if budget_ms is None:
            return answers[-1]
        if not budget_ms > 0:
            return answers[0]
        found = bisect_right(bounds, min(self._room.at(budget_ms), budget_ms))
        if self._hurry < 1 and found > 1:  # one call is no reason to say that nothing fits
            found = min(found, max(bisect_right(bounds, self._room.at(self._hurry * budget_ms)), 1))
        return answers[found]

    def observe(self, topology: str, latency_ms: float, deadline_ms: float | None = None) -> None:
        """Takes in what a call took and what it had, both from the moment of its decision."""
        candidate = self._known.get(topology)
        if candidate is None or not LEAST_MS <= latency_ms < inf:
            self._ignored += 1
            return
        expected_ms = self.slowdown.predict(candidate.latency_ms) * self.slowdown.caution
        score = log(latency_ms / expected_ms)
        missed = score > self.margin.log
        if deadline_ms is not None:
            late = not latency_ms <= deadline_ms
            self._deadlines += 1
            self._misses += late
            self._feasible = self.decide(deadline_ms).feasible
            self._infeasible += not self._feasible
            # Where the plan is what limits, or nothing fits, deadlines say nothing of the margin.
            if expected_ms * self.margin.factor <= deadline_ms and self._limits(deadline_ms):
                missed = late
        steps = self.slowdown.steps
        self.slowdown.observe(candidate.median_ms, latency_ms)
        self.margin.observe(score, missed, stepped=self.slowdown.steps > steps)
        self._hurry = exp(-self.slowdown.alarm)
        self._needed_ms = self.slowdown.predict(candidate.latency_ms) * self._factor
        if deadline_ms is not None:
            # What was left to a late call is no time to compare topologies at.
            self._reference_ms = max(self._steps.bounds_ms[0], deadline_ms)
        self._follow()

    def clocks(self, profiled_mhz: Mapping[str, float], now_mhz: Mapping[str, float]) -> None:
        """Takes in the clocks before a call, where reading them takes less than they tell.

        `profiled_mhz` are the medians of the profile's protocol, `now_mhz` those of the sensors.
        """
        self.slowdown.clocks(profiled_mhz, now_mhz)
        self._follow()

    def _limits(self, budget_ms: float) -> bool:
        """Whether this, and not the plan, is why nothing more accurate runs."""
        bounds = self._steps.bounds_ms
        return bisect_right(bounds, self._room.at(budget_ms)) < bisect_right(bounds, budget_ms)

    @property
    def _factor(self) -> float:
        """Between a prediction and the budget that it needs."""
        return self.margin.factor * self.slowdown.caution

    def _follow(self) -> None:
        """Allows less at once and more after a while, as it shows at the last deadline."""
        slowdown, budget_ms = self.slowdown, self._reference_ms
        slope = 1 / (slowdown.device * self._factor)
        room = _Room(
            slope,
            self._fixed_ms * (1 - slowdown.host / slowdown.device),
            slope * (1 - exp(-HEDGE * slowdown.doubt)),
            self._needed_ms,
            max(self._needed_ms, budget_ms),
        )
        allowed, held = room.at(budget_ms), self._room.at(budget_ms)
        if allowed < held:
            self._room, self._rising = room, 0
        elif allowed < held + RISE * budget_ms:
            self._rising = 0
        else:
            if not self._rising or allowed < self._rising_room.at(budget_ms):
                self._rising_room = room
            self._rising += 1
            if self._rising >= self._dwell:
                self._room, self._rising = self._rising_room, 0

    def status(self) -> Status:
        """The figures of now."""
        slowdown, margin = self.slowdown, self.margin
        state: Literal["as profiled", "slowed", "infeasible"] = "as profiled"
        if not self._feasible:
            state = "infeasible"
        elif slowdown.device * margin.factor > 1 + RISE or slowdown.host > 1 + RISE:
            state = "slowed"
        return Status(
            state=state,
            slowdown=slowdown.device,
            host_slowdown=slowdown.host,
            noise=slowdown.noise,
            margin=margin.factor,
            target=margin.target,
            deadlines=self._deadlines,
            misses=self._misses,
            infeasible=self._infeasible,
            ignored=self._ignored,
            steps=slowdown.steps,
        )
