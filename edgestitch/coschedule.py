"""Several networks on one device: a topology for each, such that all keep their deadlines.

A camera's network, one for depth and a policy each run once a period, one at a time: an inference
that has begun runs to its end, then the waiting one of the highest priority begins. The most weighted
accuracy that keeps every deadline is a multiple-choice knapsack (one topology a network), with a test
of response times in place of one capacity.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from .accuracy import Accuracy
from .artifact import Artifact, Value, digest, load, read
from .errors import ArtifactError, InfeasibleError, MismatchError
from .mixing import INFEASIBLE
from .profile import Profile, require_equal
from .schedule import QUANTILE, Candidate, candidates

ROUNDING = 1e-9
"""Of periods: a release so close to the moment is taken to have happened."""

FULL = 0.999
"""Share of a device's time from which on no bound is looked for: waiting grows beyond all use."""

LOSS = 0.05
"""Points of weighted accuracy below the bound, of each network, that are looked through first."""

CHUNK = 300
"""Choices that are looked at together, with all that one network may add: some megabytes."""

POINTS = 500
"""Moments of a busy period that all of them are looked at in."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A network that runs once a period, with the topologies to choose from."""

    name: str
    pool: Sequence[Candidate]
    """As `schedule.candidates` gives it."""
    period_ms: float
    """Least time between two of its inputs."""
    deadline_ms: float | None = None
    """From an input to its output, waiting included; `None`: the period. No longer than that."""
    weight: float = 1.0
    """What a point of its accuracy is worth beside one of the others."""
    priority: int | None = None
    """The lower goes first. `None`, and then for all: the shorter deadline goes first."""
    interference: float = 1.0
    """What the others make an inference longer by, as `interference` finds it; 1 where the profile
    was measured beside them."""
    profile: str | None = None
    accuracy: str | None = None
    network: str | None = None
    """Digests of what the pool and its weights are from."""

    @classmethod
    def of(
        cls,
        name: str,
        profile: Profile,
        accuracy: Accuracy,
        *,
        period_ms: float,
        quantile: float = QUANTILE,
        **more: Any,
    ) -> "Stream":
        """A network's stream from its profile and accuracy, deadlines held at that quantile.

        Raises:
            InfeasibleError, MismatchError: as `schedule.candidates`.
            MismatchError: interference on top of a profile that was measured beside others.
        """
        beside = profile.conditions.contention
        if beside is not None and more.get("interference", 1.0) != 1.0:
            raise MismatchError(
                f"the profile of {name} was measured beside {beside!r} and has the interference in it; "
                "give none, or a profile without a command beside"
            )
        return cls(
            name=name,
            pool=candidates(profile, accuracy, quantile=quantile),
            period_ms=period_ms,
            profile=digest(profile),
            accuracy=digest(accuracy),
            network=profile.network or accuracy.network,
            **more,
        )

    def __post_init__(self) -> None:
        for name in ("period_ms", "weight", "interference"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{name} of {self.name} must be above zero and finite, not {value}"
                )
        if not 0 < self.within_ms <= self.period_ms:
            raise ValueError(
                f"deadline_ms of {self.name} must be above zero and at most its period of "
                f"{self.period_ms:g} ms, not {self.within_ms:g}"
            )
        if self.interference < 1:
            raise ValueError(
                f"interference of {self.name} must be 1 at least, not {self.interference:g}"
            )
        if not self.pool:
            raise ValueError(f"{self.name} has no topologies to choose from")

    @property
    def within_ms(self) -> float:
        """The deadline."""
        return self.period_ms if self.deadline_ms is None else self.deadline_ms


class _StreamFile(Value, frozen=True, kw_only=True):
    profile: str
    accuracy: str
    period_ms: float
    deadline_ms: float | None = None
    weight: float = 1.0
    priority: int | None = None
    interference: float = 1.0
    quantile: float = QUANTILE


def load_streams(path: Path) -> list[Stream]:
    """The streams of a TOML file, a table each, whose files lie beside it.

    Raises:
        ArtifactError: it is no such file; the message names the key.
        MismatchError, InfeasibleError, ValueError: as `Stream.of`.
    """
    try:
        tables = msgspec.toml.decode(read(path), type=dict[str, _StreamFile])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is no file of streams: {error}") from error
    return [
        Stream.of(
            name,
            load(Profile, path.parent / table.profile),
            load(Accuracy, path.parent / table.accuracy),
            **{
                field: getattr(table, field)
                for field in table.__struct_fields__
                if field not in ("profile", "accuracy")
            },
        )
        for name, table in tables.items()
    ]


