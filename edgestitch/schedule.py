"""The best topology under a budget, and plans that answer any budget by one binary search.

candidates   what each topology is worth and costs, at the quantile that deadlines are held at
choose       the best one under a budget; `mixture` the best shares of several in turn
plan         what stays resident, what each budget gets, and how sure that is
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from .accuracy import Accuracy, Origin
from .artifact import Artifact, Value, digest
from .errors import InfeasibleError, MismatchError
from .mixing import MeanBound, Mix, Share, best_shares, mean
from .profile import Certificate, Cost, Profile, require_equal, require_same_network
from .residency import Memory, Residency, Scenario, keep

if TYPE_CHECKING:
    import numpy as np

QUANTITIES = {"latency_ms": "ms", "energy_mj": "mJ", "power_w": "W"}
"""What a budget can bound of one inference, with the unit for messages."""

QUANTILE = 0.99
"""At which a deadline is held unless another quantile is asked for."""

CONFIDENCE = 0.975
"""Of a quantile's upper bound."""

FAR = 100
"""A budget so many times beyond all there is to choose from is asked about."""

DRAWS = 1000
"""Of costs and accuracies within their errors: a probability is good to three points."""


class Budget(Value, frozen=True, kw_only=True, omit_defaults=True):
    """Upper bounds; `None` leaves a quantity free, and any of them go together.

    A latency is a deadline: it is held against a bound of a high quantile, not the median.

    Without `rate_hz`, energy is that of an inference, and power the average while one follows the
    other. With it, both are of a whole period, the device idle for what an inference leaves of it,
    and an inference must end within its period.
    """

    latency_ms: float | None = None
    energy_mj: float | None = None
    power_w: float | None = None
    rate_hz: float | None = None
    """Frames in a second."""
    idle_w: float | None = None
    """What the device uses while it waits; a plan takes it from the profile."""
    battery_wh: float | None = None
    duration_h: float | None = None
    """How long the battery must last: together they bound the average power."""
    min_top1: float | None = None
    """The least accuracy, in percent. What has it is not chosen for being more accurate, but
    cheaper."""
    minimise: Literal["latency", "energy"] | None = None
    """What is to be least of the topologies that are accurate enough; `None`: latency."""

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"budget {name} must be a number, not {value!r}")
            zero = value == 0 and name == "idle_w"  # a device may be switched off while it waits
            if not (math.isfinite(value) and (value > 0 or zero)):
                raise ValueError(f"budget {name} must be above zero and finite, not {value}")
        if (self.battery_wh is None) != (self.duration_h is None):
            raise ValueError(
                "a battery is a budget of energy over a time: give battery_wh and duration_h together"
            )
        if self.min_top1 is not None and self.min_top1 > 100:
            raise ValueError(f"budget min_top1 is in percent, at most 100, not {self.min_top1:g}")
        if self.minimise is not None and self.min_top1 is None:
            raise ValueError(
                f"to minimise {self.minimise} alone gives the cheapest topology, whatever it is worth; "
                "give min_top1 with it, the accuracy that is enough"
            )

    @property
    def bounds(self) -> dict[str, float]:
        """The quantities of one inference that are bounded."""
        values = {name: getattr(self, name) for name in QUANTITIES}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def battery_w(self) -> float | None:
        """The average power that the battery allows."""
        if self.battery_wh is None or self.duration_h is None:
            return None
        return self.battery_wh / self.duration_h

    @property
    def average_w(self) -> float | None:
        """The average power that it allows: the lower one of its power and its battery's."""
        found = [power for power in (self.power_w, self.battery_w) if power is not None]
        return min(found, default=None)

    @property
    def per_frame(self) -> "Budget":
        """What of it every frame must keep; the rest holds in the mean. See `mixture`."""
        return Budget(latency_ms=self.latency_ms, rate_hz=self.rate_hz)

    @property
    def frame_mj(self) -> float | None:
        """The average energy that a frame may take, idling included; the least of all bounds."""
        found = [] if self.energy_mj is None else [self.energy_mj]
        if self.rate_hz is not None:
            found += [] if self.average_w is None else [1e3 * self.average_w / self.rate_hz]
        return min(found, default=None)

    @property
    def paced(self) -> bool:
        """Whether energy or power are bounded over whole periods, so that idle power matters."""
        bounded = (self.energy_mj, self.power_w, self.battery_wh, self.minimise == "energy" or None)
        return self.rate_hz is not None and any(bound is not None for bound in bounded)

    @property
    def only_latency(self) -> bool:
        return (
            self.energy_mj is None
            and self.power_w is None
            and self.rate_hz is None
            and self.battery_wh is None
            and self.min_top1 is None
        )

    def __str__(self) -> str:
        parts = [f"{value:g} {QUANTITIES[name]}" for name, value in self.bounds.items()]
        if self.battery_wh is not None:
            parts.append(f"{self.battery_wh:g} Wh for {self.duration_h:g} h")
        if self.rate_hz is not None:
            parts.append(f"{self.rate_hz:g} Hz")
        if self.min_top1 is not None:
            parts.append(f"top-1 of {self.min_top1:g} % or more")
        return ", ".join(parts) or "no bound"


