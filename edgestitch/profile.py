"""Profiles: what each topology costs on a device, with the conditions that held.

Optional fields are left out of files and digests where they have their default, so that profiles
of the first release keep theirs.
"""

from functools import cached_property
from typing import ClassVar, Literal

import msgspec

from .artifact import Artifact, Value
from .errors import MismatchError
from .sensors import State

Origin = Literal["measured", "composed", "estimated"]
"""`measured` on the device; `composed` by a model fitted to others that were; `estimated` from the
device's descriptor alone, before anything was measured."""


class Cost(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What one call of a topology costs: from the input in host memory to the output there.

    A composed cost has the model's value, and the bounds of the profile's `composition`. An
    estimated one has the middle of a wide interval.
    """

    topology: str
    latency_ms: float
    """Median."""
    latency_low_ms: float
    latency_high_ms: float
    """95 % interval of the median, from order statistics; of a composed cost the conformal one."""
    p99_ms: float | None
    p99_high_ms: float | None
    """99th percentile, and a bound that it stays under with 97.5 % confidence. `None`: fewer than
    the 473 samples that this takes. Of a composed cost there is only the bound, a conformal one."""
    max_ms: float | None
    """The largest sample."""
    energy_mj: float | None
    """All that the meter's scope used from one call to the next. `None`: not measured; the
    profile's `energy_reason` says why."""
    energy_low_mj: float | None = None
    energy_high_mj: float | None = None
    """95 % interval; of a composed energy the conformal one."""
    energy_above_idle_mj: float | None = None
    """Without what the idle device would have used in that time."""
    energy_origin: Origin | None = None
    slot_ms: float | None = None
    """From one call to the next, all of which the energy is of, where that is longer than a call:
    under a paced load, or after idle gaps."""
    samples: int
    dropped: int = 0
    """Samples thrown away because the device throttled while they were taken."""
    origin: Origin

    @property
    def bound_ms(self) -> float:
        """What a deadline is held against: the upper bound of the 99th percentile.

        With too few samples for one, the largest of them, which bounds it with less confidence; of
        an estimate the upper end of its interval.
        """
        for bound in (self.p99_high_ms, self.max_ms):
            if bound is not None:
                return bound
        return self.latency_high_ms

    @property
    def power_w(self) -> float | None:
        """Average power while it is called as the profile's load says."""
        return (
            None if self.energy_mj is None else self.energy_mj / (self.slot_ms or self.latency_ms)
        )


class Load(Value, frozen=True, kw_only=True):
    """When one call follows another: what a device is asked for changes what a call takes."""

    kind: Literal["back-to-back", "paced", "after-idle"] = "back-to-back"
    rate_hz: float | None = None
    """Of a paced load: one call every `1 / rate_hz` seconds, as a camera asks."""
    gap_ms: float | None = None
    """Of a load after idle gaps: how long the device rests before each call."""

    def __post_init__(self) -> None:
        wanted = {"back-to-back": None, "paced": "rate_hz", "after-idle": "gap_ms"}[self.kind]
        for name in ("rate_hz", "gap_ms"):
            value = getattr(self, name)
            if (value is not None) != (name == wanted):
                raise ValueError(f"a load {self.kind} has {wanted or 'no number'}, found {self!r}")
            if value is not None and not 0 < value < 1e6:
                raise ValueError(f"{name} of a load must be above zero and below 1e6, not {value}")

    def __str__(self) -> str:
        if self.kind == "paced":
            return f"paced at {self.rate_hz:g} Hz"
        return f"after {self.gap_ms:g} ms idle" if self.kind == "after-idle" else self.kind


BACK_TO_BACK = Load()


class Conditions(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What must be equal for two profiles to be comparable."""

    device: str
    """Device descriptor, such as `cpu` or `jetson-orin-nano`."""
    hardware: str
    """What the device calls itself, with the number of its cores."""
    power_mode: str | None
    backend: str
    precision: str
    batch: int
    threads: int
    versions: dict[str, str]
    """Of the software that computes and measures."""
    module: str | None = None
    """The part number of a Jetson's module."""
    load: Load = BACK_TO_BACK
    contention: str | None = None
    """The command that ran beside, to take part of the device away."""

    def __post_init__(self) -> None:
        # msgspec leaves a value out where it is the default itself; one that is equal must be too,
        # or equal profiles had different digests.
        if self.load == BACK_TO_BACK:
            msgspec.structs.force_setattr(self, "load", BACK_TO_BACK)

    @property
    def label(self) -> str:
        load = "" if self.load == BACK_TO_BACK else f", {self.load}"
        beside = f", beside {self.contention!r}" if self.contention else ""
        return f"{self.hardware}, {self.backend} {self.precision}, batch {self.batch}{load}{beside}"


class Protocol(Value, frozen=True, kw_only=True, omit_defaults=True):
    """How the samples were taken, and whether their stop rule was reached."""

    precision: float
    """Relative half-width of the median's interval that was asked for."""
    min_samples: int
    time_cap_s: float
    seed: int
    duration_s: float
    steady: bool
    """Whether the latencies had settled before the first sample."""
    capped: bool
    """Whether the time cap ended the sampling before every topology met the stop rule."""
    late: int = 0
    """Calls of a paced load that began late, because the one before had not ended."""
    throttled: dict[str, int] = msgspec.field(default_factory=dict)
    """Samples taken while the device throttled, by its reason: dropped, but where it was asked to
    keep them."""
    clocks_mhz: dict[str, tuple[float, float, float]] = msgspec.field(default_factory=dict)
    temperatures_c: dict[str, tuple[float, float, float]] = msgspec.field(default_factory=dict)
    """Least, median and most while samples were taken."""
    locked: bool | None = None
    """Whether the clocks were pinned; `None`: it cannot be known here."""
    resumed: int = 0
    """How often the measuring was interrupted and taken up again."""


class Certificate(Value, frozen=True, kw_only=True):
    """How well the composition predicts topologies that it was not fitted to, for one quantity.

    A bound is the prediction times `factor`. It holds for a topology drawn at random with
    probability `confidence` at least (split conformal prediction, Vovk et al. 2005, Lei et al. 2018).
    """

    held_out: int
    """Topologies that were measured to judge, drawn at random."""
    median_error: float
    p95_error: float
    """Of them: size of the relative error of the prediction."""
    factor: float
    spread: float
    """Half-width of the two-sided interval, relative to the prediction, at the same confidence."""
    confidence: float
    costs: dict[str, float]
    """What each class of atoms adds, with `call` once and `border` between segments."""


class Composition(Value, frozen=True, kw_only=True):
    """How the costs that were not measured came about: a sum over atoms, not below zero."""

    designed: tuple[str, ...]
    """Measured, and fitted to: D-optimal for the sum."""
    validated: tuple[str, ...]
    """Measured, and held out."""
    classes: dict[str, str]
    """The class of each atom: atoms of one class compute the same thing."""
    latency: Certificate
    bound: Certificate
    """Of the 99th percentile's bound."""
    energy: Certificate | None = None
    target: float
    """The 95th percentile of the error that was asked for."""
    noise: float
    """Median half-width of the measured medians' intervals, relative: no error can be seen below."""


class EnergyProtocol(Value, frozen=True, kw_only=True):
    """How energy was measured."""

    scope: str
    """What the meter's number covers."""
    period_s: float
    """Between two updates of the sensor."""
    window_s: float
    windows: int
    """For each topology."""
    discarded: dict[str, int] = msgspec.field(default_factory=dict)
    """Windows that could not be used, by reason."""
    idle_before_w: float | None
    idle_after_w: float | None
    precision: float
    """Relative half-width of the 95 % interval that was reached."""
    mixed: int = 0
    """Windows of random mixtures of topologies, the second and independent method."""
    mixed_difference: float | None = None
    """Size of the difference between the two methods, relative: root mean square."""
    mixed_error: float | None = None
    """The difference that their errors explain, at 95 %; the precision asked for at least."""

    @property
    def methods_agree(self) -> bool | None:
        """Whether both methods say the same within their errors; `None`: one was not used."""
        if self.mixed_difference is None or self.mixed_error is None:
            return None
        return self.mixed_difference <= self.mixed_error


class Attribution(Value, frozen=True, kw_only=True):
    """Where the time of a call goes, by segment, from marks between them."""

    segments_ms: dict[str, float]
    """Median of each segment within whole topologies; of those that a few topologies have."""
    rest_ms: float
    """Median of what no segment has: copies, launch, waiting."""
    overhead: float
    """What the marks themselves add to a call, relative."""


class Profile(Artifact, frozen=True, kw_only=True, dict=True, omit_defaults=True):
    """Costs of topologies of one network on one device, backend and precision."""

    kind: ClassVar[str] = "profile"
    version: ClassVar[int] = 1

    family: str
    network: str | None
    """Digest of the weights; `None`: random ones, since a cost does not depend on them."""
    conditions: Conditions
    protocol: Protocol
    segments: tuple[str, ...]
    """How the topologies were cut when they were measured."""
    meter: str
    energy_reason: str | None
    """Why energy is null, if it is."""
    date: str
    samples_digest: str
    """Of the raw samples, which lie beside the profile; of an estimate empty."""
    costs: tuple[Cost, ...]
    composition: Composition | None = None
    """`None`: every cost was measured, or estimated."""
    energy: EnergyProtocol | None = None
    attribution: Attribution | None = None
    before: State | None = None
    after: State | None = None
    """The device when the measuring began and ended."""
    notes: tuple[str, ...] = ()
    """What a reader must know before trusting it."""

    @cached_property
    def by_topology(self) -> dict[str, Cost]:
        return {cost.topology: cost for cost in self.costs}

    @property
    def estimated(self) -> bool:
        """Whether any cost was not even composed of measured ones."""
        return any(cost.origin == "estimated" for cost in self.costs)

    def number(self, origin: Origin) -> int:
        """How many costs are of that origin."""
        return sum(cost.origin == origin for cost in self.costs)

    def predict(self, topology: object) -> Cost:
        """The cost of a topology, given by value or name.

        Raises:
            MismatchError: this profile has not measured it.
        """
        cost = self.by_topology.get(str(topology))
        if cost is None:
            raise MismatchError(
                f"the profile of {self.family} on {self.conditions.label} has not measured "
                f"{topology}; it has {len(self.costs)} topologies, {self.costs[0].topology} to "
                f"{self.costs[-1].topology}; profile again with that topology"
            )
        return cost


def require_comparable(what: str, left: Conditions, right: Conditions) -> None:
    """Raises `MismatchError` naming the first condition in which two differ, with both values.

    Versions count where both name them: a profile is of one driver and one backend.
    """
    for field in Conditions.__struct_fields__:
        if field != "versions":
            require_equal(what, **{field: (getattr(left, field), getattr(right, field))})
    for name in sorted(left.versions.keys() & right.versions.keys() - {"edgestitch", "python"}):
        require_equal(what, **{f"version of {name}": (left.versions[name], right.versions[name])})


def require_same_network(what: str, left: str | None, right: str | None) -> None:
    """Raises `MismatchError` if two digests of weights differ; random weights go with any."""
    if None not in (left, right):
        require_equal(what, network=(left, right))


def require_equal(what: str, **pairs: tuple[object, object]) -> None:
    """Raises `MismatchError` naming the first pair of values that differ."""
    for field, (left, right) in pairs.items():
        if left != right:
            raise MismatchError(f"{what} do not belong together: {field} is {left} and {right}")
