"""What a device is measured with: its meter, its sensors, a clock, and work that runs beside."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from .device import Device, descriptor
from .errors import DeviceError
from .meters import Meter, NoMeter, find_meter
from .sensors import Sensors, State, find_sensors
from .timer import Clock


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What a device is measured with."""

    device: Device
    meter: Meter
    sensors: Sensors | None = None
    clock: Clock = time.perf_counter_ns
    sleep: Callable[[float], None] = time.sleep

    @property
    def reader(self) -> Callable[[], State] | None:
        """What reads the state of the device; `None` without sensors."""
        return self.sensors.read if self.sensors else None

    def look(self) -> State | None:
        return self.sensors.read() if self.sensors else None


def find_instruments(
    device: Device, *, energy: bool = True, meter: str | None = None
) -> Instruments:
    """What this machine has to measure that device with; the meter is tried under load.

    `meter` names the one to use, instead of the best that works.
    """
    rails = descriptor(device.name).rails
    found = (
        find_meter(device, totals=rails.totals, burn=_burn(device), only=meter)
        if energy
        else NoMeter("energy was not asked for")
    )
    return Instruments(device=device, meter=found, sensors=find_sensors(device))


def _burn(device: Device) -> Callable[[], object]:
    """Some milliseconds of work for the device, so that its meter has something to show."""
    import torch

    values = torch.ones(1024, 1024, device=device.accelerator)

    def burn() -> object:
        return (values @ values).sum().item()

    return burn


@contextmanager
def beside(command: str | None) -> Iterator[None]:
    """Runs a command of the shell meanwhile, and ends it and all that it started.

    Raises:
        DeviceError: it ended by itself, so that some of what was measured was measured alone.
    """
    if command is None:
        yield
        return
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a group of its own, to be ended as a whole
    )
    try:
        yield
        if process.poll() is not None:
            raise DeviceError(
                f"the command beside, {command!r}, ended with exit code {process.returncode} while "
                "it was measured; give one that goes on until it is stopped"
            )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