_NUMBERS = (*QUANTITIES, "rate_hz", "idle_w", "battery_wh", "duration_h", "min_top1")


class Candidate(Value, frozen=True, kw_only=True):
    """One topology's worth and costs, as far as they are known."""

    topology: str
    top1: float
    median_ms: float
    latency_ms: float
    """What a deadline is held against: the profile's bound of the 99th percentile, or of the
    quantile that was asked for."""
    energy_mj: float | None = None
    power_w: float | None = None

    def admitted(self, budget: Budget) -> bool:
        """Whether every bounded quantity is known and within its bound."""
        return all(limit.admits(self) for limit in _limits(budget))

    def frame_mj(self, rate_hz: float, idle_w: float) -> float | None:
        """Mean energy from one frame to the next at a rate, idling in between. See `_frame_mj`."""
        if self.energy_mj is None or self.power_w is None:
            return None
        return float(_frame_mj(self.energy_mj, self.power_w, rate_hz, idle_w))


def _frame_mj(energy_mj: Any, power_w: Any, rate_hz: float, idle_w: float) -> Any:
    """E - idle t + idle T: what is used above idle, and idle power through the whole period.

    `t` is the time that the energy was measured over, E over its mean power. It is what ALERT (Wan
    et al. 2020) takes a period to use; milliseconds times watts are millijoules.
    """
    return energy_mj * (1 - idle_w / power_w) + idle_w * 1e3 / rate_hz


@dataclass(frozen=True)
class _Limit:
    """One of a budget's bounds, with what a candidate has of it.

    `cost` takes a candidate, or anything with its fields, such as arrays of many.
    """

    name: str
    unit: str
    bound: float
    cost: Callable[[Any], Any]
    least: bool = False
    """Whether the bound is the least that is allowed, not the most."""
    mean: bool = False
    """Whether a mix may keep it in the mean only."""

    def admits(self, candidate: Candidate) -> bool:
        cost = self.cost(candidate)
        return cost is not None and self.over(cost) <= 0

    def over(self, cost: Any) -> Any:
        """How much of it is too much, or missing."""
        return self.bound - cost if self.least else cost - self.bound

    def miss(self, pool: Sequence[Candidate]) -> str | None:
        """By how much the best of the pool misses the bound; `None`: it does not."""
        known = [c for c in pool if self.cost(c) is not None]
        if not known:
            return f"no {self.name} was measured, so {self.bound:g} {self.unit} cannot be judged"
        best = min(known, key=lambda c: self.over(self.cost(c)))
        cost = self.cost(best)
        over = self.over(cost)
        if over <= 0:
            return None
        if self.least:
            return (
                f"the most accurate, {best.topology}, has {cost:.4g} {self.unit}, {over:.3g} points "
                "too few"
            )
        miss = f"{over:.3g} {self.unit.split()[0]} too much"
        return f"the cheapest, {best.topology}, takes {cost:.3g} {self.unit}, {miss}"


def _limits(budget: Budget) -> list[_Limit]:
    """What a budget asks of a candidate.

    Raises:
        ValueError: a rate with a bound on energy or power, and no idle power.
    """
    found = []
    if budget.latency_ms is not None:
        found.append(_Limit("latency_ms", "ms", budget.latency_ms, lambda c: c.latency_ms))
    if budget.rate_hz is not None:
        period_ms = 1e3 / budget.rate_hz
        found.append(_Limit("median_ms", f"ms at {budget.rate_hz:g} Hz", period_ms, _median))
    energy, power = _energy(budget), _power(budget)
    if budget.energy_mj is not None:
        found.append(_Limit("energy_mj", _unit("mJ", budget), budget.energy_mj, energy, mean=True))
    if budget.power_w is not None:
        found.append(_Limit("power_w", _unit("W", budget), budget.power_w, power, mean=True))
    if budget.battery_w is not None:
        unit = _unit("W", budget) + " of battery"
        found.append(_Limit("power_w", unit, budget.battery_w, power, mean=True))
    if budget.min_top1 is not None:
        limit = _Limit("top1", "%", budget.min_top1, lambda c: c.top1, least=True, mean=True)
        found.append(limit)
    return found


def _unit(unit: str, budget: Budget) -> str:
    return unit if budget.rate_hz is None else f"{unit} at {budget.rate_hz:g} Hz"


def _median(candidate: Any) -> Any:
    return candidate.median_ms