class Assignment(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What one network of several runs."""

    name: str
    topology: str
    top1: float
    latency_ms: float
    """Of an inference beside the others: the bound times their interference."""
    response_ms: float
    """From an input to its output at most, waiting included."""
    deadline_ms: float
    period_ms: float
    weight: float
    interference: float = 1.0
    power_w: float | None = None
    """That it adds to the idle device's in the mean; `None`: not asked for."""
    profile: str | None = None
    accuracy: str | None = None
    network: str | None = None
    """Digests of what it was made from; `None`: it is of no artifacts."""


class JointPlan(Artifact, frozen=True, kw_only=True, omit_defaults=True):
    """A topology for each of several networks on one device."""

    kind: ClassVar[str] = "joint-plan"
    version: ClassVar[int] = 1

    assignments: tuple[Assignment, ...]
    """The highest priority first."""
    top1: float
    """Mean, by weight."""
    utilisation: float
    """Share of the time that the device is busy at most."""
    power_w: float | None = None
    """In the mean, the idle device's included; `None`: not asked for."""
    proven: bool = True
    """Whether no other choice that keeps the deadlines is worth more."""
    gap: float = 0.0
    """How many points of top-1 another might be worth more at most; 0 if proven."""

    @property
    def by_name(self) -> dict[str, Assignment]:
        return {assignment.name: assignment for assignment in self.assignments}

    def check(self, name: str, profile: Profile, accuracy: Accuracy) -> None:
        """Raises `MismatchError` unless that network's topology was chosen from these two."""
        found = self.by_name.get(name)
        if found is None:
            raise MismatchError(f"the joint plan has no {name}; it has {', '.join(self.by_name)}")
        require_equal(f"joint plan of {name} and profile", profile=(found.profile, digest(profile)))
        require_equal(
            f"joint plan of {name} and accuracy", accuracy=(found.accuracy, digest(accuracy))
        )


def interference(alone: Profile, beside: Profile) -> float:
    """How many times longer an inference takes beside the other load: the most of all topologies.

    `alone` and `beside` are profiles of one network on one device, the second measured while a
    command ran beside (`edgestitch profile --contend`).

    Raises:
        MismatchError: they are of other networks or devices, nothing ran beside, or they share no
            topology.
    """
    require_equal("the two profiles", family=(alone.family, beside.family))
    for field in ("device", "hardware", "power_mode", "backend", "precision", "batch"):
        pair = (getattr(alone.conditions, field), getattr(beside.conditions, field))
        require_equal("the two profiles", **{field: pair})
    if alone.conditions.contention is not None or beside.conditions.contention is None:
        raise MismatchError(
            "interference takes a profile without a command beside and one with: found "
            f"{alone.conditions.contention!r} and {beside.conditions.contention!r}; measure the second "
            "with `edgestitch profile --contend COMMAND`"
        )
    common = alone.by_topology.keys() & beside.by_topology.keys()
    if not common:
        raise MismatchError(f"the two profiles of {alone.family} have no topology in common")
    ratios = (beside.predict(name).bound_ms / alone.predict(name).bound_ms for name in common)
    return max(1.0, *ratios)


# --- response times --------------------------------------------------------------------------


def response_times_ms(latencies_ms: Sequence[float], periods_ms: Sequence[float]) -> list[float]:
    """The longest time from an input to its output, of networks in order of priority.

    The exact test for priorities without preemption of Davis, Burns, Bril and Lukkien ("Controller
    Area Network (CAN) schedulability analysis: refuted, revisited and revised", 2007), for a device
    in the place of their bus. Input `q` of a busy period waits

        w = B + q C + sum over higher ones of (floor(w / T_h) + 1) C_h

    where B is the longest inference of a lower priority, which may have just begun, and its
    response time is `w - q T + C`. Not the first input of a busy period alone is looked at: a later
    one may wait longer, since higher ones that the first made wait come before it. It holds for
    inputs that come at any time, a period apart at least. Infinite: the device is asked for 99.9 %
    of its time or more.
    """
    return [_response_ms(latencies_ms, periods_ms, place) for place in range(len(latencies_ms))]


def _response_ms(
    latencies_ms: Sequence[float],
    periods_ms: Sequence[float],
    place: int,
    within_ms: float = math.inf,
) -> float:
    """The longest response of the network at that place; or one beyond `within_ms`, if any is."""
    own, period = latencies_ms[place], periods_ms[place]
    higher = list(zip(latencies_ms[:place], periods_ms[:place], strict=True))
    blocked = max(latencies_ms[place + 1 :], default=0.0)
    if sum(c / t for c, t in higher) + own / period >= FULL:
        return math.inf
    busy_ms, longer = 0.0, blocked + own
    while longer > busy_ms:
        busy_ms = longer
        longer = blocked + sum(_before(busy_ms, t) * c for c, t in [*higher, (own, period)])
    longest = 0.0
    for earlier in range(_before(busy_ms, period)):
        waits_ms, longer = -1.0, blocked + earlier * own
        while longer > waits_ms:
            waits_ms = longer
            begun = sum(_until(waits_ms, t) * c for c, t in higher)
            longer = blocked + earlier * own + begun
        longest = max(longest, waits_ms - earlier * period + own)
        if longest > within_ms:
            return longest
    return longest


def _begun(
    blocked_ms: float, latencies_ms: Sequence[float], periods_ms: Sequence[float]
) -> list[int]:
    """How many inferences of higher priorities the first input of a busy period waits for."""
    waits_ms, longer = -1.0, blocked_ms
    begun: list[int] = []
    while longer > waits_ms:
        waits_ms = longer
        begun = [_until(waits_ms, period_ms) for period_ms in periods_ms]
        longer = blocked_ms + sum(n * c for n, c in zip(begun, latencies_ms, strict=True))
    return begun


def _before(span_ms: float, period_ms: float) -> int:
    """Inputs within a span that begins with one, its end left out."""
    return math.ceil(span_ms / period_ms - ROUNDING)


def _until(span_ms: float, period_ms: float) -> int:
    """Inputs within a span that begins with one, its end included."""
    return math.floor(span_ms / period_ms + ROUNDING) + 1


# --- the choice ------------------------------------------------------------------------------


def coschedule(
    streams: Sequence[Stream],
    *,
    power_w: float | None = None,
    idle_w: float | None = None,
    time_limit_s: float = 5.0,
) -> JointPlan:
    """The topology of each network with the most weighted accuracy such that all keep deadlines.

    With `power_w`, the mean power of the device, `idle_w` of it while it waits, is at most that.

    Raises:
        InfeasibleError: no choice does; the message names the networks that miss, and by how much.
        ValueError: no networks, two of one name, priorities for some only, or power without
            `idle_w` or without energies.
    """
    ordered = _by_priority(streams)
    if power_w is not None:
        if not (math.isfinite(power_w) and power_w > 0):
            raise ValueError(f"power_w must be above zero and finite, not {power_w}")
        if idle_w is None or not (math.isfinite(idle_w) and idle_w >= 0):
            raise ValueError(
                f"a mean power of {power_w:g} W includes the idle device: give idle_w, not {idle_w}"
            )
    options = [_options(stream, idle_w if power_w is not None else None) for stream in ordered]
    spare_w = math.inf if power_w is None or idle_w is None else power_w - idle_w
    search = _Search(ordered, options, spare_w, until=time.monotonic() + time_limit_s)
    best, bound = search.run()
    if best is None:
        raise InfeasibleError(_misses(ordered, options, power_w, idle_w, proven=bound == -math.inf))
    latencies = [option.latency_ms for option in best]
    responses = response_times_ms(latencies, [stream.period_ms for stream in ordered])
    total = math.fsum(stream.weight for stream in ordered)
    gap = (bound - math.fsum(option.worth for option in best)) / total
    return JointPlan(
        assignments=tuple(
            Assignment(
                name=stream.name,
                topology=option.candidate.topology,
                top1=option.candidate.top1,
                latency_ms=option.latency_ms,
                response_ms=response,
                deadline_ms=stream.within_ms,
                period_ms=stream.period_ms,
                weight=stream.weight,
                interference=stream.interference,
                power_w=None if power_w is None else option.power_w,
                profile=stream.profile,
                accuracy=stream.accuracy,
                network=stream.network,
            )
            for stream, option, response in zip(ordered, best, responses, strict=True)
        ),
        top1=math.fsum(option.worth for option in best) / total,
        utilisation=math.fsum(
            latency / stream.period_ms for latency, stream in zip(latencies, ordered, strict=True)
        ),
        power_w=None
        if power_w is None or idle_w is None
        else math.fsum((idle_w, *(option.power_w for option in best))),
        proven=gap <= ROUNDING,
        gap=max(0.0, gap) if gap > ROUNDING else 0.0,
    )


def _by_priority(streams: Sequence[Stream]) -> list[Stream]:
    if not streams:
        raise ValueError("no networks were given")
    names = [stream.name for stream in streams]
    if len(set(names)) < len(names):
        raise ValueError(f"each network needs a name of its own, found {', '.join(names)}")
    given = [stream.priority for stream in streams if stream.priority is not None]
    if given and (len(given) < len(streams) or len(set(given)) < len(given)):
        raise ValueError(
            f"give each of the {len(streams)} networks a priority of its own, or none: found {given}"
        )
    return sorted(streams, key=lambda s: s.within_ms if s.priority is None else s.priority)


@dataclass(frozen=True)
class _Option:
    """A topology of a network, beside the others."""

    candidate: Candidate
    worth: float
    latency_ms: float
    power_w: float
    """Beyond that of the idle device, in the mean."""


def _options(stream: Stream, idle_w: float | None) -> list[_Option]:
    """A network's topologies that no other one beats, the most accurate first."""
    found = []
    for c in stream.pool:
        power_w = 0.0
        if idle_w is not None:
            frame_mj = c.frame_mj(1e3 / stream.period_ms, idle_w)
            if frame_mj is None:
                continue
            power_w = frame_mj / stream.period_ms - idle_w
        latency_ms = c.latency_ms * stream.interference
        found.append(_Option(c, stream.weight * c.top1, latency_ms, power_w))
    if not found:
        raise ValueError(
            f"no energy of {stream.name} was measured, so its power cannot be bounded; profile it with "
            "a meter"
        )
    found.sort(key=lambda o: (-o.worth, o.latency_ms, o.power_w))
    front: list[_Option] = []
    for option in found:
        if not any(
            o.latency_ms <= option.latency_ms and o.power_w <= option.power_w for o in front
        ):
            front.append(option)
    return front


class _Search:
    """Branch and bound over one network after the other, many choices at a time.

    If some choice keeps all deadlines, so does any that is as fast or faster everywhere. So what
    does not fit with everything that is left at its fastest never fits. A linear programme over
    conditions that every fitting choice meets bounds the worth; what a topology loses of that bound
    by its multipliers is lost by every choice that has it. Choices that lose little are looked
    through first, and once one is found, those alone that may still be worth more.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        options: Sequence[Sequence[_Option]],
        spare_w: float,
        until: float,
    ) -> None:
        self.periods_ms = [stream.period_ms for stream in streams]
        self.within_ms = [stream.within_ms * (1 + ROUNDING) for stream in streams]
        self.points = [_points(self.periods_ms[:i], own) for i, own in enumerate(self.within_ms)]
        self.spare_w, self.until = spare_w + ROUNDING, until
        self.options = options
        self.best: list[_Option] | None = None
        self.worth = -math.inf
        self.step = LOSS * math.fsum(stream.weight for stream in streams)

    def run(self) -> tuple[list[_Option] | None, float]:
        """The best choice found, and a bound on the worth of any: without end if there is none."""
        fastest = [min(o.latency_ms for o in own) for own in self.options]
        if not self.in_time(fastest):
            return None, -math.inf
        self.options = [self.fitting(fastest, place) for place in range(len(fastest))]
        if not all(self.options):
            return None, -math.inf
        costs, most = self.conditions(fastest)
        worths = [np.array([o.worth for o in own]) for own in self.options]
        prices = _prices(worths, costs, most)
        if prices is None:
            return None, -math.inf
        left = [worth - cost @ prices for worth, cost in zip(worths, costs, strict=True)]
        bound = float(prices @ most + sum(own.max() for own in left))
        losses = [own.max() - own for own in left]
        tables = [
            np.column_stack([cost, loss, -worth])
            for cost, loss, worth in zip(costs, losses, worths, strict=True)
        ]
        limit, all_lost = self.step, sum(float(loss.max()) for loss in losses)
        while self.look_through(tables, most, limit, bound):
            if self.worth >= bound - limit - ROUNDING or limit >= all_lost:
                return self.best, self.worth
            # No more than what is missing to the bound, if something was found.
            limit = min(2 * limit, all_lost) if self.best is None else bound - self.worth
        return self.best, max(bound, self.worth)

    def look_through(
        self, tables: Sequence[np.ndarray], most: np.ndarray, limit: float, bound: float
    ) -> bool:
        """Finds the best choice that loses no more than `limit`; false if the time is up first.

        A row of a table has what a topology adds to each condition, what it loses, and its worth,
        less than zero: then all are sums that must not be too large.
        """
        losing = tables[0].shape[1] - 2
        kept = [np.flatnonzero(table[:, losing] <= limit).tolist() for table in tables]
        tables = [table[own] for table, own in zip(tables, kept, strict=True)]
        left = [[own[i] for i in some] for own, some in zip(self.options, kept, strict=True)]
        latencies = [np.array([o.latency_ms for o in own]) for own in left]
        least = np.cumsum([table.min(0) for table in tables[::-1]], 0)[::-1]
        least = np.vstack([least[1:], np.zeros_like(least[:1])])
        waiting = [(np.zeros((1, 0), int), np.zeros((1, losing + 2)))]
        while waiting:
            if time.monotonic() > self.until:
                return False
            chosen, sums = waiting.pop()
            place = chosen.shape[1]
            if place == len(left):
                self.try_all(left, chosen, -sums[:, -1])
                continue
            loses = min(limit, bound - self.worth) + ROUNDING
            ceiling = np.array([*most, loses, -self.worth - ROUNDING])
            sums = (sums[:, None] + tables[place]).reshape(-1, losing + 2)
            rows = np.flatnonzero((sums + least[place] <= ceiling).all(1))
            before, last = np.divmod(rows, len(left[place]))
            chosen = np.column_stack([chosen[before], last])
            times = [own[chosen[:, i]] for i, own in enumerate(latencies[: place + 1])]
            times += [np.full(len(rows), own.min()) for own in latencies[place + 1 :]]
            fits = ~self.late(np.column_stack(times))
            chosen, sums = chosen[fits], sums[rows[fits]]
            order = np.argsort(sums[:, losing])
            parts = np.array_split(order, len(order) // CHUNK + 1)
            waiting += [(chosen[part], sums[part]) for part in reversed(parts)]
        return True

    def try_all(
        self, left: Sequence[Sequence[_Option]], chosen: np.ndarray, worths: np.ndarray
    ) -> None:
        """Takes the best of these that keeps all deadlines, if it is better than what is known."""
        for row in np.argsort(-worths, kind="stable").tolist():
            if worths[row] <= self.worth + ROUNDING:
                return
            picked = [own[i] for own, i in zip(left, chosen[row].tolist(), strict=True)]
            if self.in_time([option.latency_ms for option in picked]):
                self.best, self.worth = picked, float(worths[row])
                return

    def fitting(self, fastest_ms: Sequence[float], place: int) -> list[_Option]:
        """What fits of a network, with the others at their fastest and most frugal."""
        own = self.options[place]
        times = np.tile(fastest_ms, (len(own), 1))
        times[:, place] = [o.latency_ms for o in own]
        others = [each for i, each in enumerate(self.options) if i != place]
        others_w = math.fsum(min(o.power_w for o in each) for each in others)
        late = self.late(times)
        return [
            o
            for o, not_so in zip(own, late, strict=True)
            if not not_so and others_w + o.power_w <= self.spare_w
        ]

    def conditions(self, fastest_ms: Sequence[float]) -> tuple[list[np.ndarray], np.ndarray]:
        """Sums that no choice in time has more of: what each topology adds, and the most of each.

        An input waits for one of each lower priority at least, and for as many of the higher ones
        as come while everything is at its fastest.
        """
        count = len(fastest_ms)
        rows, most = [[1 / period_ms for period_ms in self.periods_ms]], [FULL]
        for place in range(count):
            blocked = max(fastest_ms[place + 1 :], default=0.0)
            begun = _begun(blocked, fastest_ms[:place], self.periods_ms[:place])
            for lower in range(place + 1, count) or (place,):
                row = [*begun, 1.0, *[0.0] * (count - place - 1)]
                row[lower] = 1.0
                rows.append(row)
                most.append(self.within_ms[place])
        costs = []
        for own, shares in zip(self.options, np.transpose(rows), strict=True):
            costs.append(np.outer([o.latency_ms for o in own], shares))
            if math.isfinite(self.spare_w):
                costs[-1] = np.column_stack([costs[-1], [o.power_w for o in own]])
        return costs, np.array([*most, self.spare_w] if math.isfinite(self.spare_w) else most)

    def late(self, latencies_ms: np.ndarray) -> np.ndarray:
        """Which rows miss a deadline with the first input of a busy period; later ones may as well.

        It waits for no longer than some moment if all that has begun until then is done by then.
        """
        late = np.zeros(len(latencies_ms), bool)
        for place, (counts, ends_ms) in enumerate(self.points):
            blocked = latencies_ms[:, place + 1 :].max(1, initial=0.0)[:, None]
            done = latencies_ms[:, :place] @ counts.T + blocked
            latest = self.within_ms[place] - latencies_ms[:, place, None]
            late |= ~(done <= np.minimum(ends_ms, latest)).any(1)
        return late

    def in_time(self, latencies_ms: Sequence[float]) -> bool:
        """Whether every deadline is kept."""
        return all(
            _response_ms(latencies_ms, self.periods_ms, place, within_ms) <= within_ms
            for place, within_ms in enumerate(self.within_ms)
        )


def _points(periods_ms: Sequence[float], within_ms: float) -> tuple[np.ndarray, np.ndarray]:
    """Inputs that have come, of each period, in every interval between two that come; and its end."""
    moments_ms = [
        (np.arange(1, math.ceil(within_ms / period_ms) + 1) - ROUNDING) * period_ms
        for period_ms in periods_ms
    ]
    starts_ms = np.unique([0.0, *chain(*moments_ms)])
    if len(starts_ms) > POINTS:  # one each at least, and then it is for the exact test to say
        return np.ones((1, len(periods_ms))), np.array([math.inf])
    counts = [1 + np.searchsorted(own, starts_ms, side="right") for own in moments_ms]
    ends_ms = np.array([*starts_ms[1:], math.inf])
    return np.reshape(counts, (len(periods_ms), len(starts_ms))).T, ends_ms


def _prices(
    worths: Sequence[np.ndarray], costs: Sequence[np.ndarray], most: np.ndarray
) -> np.ndarray | None:
    """What a unit of each sum is worth where they are scarce; `None`: no choice keeps all.

    The multipliers of the linear programme of the multiple-choice knapsack, where a network may run
    parts of several topologies (Sinha and Zoltners 1979).
    """
    from scipy.optimize import linprog  # half a second to import

    counts = [len(own) for own in worths]
    one_each = np.repeat(np.eye(len(counts)), counts, axis=1)
    answer = linprog(
        -np.concatenate(worths),
        A_ub=np.concatenate(costs).T,
        b_ub=most,
        A_eq=one_each,
        b_eq=np.ones(len(counts)),
        method="highs-ds",
    )
    if answer.status == INFEASIBLE:
        return None
    if answer.x is None:
        raise ArithmeticError(f"the solver gave up on several networks: {answer.message}")
    prices: np.ndarray = np.maximum(-answer.ineqlin.marginals, 0.0)
    return prices


def _misses(
    streams: Sequence[Stream],
    options: Sequence[Sequence[_Option]],
    power_w: float | None,
    idle_w: float | None,
    *,
    proven: bool,
) -> str:
    """Why nothing fits: what misses though everything is at its cheapest."""
    fastest = [min(own, key=lambda o: o.latency_ms) for own in options]
    latencies = [option.latency_ms for option in fastest]
    periods = [stream.period_ms for stream in streams]
    parts = []
    asked = sum(c / t for c, t in zip(latencies, periods, strict=True))
    if asked >= FULL:
        parts.append(f"at their fastest they ask for {asked:.0%} of the device's time")
    for place, response_ms in enumerate(response_times_ms(latencies, periods)):
        stream, own = streams[place], latencies[place]
        if response_ms <= stream.within_ms * (1 + ROUNDING):
            continue
        if math.isinf(response_ms):
            parts.append(f"{stream.name} is not sure to be run at all")
            continue
        over = response_ms - stream.within_ms
        parts.append(
            f"{stream.name} misses its deadline of {stream.within_ms:.4g} ms by {over:.3g} ms: its "
            f"fastest, {fastest[place].candidate.topology}, takes {own:.3g} ms and waits up to "
            f"{response_ms - own:.3g} ms for the others"
        )
    if power_w is not None and idle_w is not None:
        least = idle_w + math.fsum(min(o.power_w for o in own) for own in options)
        if least > power_w + ROUNDING:
            parts.append(
                f"at their cheapest they take {least:.3g} W, {least - power_w:.3g} W too much"
            )
    if not parts:
        each = "each bound alone can be met, but not all together"
        parts.append(each if proven else "nothing was found in time")
    names = ", ".join(stream.name for stream in streams)
    return (
        f"no topologies of {names} fit together: {'; '.join(parts)}; allow longer periods or fewer "
        "networks"
    )
