"""Profiles: what each topology costs on a device, with the conditions that held."""

from functools import cached_property
from typing import ClassVar, Literal

from .artifact import Artifact, Value
from .errors import MismatchError


class Cost(Value, frozen=True, kw_only=True):
    """What one inference of a topology costs: from the input in host memory to the output there."""

    topology: str
    latency_ms: float
    """Median."""
    latency_low_ms: float
    latency_high_ms: float
    """95 % interval of the median, from order statistics."""
    p99_ms: float | None
    p99_high_ms: float | None
    """99th percentile, and a bound that it stays under with 97.5 % confidence. `None`: fewer than
    the 473 samples that this takes."""
    max_ms: float
    """The largest sample."""
    energy_mj: float | None
    """`None`: not measured; the profile's `energy_reason` says why."""
    samples: int
    origin: Literal["measured"] = "measured"

    @property
    def bound_ms(self) -> float:
        """What a deadline is held against: the upper bound of the 99th percentile.

        With too few samples for one, the largest of them, which bounds it with less confidence.
        """
        return self.max_ms if self.p99_high_ms is None else self.p99_high_ms

    @property
    def power_w(self) -> float | None:
        """Average power while it runs back to back."""
        return None if self.energy_mj is None else self.energy_mj / self.latency_ms


class Conditions(Value, frozen=True, kw_only=True):
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

    @property
    def label(self) -> str:
        return f"{self.hardware}, {self.backend} {self.precision}, batch {self.batch}"


class Protocol(Value, frozen=True, kw_only=True):
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


class Profile(Artifact, frozen=True, kw_only=True, dict=True):
    """Costs of topologies of one network on one device, backend and precision."""

    kind: ClassVar[str] = "profile"
    version: ClassVar[int] = 1

    family: str
    network: str
    """Digest of the weights."""
    conditions: Conditions
    protocol: Protocol
    segments: tuple[str, ...]
    """How the topologies were cut when they were measured."""
    meter: str
    energy_reason: str | None
    """Why energy is null, if it is."""
    date: str
    samples_digest: str
    """Of the raw samples, which lie beside the profile."""
    costs: tuple[Cost, ...]

    @cached_property
    def by_topology(self) -> dict[str, Cost]:
        return {cost.topology: cost for cost in self.costs}

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


def require_equal(what: str, **pairs: tuple[object, object]) -> None:
    """Raises `MismatchError` naming the first pair of values that differ."""
    for field, (left, right) in pairs.items():
        if left != right:
            raise MismatchError(f"{what} do not belong together: {field} is {left} and {right}")