def _energy(budget: Budget) -> Callable[[Any], Any]:
    """What a candidate takes of a budget's energy: of an inference, or of a whole period."""
    rate_hz, idle_w = budget.rate_hz, budget.idle_w
    if rate_hz is None or not budget.paced:
        return lambda c: c.energy_mj
    if idle_w is None:
        raise ValueError(
            f"a budget of {budget} needs the power of the idle device: profile with a meter, or give "
            "idle_w (0 for a device that is switched off between frames)"
        )

    def frame_mj(candidate: Any) -> Any:
        if candidate.energy_mj is None or candidate.power_w is None:
            return None
        return _frame_mj(candidate.energy_mj, candidate.power_w, rate_hz, idle_w)

    return frame_mj


def _power(budget: Budget) -> Callable[[Any], Any]:
    """A candidate's average power: of an inference after the other, or of whole periods."""
    rate_hz = budget.rate_hz
    if rate_hz is None:
        return lambda c: c.power_w
    energy = _energy(budget)

    def mean_w(candidate: Any) -> Any:
        energy_mj = energy(candidate)
        return None if energy_mj is None else energy_mj * rate_hz / 1e3

    return mean_w


def candidates(
    profile: Profile,
    accuracy: Accuracy,
    *,
    quantile: float = QUANTILE,
    samples_ns: "Mapping[str, np.ndarray] | None" = None,
) -> tuple[Candidate, ...]:
    """The topologies that have both a cost and an accuracy.

    Deadlines are held at `quantile`; a topology whose latency is not known there is left out.
    `samples_ns` are the profile's (`measure.load_samples`), which know more quantiles than it does.

    Raises:
        InfeasibleError: no latency is known at that quantile; the message has those that are.
        MismatchError: the two are of different networks, or share no topology.
    """
    accuracy.check("profile", profile.family, profile.network)
    both = [cost for cost in profile.costs if cost.topology in accuracy.by_topology]
    if not both:
        raise MismatchError(
            f"profile ({len(profile.costs)} topologies) and accuracy ({len(accuracy.rows)}) of "
            f"{profile.family} have no topology in common"
        )
    joined = []
    for cost in both:
        bound_ms = latency_bound_ms(cost, quantile, (samples_ns or {}).get(cost.topology))
        if bound_ms is not None:
            joined.append(
                Candidate(
                    topology=cost.topology,
                    top1=accuracy.by_topology[cost.topology].top1,
                    median_ms=cost.latency_ms,
                    latency_ms=bound_ms,
                    energy_mj=cost.energy_mj,
                    power_w=cost.power_w,
                )
            )
    if not joined:
        most = max(map(highest_quantile, both))
        raise InfeasibleError(
            f"no latency is known at quantile {quantile:g}: this profile knows them up to {most:.5g}, "
            f"with {max(cost.samples for cost in both)} samples of a topology at most; profile with "
            f"{_samples_needed(quantile)} or more of each (--min-samples), all of them measured"
        )
    return tuple(joined)


def latency_bound_ms(
    cost: Cost, quantile: float, samples_ns: "Sequence[float] | np.ndarray | None" = None
) -> float | None:
    """What a deadline is held against: latency stays below in that share of calls.

    With samples it is the order statistic that bounds the quantile with 97.5 % confidence, whatever
    the distribution (David and Nagaraja 2003, section 7.1). Without, it is the bound of the next
    quantile above that the profile has: the median, the 99th percentile, or, above that, the largest
    sample where there are so many that it bounds the quantile: `n >= log(0.025) / log(quantile)`,
    which for 99.9 % are 3,688. `None`: not known.

    Raises:
        ValueError: a quantile that is not between 0 and 1.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"a quantile is above 0 and below 1, such as 0.99, not {quantile}")
    if quantile == QUANTILE:
        return cost.bound_ms
    if samples_ns is not None and len(samples_ns):
        from scipy.stats import binom  # a second to import

        rank = int(binom.ppf(CONFIDENCE, len(samples_ns), quantile)) + 1
        return float(sorted(samples_ns)[rank - 1]) / 1e6 if rank <= len(samples_ns) else None
    if quantile <= 0.5:
        return cost.latency_high_ms
    if quantile < QUANTILE:
        return cost.bound_ms
    return cost.max_ms if cost.samples >= _samples_needed(quantile) else None


def _samples_needed(quantile: float) -> int:
    """Samples of which the largest bounds a quantile."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(quantile))


