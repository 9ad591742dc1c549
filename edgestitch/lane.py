"""The topologies of a deployment at work on images of one batch size: which one runs, and its runs."""

import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from .backends import Resident
from .control import Governor, PowerLoop, fixed_ms
from .deployment import Deployment
from .errors import InfeasibleError
from .frames import Frames
from .mixing import Mix
from .residents import Residents
from .schedule import Budget, Candidate, Plan, choose, with_idle


class Active(NamedTuple):
    """A topology and how to run it."""

    candidate: Candidate
    resident: Resident
    feasible: bool
    """Whether the plan has a topology for the budgets; if not, this is the fastest one."""


class Lane:
    """What runs under a budget, of what is ready.

    Args:
        topologies: keep only these of the deployment's resident ones; `None`: all.
        guard: held while a topology runs.
        strict: raise where nothing fits a budget.
        miss_rate: share of deadlines that may be missed; the device's slowdown is followed so that no
            more are. `None`: the profile is taken to hold.

    Raises:
        ValueError: a topology is not resident.
    """

    def __init__(
        self,
        deployment: Deployment,
        topologies: Iterable[object] | None,
        guard: threading.Lock,
        *,
        strict: bool,
        miss_rate: float | None = None,
    ) -> None:
        self.deployment = deployment
        self.frames = Frames.of(deployment.manifest.family, deployment.input_shape)
        self._kept = _kept(deployment.plan, topologies)
        self.plan = self._kept
        """Without the topologies that have failed."""
        self._strict = strict
        self._control = threading.Lock()
        self._pinned: Active | None = None  # written alone: a switch costs one attribute
        self._pins: dict[str, Active] = {}
        self._budget = Budget()
        self._each = Budget()
        """What of the budget each frame keeps; the rest holds in the mean."""
        self._turns: _Turns | None = None
        """The topologies in turn that the plan has for the budget."""
        self.governor: Governor | None = None
        if miss_rate is not None:
            self.governor = Governor(
                self.plan.resident, fixed_ms=fixed_ms(deployment.profile), target=miss_rate
            )
        self.power: PowerLoop | None = None
        """What holds an average power; `None`: none is asked for."""
        self.residents = Residents(deployment, self.topologies, guard, self._refresh)

    def load_first(self) -> None:
        """Makes the fastest topology ready; the rest are up to `residents`."""
        self.residents.load_first()
        self._refresh()

    def _refresh(self) -> None:
        """Goes by what is ready now."""
        ready, failed = self.residents.ready, self.residents.failed
        with self._control:
            left = tuple(
                c for c in self._kept.resident if c.topology in ready or c.topology not in failed
            )
            self.plan = msgspec.structs.replace(self._kept, resident=left)
            if self._pinned and self._pinned.candidate.topology not in ready:
                self._pinned = None
            self._admit()

    def _admit(self) -> None:
        """Lets the governor choose among what is ready and within the budgets beside the latency."""
        if self.governor is None:
            return
        ready = dict(self.residents.ready)
        if not ready:  # closed
            return
        beside = msgspec.structs.replace(self._each, latency_ms=None)
        pool = _pool([c for c in self.plan.resident if c.topology in ready], beside)
        self._fits = bool(pool)
        # First what is looked up, then what chooses: a reader between the two finds what it needs.
        self._actives = {
            (c.topology, feasible): Active(c, ready[c.topology], feasible)
            for c in self.plan.resident
            if c.topology in ready
            for feasible in (True, False)
        }
        pool = pool or [self._safety().candidate]
        self.governor.admit(pool)
        self._hold_power(pool)

    def _hold_power(self, pool: list[Candidate]) -> None:
        wanted_w = self._budget.average_w
        if wanted_w is None or all(candidate.energy_mj is None for candidate in pool):
            self.power = None
        elif self.power is None:
            rate_hz = self._budget.rate_hz
            self.power = PowerLoop(
                pool,
                wanted_w,
                period_ms=None if rate_hz is None else 1e3 / rate_hz,
                idle_w=self._budget.idle_w or 0.0,
            )
        else:
            self.power.admit(pool)

    # --- what runs ----------------------------------------------------------------------------

    @property
    def topologies(self) -> tuple[str, ...]:
        """The resident topologies, fastest first; those that failed are left out."""
        return tuple(candidate.topology for candidate in self.plan.resident)

    @property
    def budget(self) -> Budget:
        return self._budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        """Lets go of a pinned topology.

        Raises:
            InfeasibleError: the plan has nothing that fits and it is strict; the last budget stays in
                force.
        """
        budget, mix = self._answered(budget)
        with self._control:
            if mix is None:
                self.best(budget)
            if _pace(budget) != _pace(self._budget):
                self.power = None  # what was saved or owed was of another one
            self._budget = budget
            self._each = self._kept_by_each(budget, mix)
            self._turns = None if mix is None else _Turns(mix, self._kept)
            self._pinned = None
            self._admit()

    def check(self, budget: Budget) -> None:
        """Raises what making it the budget would raise."""
        budget, mix = self._answered(budget)
        if mix is None:
            self.best(budget)

    def _answered(self, budget: Budget) -> tuple[Budget, Mix | None]:
        """The budget with its idle power, and the mix that the plan has for it.

        A meter holds an average power, mixing by itself; there the plan's mix is not needed.
        """
        choice = self._kept.choice(budget)
        if choice is None:
            return with_idle(budget, self.deployment.profile), None
        known = {candidate.topology for candidate in self._kept.resident}
        mix = choice.mix
        if mix is None or (self.governor and choice.budget.average_w is not None):
            return choice.budget, None
        return choice.budget, mix if all(s.topology in known for s in mix.shares) else None

    def _kept_by_each(self, budget: Budget, mix: Mix | None) -> Budget:
        if mix is not None:
            return budget.per_frame
        if self.governor is None:
            return budget
        return msgspec.structs.replace(budget, power_w=None, battery_wh=None, duration_h=None)

    @property
    def active(self) -> Active:
        """What the next call runs, as far as it is known before it comes."""
        if self._pinned:
            return self._pinned
        found = self._in_time(self._budget.latency_ms, strict=False)
        if self.power:
            return self._with_power(found, self.power.peek(found.candidate))
        return self._in_turn(found, self._turns.next) if self._turns else found

    def next(self, left_ms: float | None, *, pinned: bool = True) -> Active:
        """What a call runs that has `left_ms` of its deadline left; `None`: it has none.

        With `pinned` what is pinned runs, if something is.

        Raises:
            InfeasibleError: nothing would meet it and it is strict.
        """
        if pinned and self._pinned:
            return self._pinned
        found = self._in_time(left_ms, strict=self._strict)
        if self.power:
            return self._with_power(found, self.power.decide(found.candidate))
        return self._in_turn(found, self._turns.take()) if self._turns else found

    def _in_turn(self, found: Active, candidate: Candidate) -> Active:
        """What is next in the plan's mix, or what was found for the deadline where that is faster."""
        resident = self.residents.ready.get(candidate.topology)
        if resident is None or found.candidate.latency_ms < candidate.latency_ms:
            return found
        return Active(candidate, resident, found.feasible)

    def _with_power(self, found: Active, candidate: Candidate) -> Active:
        """What was found for the deadline, or the more frugal topology that the power allows."""
        assert self.power is not None
        key = (candidate.topology, found.feasible and self.power.feasible)
        return self._actives.get(key, found)

    def _in_time(self, left_ms: float | None, *, strict: bool) -> Active:
        """The most accurate topology in that time and within the other budgets."""
        if self.governor is None:
            return self._planned(left_ms, strict=strict)
        candidate, feasible = self.governor.decide(left_ms)
        enough = candidate.top1 >= (self._each.min_top1 or 0.0)
        feasible = feasible and self._fits and enough
        if strict and not feasible:
            raise InfeasibleError(
                f"nothing that is ready keeps a deadline {left_ms} ms away: the device is "
                f"{self.governor.slowdown.device:.2f} times as slow as profiled"
            )
        return self._actives.get((candidate.topology, feasible)) or self._safety()

    def _planned(self, left_ms: float | None, *, strict: bool) -> Active:
        """The same by the profile alone."""
        if left_ms is not None and left_ms <= 0:
            if strict:
                raise InfeasibleError(f"the deadline passed {-left_ms:.3g} ms ago")
            return self._safety()
        budget = msgspec.structs.replace(self._each, latency_ms=left_ms)
        try:
            return self.best(budget)
        except InfeasibleError:
            if strict:
                raise
            return self._safety()

    def best(self, budget: Budget) -> Active:
        """The most accurate topology within a budget; the fastest if there is none.

        Raises:
            InfeasibleError: there is none and it is strict.
        """
        try:
            wanted = self.plan.choose(budget)
        except InfeasibleError:
            if self._strict:
                raise
            return self._safety()
        resident = self.residents.ready.get(wanted.topology)
        return Active(wanted, resident, True) if resident else self._stand_in(budget)

    def _stand_in(self, budget: Budget) -> Active:
        """The best that is ready, while what the plan has for a budget is being loaded."""
        ready = dict(self.residents.ready)
        try:
            found = choose((c for c in self.plan.resident if c.topology in ready), budget)
        except InfeasibleError:
            return self._safety()
        return Active(found, ready[found.topology], True)

    def _safety(self) -> Active:
        """The fastest one that is ready, for when nothing fits."""
        ready = dict(self.residents.ready)
        if not ready:
            raise RuntimeError("this Runtime is closed; open a new one")
        found = next(c for c in self._kept.resident if c.topology in ready)
        return Active(found, ready[found.topology], False)

    def switch(self, topology: str) -> None:
        """Pins a topology until a budget is set; one that is still being loaded is waited for.

        Raises:
            ValueError: it is not resident, or has failed.
        """
        self._pinned = self._pins.get(topology) or self._pin(topology)

    def _pin(self, topology: str) -> Active:
        candidate = next((c for c in self.plan.resident if c.topology == topology), None)
        if candidate is None or not self.residents.wait_for(topology):
            failure = self.residents.failed.get(topology)
            why = f"failed ({failure})" if failure else "is not resident"
            raise ValueError(f"{topology} {why}; resident are {', '.join(self.topologies)}")
        active = Active(candidate, self.residents.ready[topology], True)
        self._pins[topology] = active
        return active

    # --- running ------------------------------------------------------------------------------

    def run(self, active: Active, values: Any, left_ms: float | None) -> tuple[Active, Any]:
        """The logits, and the topology that they are of: another one where one fails."""
        began = time.monotonic_ns()
        try:
            logits = _logits(active.resident, values)
        except Exception as error:  # of a driver, an engine, an allocator: all mean the same
            return self._run_another(active, values, error)
        if self.governor:
            latency_ms = (time.monotonic_ns() - began) / 1e6
            self.governor.observe(active.candidate.topology, latency_ms, left_ms)
        return active, logits

    def _run_another(self, active: Active, values: Any, error: Exception) -> tuple[Active, Any]:
        while True:
            active = self._instead_of(active.candidate.topology, error)
            try:
                return active, _logits(active.resident, values)
            except Exception as another:
                error = another

    def _instead_of(self, topology: str, error: Exception) -> Active:
        """What runs from now on, since a topology has failed."""
        self._pins.pop(topology, None)
        self.residents.fail(topology, error)
        if not self.residents.ready:
            self.residents.fall_back()
        self._refresh()
        return self._safety()

    def stop(self) -> None:
        """Lets go of what was loaded."""
        self.residents.stop()
        self._pins.clear()


