"""The best topology under a budget, and plans that answer any budget by one binary search."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Annotated, ClassVar

import msgspec

from .accuracy import Accuracy, Origin
from .artifact import Artifact, Value, digest
from .errors import InfeasibleError, MismatchError
from .profile import Profile, require_same_network

QUANTITIES = {"latency_ms": "ms", "energy_mj": "mJ", "power_w": "W"}
"""What a budget can bound, with the unit for messages."""


class Budget(Value, frozen=True, kw_only=True):
    """Upper bounds for one inference; `None` leaves a quantity free.

    A latency is a deadline: it is held against the bound of the 99th percentile, not the median.
    """

    latency_ms: float | None = None
    energy_mj: float | None = None
    power_w: float | None = None

    def __post_init__(self) -> None:
        for name in QUANTITIES:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"budget {name} must be a number, not {value!r}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"budget {name} must be above zero and finite, not {value}")

    @property
    def bounds(self) -> dict[str, float]:
        """The quantities that are bounded."""
        values = {name: getattr(self, name) for name in QUANTITIES}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        parts = [f"{value:g} {QUANTITIES[name]}" for name, value in self.bounds.items()]
        return ", ".join(parts) or "no bound"


class Candidate(Value, frozen=True, kw_only=True):
    """One topology's worth and costs, as far as they are known."""

    topology: str
    top1: float
    median_ms: float
    latency_ms: float
    """What a deadline is held against: the profile's bound of the 99th percentile."""
    energy_mj: float | None = None
    power_w: float | None = None

    def admitted(self, budget: Budget) -> bool:
        """Whether every bounded quantity is known and within its bound."""
        return all(
            (cost := getattr(self, name)) is not None and cost <= bound
            for name, bound in budget.bounds.items()
        )


def candidates(profile: Profile, accuracy: Accuracy) -> tuple[Candidate, ...]:
    """The topologies that have both a cost and an accuracy.

    Raises:
        MismatchError: the two are of different networks, or share no topology.
    """
    accuracy.check("profile", profile.family, profile.network)
    joined = []
    for cost in profile.costs:
        row = accuracy.by_topology.get(cost.topology)
        if row is None:
            continue
        joined.append(
            Candidate(
                topology=cost.topology,
                top1=row.top1,
                median_ms=cost.latency_ms,
                latency_ms=cost.bound_ms,
                energy_mj=cost.energy_mj,
                power_w=cost.power_w,
            )
        )
    if not joined:
        raise MismatchError(
            f"profile ({len(profile.costs)} topologies) and accuracy ({len(accuracy.rows)}) of "
            f"{profile.family} have no topology in common"
        )
    return tuple(joined)