def highest_quantile(cost: Cost) -> float:
    """Up to which quantile the profile alone knows a bound of that cost's latency."""
    if cost.max_ms is None or cost.samples < 1:
        return QUANTILE
    return max(QUANTILE, math.pow(1 - CONFIDENCE, 1 / cost.samples))


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

    With `min_top1` it is the cheapest of those that are accurate enough; of equals, the most
    accurate.

    Raises:
        InfeasibleError: nothing fits; the message names the cheapest and by how much it misses.
        ValueError: a rate with a bound on energy or power, and no idle power.
    """
    pool, limits = list(pool), _limits(budget)
    fitting = [c for c in pool if all(limit.admits(c) for limit in limits)]
    if budget.minimise == "energy":
        energy = _energy(budget)
        fitting = [c for c in fitting if energy(c) is not None]
    if not fitting:
        raise InfeasibleError(f"no topology fits {budget}: {_nearest_miss(pool, budget)}")
    return min(fitting, key=_preference(budget))


def _preference(budget: Budget) -> Callable[[Candidate], tuple[float, ...]]:
    """The less, the better under a budget that admits it."""
    if budget.min_top1 is None:
        return lambda c: (-c.top1, c.latency_ms, c.median_ms)
    if budget.minimise == "energy":
        energy = _energy(budget)

        def cost(candidate: Candidate) -> tuple[float, ...]:
            energy_mj = energy(candidate)
            worst = math.inf if energy_mj is None else energy_mj
            return worst, -candidate.top1, candidate.latency_ms

        return cost
    return lambda c: (c.latency_ms, c.median_ms, -c.top1)


def _nearest_miss(pool: Sequence[Candidate], budget: Budget) -> str:
    parts = [limit.miss(pool) for limit in _limits(budget)]
    if budget.rate_hz is not None and budget.idle_w is not None:
        idle_mj = budget.idle_w * 1e3 / budget.rate_hz
        if budget.frame_mj is not None and idle_mj > budget.frame_mj:
            parts.append(
                f"the idle device alone takes {budget.idle_w:g} W, which is {idle_mj:.3g} mJ a frame "
                f"of {budget.frame_mj:.3g} mJ"
            )
    if budget.minimise == "energy" and all(c.energy_mj is None for c in pool):
        parts.append("no energy_mj was measured, so none is known to be the least")
    said = [part for part in parts if part is not None]
    if not said:
        return "each bound alone can be met, but not all together"
    return "; ".join([*said, *questions(pool, budget)])


def questions(pool: Sequence[Candidate], budget: Budget) -> tuple[str, ...]:
    """What to ask about a budget that is far from anything there is: a unit may be confused.

    A bound below a hundredth of the cheapest, or beyond a hundred times the dearest. The first is
    infeasible, and the question is part of that error. The second is met by all, and may well be
    meant, as one second for a network of 5 ms on a slow robot; but where microseconds were given for
    milliseconds, a deadline would be missed without a word. So it is asked about, and no error.
    """
    asked = []
    steps = {"ms": ("us", "s"), "mJ": ("uJ", "J"), "W": ("mW", "kW")}
    for limit in _limits(budget):
        unit = limit.unit.split()[0]
        costs = [cost for c in pool if (cost := limit.cost(c)) is not None]
        if unit not in steps or not costs or limit.name == "median_ms":
            continue
        smaller, larger = steps[unit]
        if limit.bound < min(costs) / FAR:
            far, meant, other = "below all", limit.bound * 1e3, larger
        elif limit.bound > max(costs) * FAR:
            far, meant, other = "beyond all", limit.bound / 1e3, smaller
        else:
            continue
        asked.append(
            f"{limit.bound:g} {unit} is far {far} topologies, {min(costs):.3g} to {max(costs):.3g} "
            f"{unit}: did you mean {limit.bound:g} {other}, which is {meant:g} {unit}?"
        )
    return tuple(asked)


def mixture(pool: Iterable[Candidate], budget: Budget, *, dwell: int = 1) -> Mix:
    """The shares of topologies that are best in the mean under a budget.

    A deadline and a rate hold for every frame. Energy, power, battery and the least accuracy hold in
    the mean, and a mix has one topology more than it has such bounds at most. `dwell` frames are run
    in a row at least.

    Raises:
        InfeasibleError: no mix fits; the message names the cheapest and by how much it misses.
        ValueError: a rate with a bound on energy or power, and no idle power.
    """
    pool = list(pool)
    hard = [limit for limit in _limits(budget) if not limit.mean]
    wanted = _objective(budget)
    rows = [_row(limit, budget) for limit in _limits(budget) if limit.mean]
    allowed = [
        c
        for c in pool
        if all(limit.admits(c) for limit in hard)
        and all(row(c) is not None for _, row, _ in rows)
        and wanted(c) is not None
    ]
    bounds = [
        MeanBound(name=name, costs={c.topology: row(c) for c in allowed}, bound=bound)
        for name, row, bound in rows
    ]
    shares = None
    if allowed:
        with suppress(InfeasibleError):  # said below in the words of the budget
            shares = best_shares({c.topology: -wanted(c) for c in allowed}, bounds)
    if shares is None:
        raise InfeasibleError(f"no mix of topologies fits {budget}: {_nearest_miss(pool, budget)}")
    single = None
    with suppress(InfeasibleError):  # under several bounds only a mix may keep them all
        single = choose(pool, budget)
    by_name = {c.topology: c for c in allowed}
    order = sorted(shares, key=lambda name: (by_name[name].latency_ms, by_name[name].top1))
    reached = mean(shares, {name: wanted(by_name[name]) for name in shares})
    gain = None if single is None else max(0.0, wanted(single) - reached)
    return Mix(
        shares=tuple(Share(topology=name, share=shares[name]) for name in order),
        top1=mean(shares, {name: by_name[name].top1 for name in shares}),
        means=_means(shares, by_name, budget),
        single=None if single is None else single.topology,
        gain=gain,
        dwell=dwell,
    )


def _objective(budget: Budget) -> Callable[[Candidate], Any]:
    """What is to be least in the mean."""
    if budget.min_top1 is None:
        return lambda c: -c.top1
    return _energy(budget) if budget.minimise == "energy" else _median


def _row(limit: _Limit, budget: Budget) -> tuple[str, Callable[[Candidate], Any], float]:
    """A bound that a mix keeps in the mean over frames: its name, the costs, the most of them."""
    if limit.name == "power_w" and budget.rate_hz is None:
        # The mean over time, not over frames: the sum of energies is at most the bound times that of
        # durations, and a duration is an energy over its power.
        def excess_mj(candidate: Candidate) -> float | None:
            if candidate.energy_mj is None or candidate.power_w is None:
                return None
            return candidate.energy_mj * (1 - limit.bound / candidate.power_w)

        return limit.name, excess_mj, 0.0
    if limit.least:
        return limit.name, lambda c: -limit.cost(c), -limit.bound
    return limit.name, limit.cost, limit.bound


def _means(
    shares: Mapping[str, float], pool: Mapping[str, Candidate], budget: Budget
) -> dict[str, float]:
    """What a mix costs in the mean, as far as it is known of all in it."""
    used = [pool[name] for name in shares]
    found = {"median_ms": mean(shares, {c.topology: c.median_ms for c in used})}
    energy = _energy(budget)
    energies = {c.topology: energy(c) for c in used}
    if all(value is not None for value in energies.values()):
        found["energy_mj"] = mean(shares, energies)
        if budget.rate_hz is not None and budget.paced:
            found["power_w"] = found["energy_mj"] * budget.rate_hz / 1e3
        elif all(c.power_w is not None for c in used):
            times = {c.topology: (c.energy_mj or 0.0) / (c.power_w or 1.0) for c in used}
            found["power_w"] = found["energy_mj"] / mean(shares, times)
    return found


class Doubt(Value, frozen=True, kw_only=True):
    """How sure a choice is within the errors of accuracies and costs."""

    sure: float
    """Share of draws from the intervals in which the choice is the same. A topology that may fit,
    but is not known to, is not chosen, and counts as a doubt where the draws let it fit."""
    runner_up: str | None = None
    """What is chosen most often where the choice is another one; `None`: never another."""
    runner_up_share: float = 0.0
    """Of all draws."""


class Choice(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What a plan answers to one of the budgets it was made for."""

    budget: Budget
    topology: str
    feasible: bool = True
    """Whether the topology is within the budget; if not, it is the fastest there is."""
    mix: Mix | None = None
    """Topologies in turn that are better in the mean; `None`: none are, or they were not asked
    for."""
    doubt: Doubt | None = None
    """`None`: nothing fits, or the plan is of an earlier release."""