class _Turns:
    """The topologies of a mix, one a frame; `next` is looked at, `take` takes it."""

    def __init__(self, mix: Mix, plan: Plan) -> None:
        self._known = {candidate.topology: candidate for candidate in plan.resident}
        self._sequence = mix.sequence()
        self.next = self._known[next(self._sequence)]

    def take(self) -> Candidate:
        taken, self.next = self.next, self._known[next(self._sequence)]
        return taken


def _pool(there: list[Candidate], budget: Budget) -> list[Candidate]:
    """What a deadline may choose from: all that is within the other bounds.

    Under a least accuracy the cheapest that has it, and what is faster, for when that would be late.
    """
    within = [candidate for candidate in there if candidate.admitted(budget)]
    if budget.min_top1 is None or not within:
        return within
    wanted = choose(within, budget)
    others = msgspec.structs.replace(budget, min_top1=None, minimise=None)
    faster = [c for c in there if c.latency_ms < wanted.latency_ms and c.admitted(others)]
    return [*faster, wanted]


def _pace(budget: Budget) -> tuple[float | None, float | None, float | None]:
    """What a power loop is about."""
    return budget.average_w, budget.rate_hz, budget.idle_w


def _kept(plan: Plan, topologies: Iterable[object] | None) -> Plan:
    """The plan with only some of its resident topologies."""
    if topologies is None:
        return plan
    names = dict.fromkeys(map(str, topologies))
    known = {candidate.topology for candidate in plan.resident}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f"{', '.join(unknown) or 'nothing'} is not resident in this deployment, which has "
            f"{', '.join(candidate.topology for candidate in plan.resident)}"
        )
    kept = tuple(candidate for candidate in plan.resident if candidate.topology in names)
    return msgspec.structs.replace(plan, resident=kept)


def _logits(resident: Resident, values: Any) -> Any:
    """Of an image in host memory, or of one on the accelerator, where they stay."""
    if isinstance(values, np.ndarray):
        return resident.run(values)
    if resident.on_device:
        return resident.on_device(values)
    return resident.run(values.cpu().numpy())
