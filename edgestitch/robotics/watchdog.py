"""Tells systemd that the service is ready, that it still does its work, and that it stops.

The protocol is that of sd_notify(3): lines `NAME=value` in one datagram to the socket that
$NOTIFY_SOCKET names. In the unit: `Type=notify`, `WatchdogSec=2`, `Restart=on-watchdog`.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether systemd was told; not if it did not ask ($NOTIFY_SOCKET), or cannot be reached.

    A robot must not stop because nobody listens: what fails is logged, never raised.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address[0] not in "/@":
        log.warning("cannot notify %s: only unix sockets are, by path or abstract (@)", address)
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
            # A full queue must not make an image late.
            unix.setblocking(False)
            unix.sendto(state.encode(), address)
    except OSError as error:
        log.warning("cannot notify %s: %s", environment["NOTIFY_SOCKET"], error)
        return False
    return True


class Watchdog:
    """Systemd's watchdog, fed by work that was done rather than by a thread that is merely alive.

    `alive` is called after every image that was answered, and passes it on every half of
    $WATCHDOG_USEC, as sd_watchdog_enabled(3) advises. Where images stop, so does it, and systemd
    restarts the service; a worker that was deactivated is as silent. Without systemd all of it does
    nothing.

    Raises:
        ValueError: $WATCHDOG_USEC or $WATCHDOG_PID is no whole number.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._environment = environment
        self._clock = clock
        self._period_ns = _period_ns(environment)
        self._last_ns: int | None = None

    def ready(self) -> bool:
        """Says that the service has started."""
        return notify("READY=1", self._environment)

    def alive(self) -> bool:
        """Says that work was done, if half of the watchdog's time has passed; whether it did."""
        now_ns = self._clock()
        if self._period_ns is None:
            return False
        if self._last_ns is not None and now_ns - self._last_ns < self._period_ns / 2:
            return False
        self._last_ns = now_ns
        return notify("WATCHDOG=1", self._environment)

    def stopping(self) -> bool:
        """Says that the service stops on purpose."""
        return notify("STOPPING=1", self._environment)


def _period_ns(environment: Mapping[str, str]) -> int | None:
    """The time after which systemd gives up; `None`: it does not watch this process."""
    period_us = _whole(environment, "WATCHDOG_USEC")
    process = _whole(environment, "WATCHDOG_PID")
    if not period_us or process not in (None, os.getpid()):
        return None
    return period_us * 1000


def _whole(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"${name} must be a whole number as systemd sets it, not {text!r}")
    return int(text)