class Plan(Artifact, frozen=True, kw_only=True, dict=True, omit_defaults=True):
    """Which topologies stay resident, and which of them is used under which budget.

    Optional fields are left out of files where they have their default, so that plans of the first
    release are read as they are.
    """

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
    quantile: float = QUANTILE
    """Of latencies, at which deadlines are held."""
    residency: Residency | None = None
    """How the residents were chosen to fit in memory; `None`: there was no budget of it."""
    notes: tuple[str, ...] = ()
    """What a reader must know before trusting it."""

    def check(self, profile: Profile, accuracy: Accuracy) -> None:
        """Raises `MismatchError` unless the plan was made from these two."""
        require_equal("plan and accuracy", accuracy=(self.accuracy, digest(accuracy)))
        require_equal("plan and profile", profile=(self.profile, digest(profile)))

    @property
    def safety(self) -> Candidate:
        """The topology to run when no budget can be met: the fastest."""
        return self.resident[0]

    def choose(self, budget: Budget) -> Candidate:
        """The best resident topology within the budget. See `schedule.choose`.

        Under a latency alone this is one binary search.

        Raises:
            InfeasibleError: none fits; the message names the cheapest and by how much it misses.
        """
        if budget.latency_ms is not None and budget.only_latency:
            latencies, best = self._staircase
            step = bisect_right(latencies, budget.latency_ms)
            if step:
                return best[step - 1]
        return choose(self.resident, budget)

    def choice(self, budget: Budget) -> Choice | None:
        """What it answers to one of the budgets that it was made for; `None`: not for that one.

        Where the idle power was the profile's own, a budget without one is meant as well.
        """
        return next(
            (
                choice
                for choice in self.choices
                if budget in (choice.budget, msgspec.structs.replace(choice.budget, idle_w=None))
            ),
            None,
        )

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


