"""What a runtime did, frame by frame, with what was seen of its device meanwhile."""

from typing import ClassVar

from .artifact import Artifact, Value
from .profile import Conditions


class Frame(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One inference."""

    time_s: float
    """When it began, from the start of the log."""
    topology: str
    latency_ms: float
    """From the call to the output, waiting for other threads included."""
    budget_ms: float | None = None
    """Its deadline; `None`: it had none."""
    budget_w: float | None = None
    """The average power that was asked for at the time."""
    feasible: bool = True
    """Whether the plan had a topology for the budgets."""

    @property
    def met(self) -> bool | None:
        return None if self.budget_ms is None else self.latency_ms <= self.budget_ms


class Reading(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What the device said of itself; what it does not say is left out."""

    time_s: float
    """From the start of the log."""
    power_w: float | None = None
    """Mean since the reading before, of what the meter covers."""
    clocks_mhz: dict[str, float] = {}
    temperatures_c: dict[str, float] = {}
    throttle: tuple[str, ...] = ()
    """Why it throttled."""
    slowdown: float | None = None
    """How many times as slow as profiled the runtime took the device to be."""


class RunLog(Artifact, frozen=True, kw_only=True):
    """A run: frames in the order they began, readings beside them."""

    kind: ClassVar[str] = "run-log"
    version: ClassVar[int] = 1

    family: str
    network: str
    """Digest of the weights."""
    plan: str
    """Digest of the plan that ran."""
    conditions: Conditions
    date: str
    frames: tuple[Frame, ...]
    lost: int = 0
    """Frames from the beginning that are not in it, because it keeps only so many."""
    readings: tuple[Reading, ...] = ()
    power_reason: str | None = None
    """Why no reading has a power; `None`: they have."""
