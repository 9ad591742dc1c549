"""What a runtime did, frame by frame, with what was seen of its device meanwhile.

with Runtime() as runtime, Recorder(runtime).saving(Path("run.json")) as recorder:
    recorder.frame(runtime.infer(image))
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

import msgspec

from .artifact import Artifact, Value, digest, load, save
from .profile import Conditions
from .sensors import State, throttled

if TYPE_CHECKING:
    from .meters import Meter
    from .runtime import Result, Runtime
    from .sensors import Sensors

KEEP = 100_000
"""Frames that a recorder keeps: 55 minutes at 30 Hz, about 20 MiB."""
LOOK_S = 1.0
"""From reading to reading."""
METER_S = 0.5
"""Over which the meter's means are taken: shorter than `LOOK_S`, so that no reading lacks its power
because the two threads drift."""


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
    clocks_mhz: dict[str, float] = msgspec.field(default_factory=dict)
    temperatures_c: dict[str, float] = msgspec.field(default_factory=dict)
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


def load_run_log(path: Path) -> RunLog:
    """The run log in a file.

    Raises:
        ArtifactError: the file is missing, damaged, or none.
    """
    return load(RunLog, path)


class Recorder:
    """Keeps the last frames of a runtime and, while its context is open, a reading each second.

    A frame costs one small value in a ring, nothing that waits for a device. Sensors and meter are
    read in threads of their own: where they stall, their readings are missing, and that is all.

    Args:
        runtime: whose frames these are.
        keep: number of frames; older ones are let go and counted.
        sensors: of the device; found if not given.
        meter: of its power; looked for if not given.
        look_s: from reading to reading.
    """

    def __init__(
        self,
        runtime: "Runtime",
        *,
        keep: int = KEEP,
        sensors: "Sensors | None" = None,
        meter: "Meter | None" = None,
        look_s: float = LOOK_S,
    ) -> None:
        if keep < 1:
            raise ValueError(f"a recorder keeps one frame at least, not {keep}")
        self._runtime = runtime
        self._sensors = sensors
        self._meter = meter
        self._look_s = look_s
        self._start_ns = time.perf_counter_ns()
        self._date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._lock = threading.Lock()
        # Frames hold nothing but numbers and text, so that the garbage collector does not walk them.
        self._frames: deque[Frame] = deque(maxlen=keep)
        self._count = 0
        self._missed = 0
        self._readings: deque[Reading] = deque(maxlen=keep)
        self._powers_w: list[float] = []
        self._power_seen = False
        self._no_power = "the meter was not read"
        self._state: State | None = None
        self._background = ExitStack()

    # --- in the loop --------------------------------------------------------------------------

    def frame(self, result: "Result") -> None:
        """Takes in an inference that has just ended."""
        ended_s = (time.perf_counter_ns() - self._start_ns) / 1e9
        frame = Frame(
            time_s=max(ended_s - result.latency_ms / 1e3, 0.0),
            topology=result.topology,
            latency_ms=result.latency_ms,
            budget_ms=result.budget_ms,
            budget_w=self._runtime.budget_w,
            feasible=result.feasible,
        )
        with self._lock:
            self._frames.append(frame)
            self._count += 1
            self._missed += result.met is False

    # --- beside it ----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Frames so far, those that are no longer kept included."""
        return self._count

    @property
    def missed(self) -> int:
        """Deadlines missed so far, in frames that are no longer kept as well."""
        return self._missed

    @property
    def now_s(self) -> float:
        """Seconds since the start of the log."""
        return (time.perf_counter_ns() - self._start_ns) / 1e9

    @property
    def reading(self) -> Reading | None:
        """The last one; `None`: there was none so far."""
        with self._lock:
            return self._readings[-1] if self._readings else None

    @property
    def power_reason(self) -> str | None:
        """Why no reading has had a power so far; `None`: one had."""
        return None if self._power_seen else self._no_power

    def since(self, number: int) -> tuple[int, list[Frame]]:
        """The frames from that number on, as far as they are kept, and the number to go on from."""
        with self._lock:
            new = max(min(self._count - number, len(self._frames)), 0)
            last_first = list(islice(reversed(self._frames), new))
            return self._count, last_first[::-1]

    def log(self) -> RunLog:
        """All that is kept."""
        deployment = self._runtime.deployment
        manifest = deployment.manifest
        with self._lock:
            frames, count = list(self._frames), self._count
            readings = tuple(self._readings)
        # Of several threads one may have waited for another, and so begun before it and ended after.
        frames.sort(key=lambda frame: frame.time_s)
        return RunLog(
            family=manifest.family.name,
            network=manifest.network,
            plan=digest(deployment.plan),
            conditions=manifest.conditions,
            date=self._date,
            frames=tuple(frames),
            lost=count - len(frames),
            readings=readings,
            power_reason=self.power_reason,
        )

    def save(self, path: Path) -> None:
        """Writes the log, whole or not at all.

        Raises:
            ArtifactError: the file cannot be written.
        """
        save(self.log(), path)

    @contextmanager
    def saving(self, path: Path | None) -> Iterator["Recorder"]:
        """Takes readings, and writes the log when the context is left, whatever ends it.

        Without a path nothing is written.

        Raises:
            ArtifactError: the file cannot be written.
        """
        try:
            with self:
                yield self
        finally:
            if path is not None:
                self.save(path)

    # --- readings -----------------------------------------------------------------------------

    def __enter__(self) -> "Recorder":
        # These need NumPy, which who only reads a log does not.
        from .control import Watch, readings
        from .device import resolve
        from .sensors import find_sensors

        device = resolve(self._runtime.deployment.manifest.conditions.device)
        self._no_power = "the run ended before the meter's first reading"
        # First in, last out: a meter that hangs is waited for when all else has been told to end.
        self._background.enter_context(readings(self._found_meter, self._metered, METER_S))
        watch = Watch(self._sensors or find_sensors(device))
        self._background.enter_context(
            watch.running(lambda event: None, then=self._looked, period_s=self._look_s)
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._background.close()

    def _found_meter(self) -> "Meter":
        from .device import descriptor, resolve
        from .meters import NoMeter, find_meter

        device = resolve(self._runtime.deployment.manifest.conditions.device)
        try:
            meter = self._meter or find_meter(device, totals=descriptor(device.name).rails.totals)
        except Exception as error:  # whatever a driver may think of
            meter = NoMeter(f"looking for a meter failed: {error}")
        self._no_power = meter.reason or f"the meter {meter.name} did not answer"
        return meter

    def _metered(self, time_s: float, power_w: float | None) -> None:
        if power_w is not None:
            with self._lock:
                self._powers_w.append(power_w)

    def _looked(self, state: State | None) -> None:
        """Makes a reading of the state and of what the meter has said since the last one."""
        slowdown = self._runtime.diagnostics().values.get("slowdown")
        # A watch that cannot look says again what it saw last.
        new = state if state is not self._state else None
        throttle = throttled(_without_reasons(self._state or new), new) if new else ()
        self._state = state
        with self._lock:
            powers_w, self._powers_w = self._powers_w, []
            self._power_seen = self._power_seen or bool(powers_w)
            self._readings.append(
                Reading(
                    time_s=self.now_s,
                    power_w=fmean(powers_w) if powers_w else None,
                    clocks_mhz=new.clocks_mhz if new else {},
                    temperatures_c=new.temperatures_c if new else {},
                    throttle=throttle,
                    slowdown=float(slowdown) if slowdown else None,
                )
            )


def _without_reasons(state: State) -> State:
    """With what was counted alone: reasons of the last look are over unless they hold still."""
    return msgspec.structs.replace(state, throttle=())