def plan(
    profile: Profile,
    accuracy: Accuracy,
    budgets: Budget | Sequence[Budget] = (),
    *,
    quantile: float = QUANTILE,
    samples_ns: "Mapping[str, np.ndarray] | None" = None,
    mix: bool = False,
    dwell: int = 1,
    memory: Memory | None = None,
    weights: Sequence[float] | None = None,
) -> Plan:
    """The plan for a budget or several; without any, for whatever may come.

    Resident are the topology for each budget and the fastest one; without budgets the whole Pareto
    front. With `mix`, also the topologies that are better in turn, `dwell` frames in a row at least;
    a budget that only a mix keeps is marked as infeasible for one topology alone.

    Within a `memory`, resident is the set that fits and is worth most in the mean over the budgets,
    which come as often as `weights` say, in any unit, or all equally often; without budgets, over
    the latencies of the front. A topology off the front may be among them, where it shares more
    with the others.

    Raises:
        InfeasibleError: a budget that no topology fits, or none that fits into the memory.
        MismatchError: profile and accuracy do not belong together.
        ValueError: weights that are not one for each budget, or a budget of periods without the
            power of the idle device.
    """
    given = (budgets,) if isinstance(budgets, Budget) else tuple(budgets)
    asked = tuple(with_idle(budget, profile) for budget in given)
    pool = candidates(profile, accuracy, quantile=quantile, samples_ns=samples_ns)
    front = pareto_front(pool)
    chosen = [] if mix and memory is None else [choose(front, budget) for budget in asked]
    residency = None
    usable: Sequence[Candidate] = front
    if memory is not None:
        residency = _kept(pool, front, asked, weights, memory)
        usable = [c for c in pool if c.topology in residency.topologies]
    elif weights is not None:
        raise ValueError("weights say which budgets memory is kept for: give memory with them")
    mixes = [mixture(usable, budget, dwell=dwell) if mix else None for budget in asked]
    by_name = {c.topology: c for c in usable}
    if residency is not None or not asked:
        resident = list(usable)
    else:
        mixed = [by_name[share.topology] for one in mixes if one for share in one.shares]
        single = [by_name[one.single] for one in mixes if one and one.single]
        resident = [front[0], *chosen, *single, *mixed]
    left_out = len(profile.by_topology.keys() & accuracy.by_topology.keys()) - len(pool)
    notes = [question for budget in asked for question in questions(pool, budget)]
    if left_out:
        notes.append(f"{left_out} topologies are left out: no latency at quantile {quantile:g}")
    return _plan(
        profile,
        accuracy,
        resident,
        asked,
        mixes=mixes,
        rivals=pool if residency is None else usable,
        quantile=quantile,
        residency=residency,
        notes=tuple(dict.fromkeys(notes)),
    )


def with_idle(budget: Budget, profile: Profile) -> Budget:
    """The budget with the profile's idle power, where it needs one and has none."""
    if not budget.paced or budget.idle_w is not None or profile.energy is None:
        return budget
    found = (profile.energy.idle_before_w, profile.energy.idle_after_w)
    known = [power for power in found if power is not None]
    return msgspec.structs.replace(budget, idle_w=sum(known) / len(known)) if known else budget


def _kept(
    pool: Sequence[Candidate],
    front: Sequence[Candidate],
    budgets: Sequence[Budget],
    weights: Sequence[float] | None,
    memory: Memory,
) -> Residency:
    """The topologies that stay in memory for these budgets.

    Raises:
        InfeasibleError: a budget is met by nothing that fits.
    """
    scenarios = budgets or [Budget(latency_ms=latency) for latency in staircase(front)[0]]
    shares = [1.0] * len(scenarios) if weights is None else list(weights)
    if len(shares) != len(scenarios):
        raise ValueError(f"{len(shares)} weights for {len(scenarios)} budgets: give one for each")
    kept = keep(
        {c.topology: c.top1 for c in pool},
        [
            Scenario(
                admitted=frozenset(c.topology for c in pool if c.admitted(budget)), weight=share
            )
            for budget, share in zip(scenarios, shares, strict=True)
        ],
        memory,
        safety=front[0].topology,
    )
    if kept.unmet and budgets:
        there = [c for c in pool if c.topology in kept.topologies]
        unmet = next(budget for budget in budgets if not any(c.admitted(budget) for c in there))
        raise InfeasibleError(
            f"{kept.unmet} of {len(budgets)} budgets are met by nothing that fits in "
            f"{memory.budget_mib:.4g} MiB beside {front[0].topology}, the safety topology; "
            f"{unmet}: {_nearest_miss(there, unmet)}"
        )
    return kept


