"""Power mode and throttling, looked at once a second, apart from any inference."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from edgestitch import power
from edgestitch.artifact import Value
from edgestitch.sensors import Sensors, State, throttled

from .thread import running


class Event(Value, frozen=True, kw_only=True):
    """Something that changes what calls take or use."""

    level: Literal["OK", "WARN"]
    """OK says that what was warned of is over."""
    what: Literal["power mode", "throttling", "sensors"]
    message: str


class Watch:
    """What has changed from one look to the next.

    Args:
        sensors: Of the device.
        profiled_mode: The profile's power mode; without it, the one of the first look.
        root: Where the board's files are.
    """

    def __init__(
        self, sensors: Sensors, *, profiled_mode: str | None = None, root: Path = Path("/")
    ) -> None:
        self._sensors = sensors
        self._root = root
        self._wanted = profiled_mode
        self._mode = profiled_mode
        self._state: State | None = None
        self._reasons: tuple[str, ...] = ()
        self._failure = ""

    @property
    def state(self) -> State | None:
        """Of the last look that succeeded."""
        return self._state

    @property
    def warnings(self) -> tuple[str, ...]:
        """What holds now, for diagnostics."""
        found = [f"throttling: {', '.join(self._reasons)}"] if self._reasons else []
        if self._mode != self._wanted:
            found.append(f"power mode {self._mode}, profiled in {self._wanted}")
        if self._failure:
            found.append(self._failure)
        return tuple(found)

    def look(self) -> tuple[Event, ...]:
        """Looks once; events only for changes. Never raises: a failure is an event."""
        return (*self._look_at_mode(), *self._look_at_sensors())

    def _look_at_mode(self) -> Iterator[Event]:
        found = power.current(self._root)
        if found is None:  # no Jetson, or its file is being written
            return
        before, self._mode = self._mode, found.name
        self._wanted = self._wanted or found.name
        if before is not None and found.name != before:
            back = found.name == self._wanted
            now = "as profiled" if back else f"profiled in {self._wanted}: its numbers do not hold"
            yield Event(
                level="OK" if back else "WARN",
                what="power mode",
                message=f"power mode changed from {before} to {found.name}, {now}",
            )

    def _look_at_sensors(self) -> Iterator[Event]:
        before = self._state
        try:
            state = self._sensors.read()
        except Exception as error:  # whatever a driver may think of
            failure = f"sensors cannot be read: {' '.join(str(error).split())[:200]}"
            if not self._failure:
                yield Event(level="WARN", what="sensors", message=failure)
            self._failure = failure
            return
        if self._failure:
            yield Event(level="OK", what="sensors", message="sensors can be read again")
        self._failure, self._state = "", state
        # Reasons of the last look are over unless they hold still or were counted since.
        # At the first look, what was counted since the machine started is no news.
        reasons = throttled(msgspec.structs.replace(before or state, throttle=()), state)
        if reasons and reasons != self._reasons:
            message = f"throttling: {', '.join(reasons)}"
            yield Event(level="WARN", what="throttling", message=message)
        elif self._reasons and not reasons:
            yield Event(level="OK", what="throttling", message="no longer throttling")
        self._reasons = reasons

    @contextmanager
    def running(
        self,
        tell: Callable[[Event], object],
        *,
        then: Callable[[State | None], object] = lambda state: None,
        period_s: float = 1.0,
    ) -> Iterator[None]:
        """Looks once a period in a thread until the context is left.

        Args:
            tell: Called with each event, in that thread.
            then: Called after each look with the state, for its clocks.
            period_s: From the end of a look to the next.
        """

        def work(stop: threading.Event) -> None:
            while True:
                for event in self.look():
                    tell(event)
                then(self.state)
                if stop.wait(period_s):
                    return

        with running(work, "edgestitch-watch"):
            yield
