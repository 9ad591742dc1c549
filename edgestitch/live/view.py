"""What is shown of a running runtime, drawn from its recorder: numbers of now, points of a chart."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Literal

from edgestitch.artifact import Value
from edgestitch.report import format_ms, format_percent, format_w
from edgestitch.runlog import Frame, Recorder
from edgestitch.runtime import Runtime
from edgestitch.schedule import Candidate, staircase

RECENT = 300
"""Frames that the quantiles are of: 10 s at 30 Hz, 3 of them slower than the 99th percentile."""
MOST_RUNS = 12
"""Points of one look before those of one topology and deadline are joined."""


class Point(Value, frozen=True, kw_only=True):
    """Frames of one topology and one deadline, as one point of the chart."""

    time_s: float
    """When the last of them began."""
    topology: str
    budget_ms: float | None
    frames: int
    low_ms: float
    mean_ms: float
    high_ms: float
    missed: int


class Status(Value, frozen=True, kw_only=True):
    """The run at one moment. What is not known is `None`."""

    time_s: float
    frames: int
    missed: int
    rate_hz: float | None
    """Of the last frames."""
    budget_ms: float | None
    budget_w: float | None
    topology: str
    """The one that the next frame runs."""
    top1: float
    """Of that topology, in percent."""
    feasible: bool
    """Whether the plan had a topology for the budgets of the last frame."""
    last_ms: float | None
    p50_ms: float | None
    p99_ms: float | None
    recent: int
    """Frames that the quantiles are of."""
    level: Literal["OK", "WARN", "ERROR"]
    message: str
    slowdown: float | None
    power_w: float | None
    power_reason: str | None
    """Why there is no power."""
    temperature_c: float | None
    """Of the hottest part."""
    throttle: tuple[str, ...]


class Step(Value, frozen=True, kw_only=True):
    """A resident topology."""

    topology: str
    top1: float
    bound_ms: float
    median_ms: float
    power_w: float | None
    on_front: bool
    """Whether some deadline picks it."""


class About(Value, frozen=True, kw_only=True):
    """What does not change during a run."""

    family: str
    conditions: str
    steps: tuple[Step, ...]
    """Fastest first."""
    range_ms: tuple[float, float]
    """From a deadline that nothing meets to one that everything does."""
    range_w: tuple[float, float] | None
    """The same of average power; `None`: no energy was measured."""
    recent: int = RECENT


class View:
    """Follows a recorder from look to look; each one who looks has a view of its own."""

    def __init__(self, runtime: Runtime, recorder: Recorder) -> None:
        self._runtime = runtime
        self._recorder = recorder
        self._top1 = {c.topology: c.top1 for c in runtime.deployment.plan.resident}
        self._recent: deque[Frame] = deque(maxlen=RECENT)
        self._seen = 0

    def look(self) -> tuple[Status, tuple[Point, ...]]:
        """The run now, and the frames since the last look as points."""
        self._seen, frames = self._recorder.since(self._seen)
        self._recent.extend(frames)
        return self._status(), points(frames)

    def _status(self) -> Status:
        runtime, recorder = self._runtime, self._recorder
        found, reading = runtime.diagnostics(), recorder.reading
        latencies = sorted(frame.latency_ms for frame in self._recent)
        topology = found.values["topology"]
        temperatures = reading.temperatures_c.values() if reading else ()
        slowdown = found.values.get("slowdown")
        return Status(
            time_s=recorder.now_s,
            frames=recorder.count,
            missed=recorder.missed,
            rate_hz=_rate_hz(self._recent),
            budget_ms=runtime.budget_ms,
            budget_w=runtime.budget_w,
            topology=topology,
            top1=self._top1[topology],
            feasible=self._recent[-1].feasible if self._recent else True,
            last_ms=self._recent[-1].latency_ms if self._recent else None,
            p50_ms=_quantile(latencies, 0.5),
            p99_ms=_quantile(latencies, 0.99),
            recent=len(latencies),
            level=found.level,
            message=found.message,
            slowdown=float(slowdown) if slowdown else None,
            power_w=reading.power_w if reading else None,
            power_reason=recorder.power_reason,
            temperature_c=max(temperatures, default=None),
            throttle=reading.throttle if reading else (),
        )


def about(runtime: Runtime) -> About:
    """What a view of the runtime is about."""
    kept = set(runtime.topologies)
    pool = [c for c in runtime.deployment.plan.resident if c.topology in kept]
    front = {candidate.topology for candidate in staircase(pool)[1]}
    powers = [power for candidate in pool if (power := _power_w(candidate)) is not None]
    return About(
        family=runtime.deployment.manifest.family.name,
        conditions=runtime.deployment.profile.conditions.label,
        steps=tuple(
            Step(
                topology=candidate.topology,
                top1=candidate.top1,
                bound_ms=candidate.latency_ms,
                median_ms=candidate.median_ms,
                power_w=_power_w(candidate),
                on_front=candidate.topology in front,
            )
            for candidate in pool
        ),
        range_ms=_around([candidate.latency_ms for candidate in pool]),
        range_w=_around(powers) if powers and _measured(runtime) else None,
    )


def points(frames: Iterable[Frame]) -> tuple[Point, ...]:
    """Frames as points, few whatever the rate; none of them is lost, and so no miss."""
    frames = list(frames)
    if len(frames) <= MOST_RUNS:
        return tuple(_point([frame]) for frame in frames)
    runs = [list(run) for _, run in groupby(frames, key=_kind)]
    if len(runs) > MOST_RUNS:  # switching all the time, as an average power is kept
        kinds: dict[tuple[str, float | None], list[Frame]] = {}
        for frame in frames:
            kinds.setdefault(_kind(frame), []).append(frame)
        runs = list(kinds.values())
    return tuple(_point(run) for run in runs)


def words(status: Status) -> dict[str, str]:
    """A status for people, by what it is."""
    percent = 100 * status.missed / status.frames if status.frames else 0.0
    return {
        "budget": _or("no deadline", format_ms, status.budget_ms)
        + ("" if status.budget_w is None else f", {format_w(status.budget_w)}"),
        "topology": status.topology if status.feasible else f"{status.topology} (nothing fits)",
        "top-1": format_percent(status.top1),
        "latency": _or("", format_ms, status.last_ms),
        "p50": _or("", format_ms, status.p50_ms),
        "p99": _or("", format_ms, status.p99_ms),
        "missed": f"{status.missed} of {status.frames} ({percent:.1f} %)",
        "rate": "" if status.rate_hz is None else f"{status.rate_hz:.1f} Hz",
        "slowdown": "" if status.slowdown is None else f"{status.slowdown:.2f} x",
        "power": _or("not measured", format_w, status.power_w),
        "temperature": "" if status.temperature_c is None else f"{status.temperature_c:.0f} C",
        "state": f"{status.level}: {status.message}",
    }


def _kind(frame: Frame) -> tuple[str, float | None]:
    return frame.topology, frame.budget_ms


def _point(frames: list[Frame]) -> Point:
    latencies = [frame.latency_ms for frame in frames]
    return Point(
        time_s=max(frame.time_s for frame in frames),
        topology=frames[0].topology,
        budget_ms=frames[0].budget_ms,
        frames=len(frames),
        low_ms=min(latencies),
        mean_ms=math.fsum(latencies) / len(latencies),
        high_ms=max(latencies),
        missed=sum(frame.met is False for frame in frames),
    )


def _rate_hz(frames: deque[Frame]) -> float | None:
    """Frames in a second, of those that began within the last one."""
    if len(frames) < 2:
        return None
    last_s = frames[-1].time_s
    began_s = [frame.time_s for frame in frames if frame.time_s > last_s - 1.0]
    spent_s = last_s - min(began_s)
    return (len(began_s) - 1) / spent_s if spent_s > 0 else None


def _quantile(ordered: list[float], quantile: float) -> float | None:
    """The least value that this share of them does not exceed; `None` of none."""
    return ordered[math.ceil(quantile * len(ordered)) - 1] if ordered else None


def _power_w(candidate: Candidate) -> float | None:
    return None if candidate.energy_mj is None else candidate.energy_mj / candidate.median_ms


def _measured(runtime: Runtime) -> bool:
    return runtime.deployment.profile.energy_reason is None


def _around(values: list[float]) -> tuple[float, float]:
    return 0.8 * min(values), 1.25 * max(values)


def _or(nothing: str, scaled: Callable[[float], str], value: float | None) -> str:
    return nothing if value is None else scaled(value)