def with_costs(
    plan: Plan,
    profile: Profile,
    accuracy: Accuracy,
    *,
    samples_ns: "Mapping[str, np.ndarray] | None" = None,
) -> Plan:
    """The plan's resident topologies with the costs of another profile, its budgets answered anew.

    A budget that none of them meets any more is answered by the fastest and marked as infeasible.

    Raises:
        InfeasibleError: the profile does not know latencies at the plan's quantile.
        MismatchError: the profile lacks one of them, or is of another network.
    """
    require_same_network("plan and profile", plan.network, profile.network)
    for candidate in plan.resident:
        profile.predict(candidate.topology)  # names what is missing
    found = candidates(profile, accuracy, quantile=plan.quantile, samples_ns=samples_ns)
    known = {candidate.topology: candidate for candidate in found}
    unknown = [c.topology for c in plan.resident if c.topology not in known]
    if unknown:
        raise InfeasibleError(
            f"the plan holds deadlines at quantile {plan.quantile:g}, where this profile does not "
            f"know {len(unknown)} topologies: {unknown[0]}; measure it with more samples, or plan for "
            f"a lower quantile"
        )
    resident = [known[candidate.topology] for candidate in plan.resident]
    mixes = [_mixed_anew(resident, choice) for choice in plan.choices]
    return _plan(
        profile,
        accuracy,
        resident,
        tuple(choice.budget for choice in plan.choices),
        mixes=mixes,
        rivals=resident,
        quantile=plan.quantile,
        residency=plan.residency,
        notes=plan.notes,
    )


def _mixed_anew(resident: Sequence[Candidate], choice: Choice) -> Mix | None:
    if choice.mix is None:
        return None
    try:
        return mixture(resident, choice.budget, dwell=choice.mix.dwell)
    except InfeasibleError:
        return None


def _plan(
    profile: Profile,
    accuracy: Accuracy,
    resident: Iterable[Candidate],
    budgets: Sequence[Budget],
    *,
    mixes: Sequence[Mix | None],
    rivals: Sequence[Candidate],
    quantile: float,
    residency: Residency | None,
    notes: tuple[str, ...],
) -> Plan:
    unique = {candidate.topology: candidate for candidate in resident}
    ordered = tuple(sorted(unique.values(), key=lambda c: (c.latency_ms, c.top1)))
    errors = _errors(rivals, profile, accuracy, quantile) if budgets else None
    choices = []
    for budget, mix in zip(budgets, mixes, strict=True):
        choice = _answer(ordered, budget)
        gains = mix is not None and (mix.gain is None or mix.gain > 0) and len(mix.shares) > 1
        doubt = _doubt(rivals, errors, choice) if errors and choice.feasible else None
        choices.append(msgspec.structs.replace(choice, mix=mix if gains else None, doubt=doubt))
    return Plan(
        family=profile.family,
        network=profile.network or accuracy.network,
        profile=digest(profile),
        accuracy=digest(accuracy),
        origin=accuracy.origin,
        estimated=profile.estimated,
        resident=ordered,
        choices=tuple(choices),
        quantile=quantile,
        residency=residency,
        notes=notes,
    )


def _answer(resident: Sequence[Candidate], budget: Budget) -> Choice:
    try:
        return Choice(budget=budget, topology=choose(resident, budget).topology)
    except InfeasibleError:
        return Choice(budget=budget, topology=resident[0].topology, feasible=False)


# --- within the errors -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Errors:
    """Standard errors of what is known of topologies, in their order.

    They are taken as normal and independent. Accuracies of the same images are not independent: two
    topologies err on the same ones, so that which is better is surer than these draws say.
    """

    top1: tuple[float, ...]
    median_ms: tuple[float, ...]
    latency_ms: tuple[float, ...]
    """Where a deadline is held: the middle, and its error."""
    latency_error_ms: tuple[float, ...]
    energy_mj: tuple[float, ...]


def _errors(
    pool: Sequence[Candidate], profile: Profile, accuracy: Accuracy, quantile: float
) -> _Errors:
    costs = [profile.by_topology[c.topology] for c in pool]
    rows = [accuracy.by_topology[c.topology] for c in pool]
    middles = [_middle_ms(c, cost, profile, quantile) for c, cost in zip(pool, costs, strict=True)]
    composition = profile.composition
    latency = composition.latency if composition else None
    energy = composition.energy if composition else None
    return _Errors(
        top1=tuple((row.high - row.low) / 2 / _z(0.95) for row in rows),
        median_ms=tuple(
            (c.latency_high_ms - c.latency_low_ms) / 2 / _z(_confidence(c, latency)) for c in costs
        ),
        latency_ms=tuple(middle for middle, _ in middles),
        latency_error_ms=tuple(error for _, error in middles),
        energy_mj=tuple(
            0.0
            if c.energy_low_mj is None or c.energy_high_mj is None
            else (c.energy_high_mj - c.energy_low_mj) / 2 / _z(_confidence(c, energy))
            for c in costs
        ),
    )


def _z(confidence: float) -> float:
    """Standard errors in half of a two-sided interval."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _confidence(cost: Cost, certificate: Certificate | None) -> float:
    """Of a cost's interval; a conformal one has that of its certificate."""
    composed = cost.origin == "composed" and certificate is not None
    return min(certificate.confidence, 0.999) if composed and certificate else 0.95


