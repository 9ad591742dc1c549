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
from .residents import Residents
from .schedule import Budget, Candidate, Plan, choose


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
        # A power is kept in the mean, which is not for each topology.
        beside = msgspec.structs.replace(self._budget, latency_ms=None, power_w=None)
        pool = [c for c in self.plan.resident if c.topology in ready and c.admitted(beside)]
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
        wanted_w = self._budget.power_w
        if wanted_w is None or all(candidate.energy_mj is None for candidate in pool):
            self.power = None
        elif self.power is None or self.power.budget_w != wanted_w:
            self.power = PowerLoop(pool, wanted_w)
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
        with self._control:
            self.best(budget)
            self._budget = budget
            self._pinned = None
            self._admit()

    @property
    def active(self) -> Active:
        """What the next call runs, as far as it is known before it comes."""
        if self._pinned:
            return self._pinned
        found = self._in_time(self._budget.latency_ms, strict=False)
        return self._with_power(found, self.power.peek(found.candidate)) if self.power else found

    def next(self, left_ms: float | None, *, pinned: bool = True) -> Active:
        """What a call runs that has `left_ms` of its deadline left; `None`: it has none.

        With `pinned` what is pinned runs, if something is.

        Raises:
            InfeasibleError: nothing would meet it and it is strict.
        """
        if pinned and self._pinned:
            return self._pinned
        found = self._in_time(left_ms, strict=self._strict)
        return self._with_power(found, self.power.decide(found.candidate)) if self.power else found

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
        feasible = feasible and self._fits
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
        budget = msgspec.structs.replace(self._budget, latency_ms=left_ms)
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