def pareto_front(pool: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Candidates that no other one beats or equals in everything, fastest first.

    It covers every quantity that a budget can bound: choosing from the front loses nothing.
    """
    ordered = sorted(pool, key=lambda c: (-c.top1, _costs(c), c.topology))
    front: list[Candidate] = []
    for candidate in ordered:
        if not any(_dominates(kept, candidate) for kept in front):
            front.append(candidate)
    return tuple(sorted(front, key=lambda c: (c.latency_ms, c.top1)))


def _dominates(a: Candidate, b: Candidate) -> bool:
    """Whether `a` is at least as good in everything."""
    return a.top1 >= b.top1 and all(x <= y for x, y in zip(_costs(a), _costs(b), strict=True))


def _costs(c: Candidate) -> list[float]:
    """All costs; one that is not known is the worst."""
    known = (getattr(c, name) for name in (*QUANTITIES, "median_ms"))
    return [math.inf if value is None else value for value in known]


def choose(pool: Iterable[Candidate], budget: Budget) -> Candidate:
    """The most accurate candidate that the budget admits; of equals, the fastest.

    Raises:
        InfeasibleError: nothing fits; the message names the cheapest and by how much it misses.
    """
    pool = list(pool)
    fitting = [candidate for candidate in pool if candidate.admitted(budget)]
    if not fitting:
        raise InfeasibleError(f"no topology fits {budget}: {_nearest_miss(pool, budget)}")
    return max(fitting, key=lambda c: (c.top1, -c.latency_ms, -c.median_ms))


def _nearest_miss(pool: Sequence[Candidate], budget: Budget) -> str:
    parts = []
    for name, bound in budget.bounds.items():
        unit = QUANTITIES[name]
        known = [c for c in pool if getattr(c, name) is not None]
        if not known:
            parts.append(f"no {name} was measured, so {bound:g} {unit} cannot be judged")
            continue
        cheapest = min(known, key=lambda c: getattr(c, name))
        cost = getattr(cheapest, name)
        if cost > bound:
            miss = f"{cost - bound:.3g} {unit} too much"
            parts.append(f"the cheapest, {cheapest.topology}, takes {cost:.3g} {unit}, {miss}")
    return "; ".join(parts) or "each bound alone can be met, but not all together"


class Choice(Value, frozen=True, kw_only=True):
    """What a plan answers to one of the budgets it was made for."""

    budget: Budget
    topology: str
    feasible: bool = True
    """Whether the topology is within the budget; if not, it is the fastest there is."""


class Plan(Artifact, frozen=True, kw_only=True, dict=True, omit_defaults=True):
    """Which topologies stay resident, and which of them is used under which budget."""

    kind: ClassVar[str] = "plan"
    version: ClassVar[int] = 1

    family: str
    network: str | None
    """Digest of the weights; `None`: neither profile nor accuracy are of certain ones."""
    profile: str
    accuracy: str
    """Digests of the artifacts that it was made from."""
    origin: Origin = "measured"
    """Of the accuracies; published ones are of other weights than those of the plan."""
    estimated: bool = False
    """Whether costs of it are estimates from the device's descriptor, not measured."""
    resident: Annotated[tuple[Candidate, ...], msgspec.Meta(min_length=1)]
    """Fastest first; the first one is the safety topology, used when nothing fits."""
    choices: tuple[Choice, ...]

    @property
    def safety(self) -> Candidate:
        """The topology to run when no budget can be met: the fastest."""
        return self.resident[0]

    def choose(self, budget: Budget) -> Candidate:
        """The most accurate resident topology within the budget.

        Under a latency alone this is one binary search.

        Raises:
            InfeasibleError: none fits; the message names the cheapest and by how much it misses.
        """
        if budget.bounds.keys() == {"latency_ms"}:
            assert budget.latency_ms is not None
            latencies, best = self._staircase
            step = bisect_right(latencies, budget.latency_ms)
            if step:
                return best[step - 1]
        return choose(self.resident, budget)

    @cached_property
    def _staircase(self) -> tuple[list[float], list[Candidate]]:
        return staircase(self.resident)


def front_along(points: Iterable[tuple[str, float, float]]) -> list[str]:
    """Names of the Pareto front of points (name, cost, top-1) along that one cost, cheapest first."""
    _, steps = staircase(
        Candidate(topology=name, top1=top1, median_ms=cost, latency_ms=cost)
        for name, cost, top1 in points
    )
    return [step.topology for step in steps]


def staircase(pool: Iterable[Candidate]) -> tuple[list[float], list[Candidate]]:
    """Latencies, ascending, and the most accurate candidate that is allowed from each one on."""
    steps: list[Candidate] = []
    for candidate in sorted(pool, key=lambda c: (c.latency_ms, -c.top1, c.median_ms)):
        if not steps or candidate.top1 > steps[-1].top1:
            steps.append(candidate)
    return [candidate.latency_ms for candidate in steps], steps


def plan(profile: Profile, accuracy: Accuracy, budgets: Budget | Sequence[Budget] = ()) -> Plan:
    """The plan for a budget or several; without any, for whatever may come.

    Resident are the topology for each budget and the fastest one; without budgets the whole Pareto
    front.

    Raises:
        InfeasibleError: a budget that no topology fits.
        MismatchError: profile and accuracy do not belong together.
    """
    budgets = (budgets,) if isinstance(budgets, Budget) else tuple(budgets)
    front = pareto_front(candidates(profile, accuracy))
    chosen = [choose(front, budget) for budget in budgets]
    return _plan(profile, accuracy, (front[0], *(chosen if budgets else front)), budgets)


def with_costs(plan: Plan, profile: Profile, accuracy: Accuracy) -> Plan:
    """The plan's resident topologies with the costs of another profile, its budgets answered anew.

    A budget that none of them meets any more is answered by the fastest and marked as infeasible.

    Raises:
        MismatchError: the profile lacks one of them, or is of another network.
    """
    require_same_network("plan and profile", plan.network, profile.network)
    known = {candidate.topology: candidate for candidate in candidates(profile, accuracy)}
    for candidate in plan.resident:
        profile.predict(candidate.topology)  # names what is missing
    resident = [known[candidate.topology] for candidate in plan.resident]
    return _plan(profile, accuracy, resident, tuple(choice.budget for choice in plan.choices))


def _plan(
    profile: Profile,
    accuracy: Accuracy,
    resident: Iterable[Candidate],
    budgets: Sequence[Budget],
) -> Plan:
    unique = {candidate.topology: candidate for candidate in resident}
    ordered = tuple(sorted(unique.values(), key=lambda c: (c.latency_ms, c.top1)))
    return Plan(
        family=profile.family,
        network=profile.network or accuracy.network,
        profile=digest(profile),
        accuracy=digest(accuracy),
        origin=accuracy.origin,
        estimated=profile.estimated,
        resident=ordered,
        choices=tuple(_answer(ordered, budget) for budget in budgets),
    )


def _answer(resident: Sequence[Candidate], budget: Budget) -> Choice:
    try:
        return Choice(budget=budget, topology=choose(resident, budget).topology)
    except InfeasibleError:
        return Choice(budget=budget, topology=resident[0].topology, feasible=False)
