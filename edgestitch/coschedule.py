"""Several networks on one device: a topology for each, such that all keep their deadlines.

A camera's network, one for depth and a policy each run once a period, one at a time: an inference
that has begun runs to its end, then the waiting one of the highest priority begins. The most weighted
accuracy that keeps every deadline is a multiple-choice knapsack (one topology a network), with a test
of response times in place of one capacity.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from .accuracy import Accuracy
from .artifact import Artifact, Value, digest, load, read
from .errors import ArtifactError, InfeasibleError, MismatchError
from .profile import Profile, require_equal
from .schedule import QUANTILE, Candidate, candidates

ROUNDING = 1e-9
"""Of periods: a release so close to the moment is taken to have happened."""

FULL = 0.999
"""Share of a device's time from which on no bound is looked for: waiting grows beyond all use."""


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
    search = _Search(
        streams=ordered,
        spare_w=math.inf if power_w is None or idle_w is None else power_w - idle_w,
        until=time.monotonic() + time_limit_s,
    )
    best, bound = search.run(options)
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


@dataclass(frozen=True, kw_only=True)
class _Search:
    """Branch and bound over one network after the other, the most accurate topologies first.

    If some choice keeps all deadlines, so does any that is as fast or faster everywhere. So what
    does not fit with everything else at its fastest never fits, and is left out further down.
    """

    streams: Sequence[Stream]
    spare_w: float
    until: float

    def run(self, options: Sequence[Sequence[_Option]]) -> tuple[list[_Option] | None, float]:
        """The best choice found, and a bound on the worth of any: without end if there is none."""
        best: list[_Option] | None = None
        worth = bound = -math.inf

        def go(left: Sequence[Sequence[_Option]], place: int) -> bool:
            """Tries what is left; false if the time is up."""
            nonlocal best, worth
            if place == len(left):
                best, worth = [own[0] for own in left], _most(left)
                return True
            for option in left[place]:
                if time.monotonic() > self.until:
                    return False
                tried: Sequence[Sequence[_Option]] = [*left[:place], [option], *left[place + 1 :]]
                if _most(tried) <= worth + ROUNDING:
                    return True
                tried = self.fitting(tried, place + 1)
                if not all(tried) or self.bound(tried) <= worth + ROUNDING:
                    continue
                if not go(tried, place + 1):
                    return False
            return True

        first = self.fitting(options, 0)
        if not all(first):
            return None, -math.inf
        bound = _most(first)
        if go(first, 0):
            bound = worth
        return best, bound

    def fitting(self, left: Sequence[Sequence[_Option]], place: int) -> list[list[_Option]]:
        """What is left of each network from that place on, with the others at their cheapest."""
        latencies = [min(o.latency_ms for o in own) for own in left]
        powers = [min(o.power_w for o in own) for own in left]
        if not self.keeps(latencies, powers):
            return [[] for _ in left]
        kept = [list(own) for own in left]
        for i in range(place, len(left)):
            others_w = math.fsum(powers) - powers[i]
            own = [o for o in left[i] if others_w + o.power_w <= self.spare_w + ROUNDING]
            longest = self.longest_in_time(latencies, i, sorted({o.latency_ms for o in own}))
            kept[i] = [o for o in own if o.latency_ms <= longest]
        return kept

    def bound(self, left: Sequence[Sequence[_Option]]) -> float:
        """No choice of what is left is worth more.

        Each deadline, and power, is a knapsack by itself: the first input waits for all that comes
        before it while everything is at its fastest, and for no less of it otherwise.
        """
        most = _most(left)
        fastest = [min(o.latency_ms for o in own) for own in left]
        for place, stream in enumerate(self.streams):
            blocked, higher = max(fastest[place + 1 :], default=0.0), range(place)
            waits_ms, longer = -1.0, blocked
            while longer > waits_ms:
                waits_ms = longer
                counts = [_until(waits_ms, self.streams[h].period_ms) for h in higher]
                longer = blocked + sum(n * fastest[h] for n, h in zip(counts, higher, strict=True))
            sizes = [
                [(count * o.latency_ms, o.worth) for o in own]
                for count, own in zip([*counts, 1], left[: place + 1], strict=True)
            ]
            others = math.fsum(own[0].worth for own in left[place + 1 :])
            most = min(most, others + _relaxed(sizes, stream.within_ms - blocked))
        if math.isfinite(self.spare_w):
            powers = [[(o.power_w, o.worth) for o in own] for own in left]
            most = min(most, _relaxed(powers, self.spare_w))
        return most

    def keeps(self, latencies_ms: Sequence[float], powers_w: Sequence[float]) -> bool:
        return math.fsum(powers_w) <= self.spare_w + ROUNDING and self.in_time(latencies_ms)

    def longest_in_time(
        self, latencies_ms: Sequence[float], place: int, choices_ms: Sequence[float]
    ) -> float:
        """Up to which latency one network keeps the deadlines of all; `choices_ms` ascend."""

        def late(latency_ms: float) -> bool:
            tried = [*latencies_ms[:place], latency_ms, *latencies_ms[place + 1 :]]
            return not self.in_time(tried)

        number = bisect_left(choices_ms, True, key=late)
        return choices_ms[number - 1] if number else -math.inf

    def in_time(self, latencies_ms: Sequence[float]) -> bool:
        """Whether every deadline is kept; first by what is quick to see."""
        periods = [stream.period_ms for stream in self.streams]
        ahead = 0.0
        for place, stream in enumerate(self.streams):
            ahead += latencies_ms[place]
            if max(latencies_ms[place + 1 :], default=0.0) + ahead > stream.within_ms:
                return False
        return all(
            _response_ms(latencies_ms, periods, place, stream.within_ms)
            <= stream.within_ms * (1 + ROUNDING)
            for place, stream in enumerate(self.streams)
        )


def _relaxed(classes: Sequence[Sequence[tuple[float, float]]], room: float) -> float:
    """The most worth of one (size, worth) of each class within the room, the last one in part.

    The linear programme of the multiple-choice knapsack, solved by its hulls (Sinha and Zoltners
    1979): the steps of the greatest worth for their size first.
    """
    worth, steps = 0.0, []
    for items in classes:
        hull: list[tuple[float, float]] = []
        for size, value in sorted(items, key=lambda item: (item[0], -item[1])):
            if hull and value <= hull[-1][1]:
                continue
            while len(hull) > 1 and (value - hull[-1][1]) * (hull[-1][0] - hull[-2][0]) >= (
                hull[-1][1] - hull[-2][1]
            ) * (size - hull[-1][0]):
                hull.pop()
            hull.append((size, value))
        room -= hull[0][0]
        worth += hull[0][1]
        steps += [
            ((b[1] - a[1]) / max(b[0] - a[0], 1e-300), b[0] - a[0]) for a, b in pairwise(hull)
        ]
    for rate, size in sorted(steps, reverse=True):
        taken = min(size, max(room, 0.0))
        worth += rate * taken
        room -= taken
    return worth


def _most(left: Sequence[Sequence[_Option]]) -> float:
    """What would be reached with the most accurate of each."""
    return math.fsum(own[0].worth for own in left)


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