def _middle_ms(
    candidate: Candidate, cost: Cost, profile: Profile, quantile: float
) -> tuple[float, float]:
    """Latency where a deadline is held, and its standard error, as far as the profile knows them."""
    bound_ms = candidate.latency_ms
    composition = profile.composition
    if quantile <= 0.5:
        return cost.latency_ms, max(0.0, bound_ms - cost.latency_ms) / _z(0.95)
    if quantile != QUANTILE:
        return bound_ms, 0.0
    if cost.origin == "composed" and composition is not None:
        middle_ms = bound_ms / max(1.0, composition.bound.factor)
        one_sided = min(composition.bound.confidence, 0.999)
        return middle_ms, (bound_ms - middle_ms) / NormalDist().inv_cdf(one_sided)
    if cost.origin == "estimated":
        return cost.latency_ms, max(0.0, bound_ms - cost.latency_ms) / _z(0.95)
    if cost.p99_ms is None:  # the largest of few samples: how far from the quantile is not known
        return bound_ms, 0.0
    return cost.p99_ms, max(0.0, bound_ms - cost.p99_ms) / NormalDist().inv_cdf(CONFIDENCE)


def _drawn(pool: Sequence[Candidate], errors: _Errors, draws: int) -> SimpleNamespace:
    """A candidate's fields as arrays: a row for each draw, a column for each topology.

    What is not known is NaN, which no bound admits.
    """
    import numpy as np

    random = np.random.default_rng(0)  # the same plan from the same values

    def around(middles: Iterable[float | None], sizes: Sequence[float]) -> Any:
        values = np.array([math.nan if m is None else m for m in middles])
        return values + random.standard_normal((draws, len(values))) * np.array(sizes)

    energy = around((c.energy_mj for c in pool), errors.energy_mj)
    known = np.array([math.nan if c.energy_mj is None else c.energy_mj for c in pool])
    power = np.array([math.nan if c.power_w is None else c.power_w for c in pool])
    return SimpleNamespace(
        top1=around((c.top1 for c in pool), errors.top1),
        median_ms=around((c.median_ms for c in pool), errors.median_ms),
        latency_ms=around(errors.latency_ms, errors.latency_error_ms),
        energy_mj=energy,
        power_w=power * energy / known,
    )


def _doubt(pool: Sequence[Candidate], errors: _Errors, choice: Choice) -> Doubt:
    """How often a choice is the same within the errors, and what it is else."""
    import numpy as np

    budget = choice.budget
    drawn = _drawn(pool, errors, DRAWS)
    admitted = np.ones(drawn.top1.shape, bool)
    for limit in _limits(budget):
        admitted &= limit.over(limit.cost(drawn)) <= 0
    if budget.min_top1 is None:
        worth = drawn.top1
    else:
        worth = -(_energy(budget)(drawn) if budget.minimise == "energy" else drawn.latency_ms)
    worth = np.where(admitted & ~np.isnan(worth), worth, -math.inf)
    # Of equals the first one is taken, so the order is that of the choice.
    order = sorted(range(len(pool)), key=lambda i: _preference(budget)(pool[i]))
    best = np.array(order)[worth[:, order].argmax(axis=1)]
    best = np.where(np.isinf(worth.max(axis=1)), -1, best)  # nothing fits: the choice stands
    counts = {c.topology: int((best == i).sum()) for i, c in enumerate(pool)}
    same = counts.pop(choice.topology, 0) + int((best == -1).sum())
    runner_up = max(counts, key=lambda name: counts[name], default=None)
    if runner_up is None or counts[runner_up] == 0:
        return Doubt(sure=same / DRAWS)
    return Doubt(sure=same / DRAWS, runner_up=runner_up, runner_up_share=counts[runner_up] / DRAWS)


def membership(
    profile: Profile, accuracy: Accuracy, *, quantile: float = QUANTILE
) -> dict[str, float]:
    """For each topology, the probability that it is on the front of accuracy, latency and energy.

    Within the errors of all three, of energy where every topology has one. A front at a confidence
    is what has that probability or more.

    Raises:
        InfeasibleError, MismatchError: as `candidates`.
    """
    import numpy as np

    pool = candidates(profile, accuracy, quantile=quantile)
    drawn = _drawn(pool, _errors(pool, profile, accuracy, quantile), DRAWS)
    quantities = [-drawn.top1, drawn.latency_ms]
    if not np.isnan(drawn.energy_mj).any():
        quantities.append(drawn.energy_mj)
    members = np.zeros(len(pool))
    for draw in range(DRAWS):
        values = np.stack([quantity[draw] for quantity in quantities])
        no_worse = (values[:, :, None] <= values[:, None, :]).all(axis=0)
        better = (values[:, :, None] < values[:, None, :]).any(axis=0)
        members += ~(no_worse & better).any(axis=0)
    return {c.topology: float(members[i]) / DRAWS for i, c in enumerate(pool)}
