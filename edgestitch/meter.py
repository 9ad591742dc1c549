"""Energy meters. A number that was not measured is null, with the reason: never 0, never a guess."""

from typing import Protocol

from .device import Device


class Meter(Protocol):
    """What can tell the energy that a device used."""

    name: str
    reason: str | None
    """Why `read_mj` returns `None`; `None` if it can read."""

    def read_mj(self) -> float | None:
        """Energy used since some fixed moment, in millijoules."""


class NoMeter:
    """The meter of a device whose energy nothing here measures."""

    name = "none"

    def __init__(self, reason: str) -> None:
        self.reason: str | None = reason

    def read_mj(self) -> float | None:
        return None


def find_meter(device: Device) -> Meter:
    """The best meter that works on a device; as yet none is read, on any."""
    return NoMeter(f"this version of edgestitch reads no energy meter on {device.name}")
