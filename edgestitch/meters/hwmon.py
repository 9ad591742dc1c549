"""Power rails of a Jetson, from the sensors on its boards.

    /sys/class/hwmon/hwmon*/name   ina3221: in{1..3}_label, in{1..3}_input (mV), curr{1..3}_input (mA)
                                   ina238:  label, power1_input (uW)
    /sys/bus/i2c/drivers/ina3221x/*/iio:device*   up to JetPack 4: rail_name_{0..2}, in_power{0..2}_input (mW)

Directories are known by what they hold: hwmon's numbers move between boots. An INA3221's in4 to in6
are shunt voltages, in7 and curr4 sums of them; none is a rail. Sources: the kernel's ina3221 and
ina238 drivers; NVIDIA's device trees.
"""

import errno
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from edgestitch.errors import DeviceError

from .recorder import PolledMeter, Read

POLL_S = 0.02
"""An INA3221 converts its three channels in 6.6 ms by default; reading one takes 1 ms."""
_SHUNT_STEP_UV = 40
"""Of an INA3221's shunt voltage, in the kernel's driver."""


@dataclass(frozen=True, kw_only=True)
class Rail:
    """A power rail and where its power is read."""

    label: str
    chip: str
    """`ina3221` or `ina238`."""
    files: tuple[Path, ...]
    """Their product is the power."""
    scale: float
    """From that product to watts."""
    resolution_w: float | None = None
    """Least step; `None` if unknown."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Settings of the chip."""

    @contextmanager
    def open(self) -> Iterator[Read]:
        """A function that reads the rail in watts. A current may be negative and is left so.

        Raises:
            DeviceError: the files cannot be opened.
        """
        with ExitStack() as stack:
            files = [(_opened(path, stack), path) for path in self.files]
            yield lambda: self._power_w(files)

    def _power_w(self, files: list[tuple[int, Path]]) -> float:
        return self.scale * prod(self._number(descriptor, path) for descriptor, path in files)

    def _number(self, descriptor: int, path: Path) -> int:
        try:
            return int(os.pread(descriptor, 32, 0))
        except (OSError, ValueError) as error:
            raise DeviceError(f"rail {self.label}: {_words(error, path)}") from error


def rails(root: Path = Path("/")) -> tuple[Rail, ...]:
    """All rails that the boards' sensors measure.

    Raises:
        DeviceError: a sensor is there, but its labels may not be read.
    """
    found: list[Rail] = []
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*"), key=_by_number):
        found += {"ina3221": _ina3221, "ina238": _ina238}.get(_text(folder / "name"), _none)(folder)
    if not found:
        for folder in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*")):
            found += _ina3221x(folder)
    return tuple(found)


def candidates(
    parts: Collection[str], totals: Sequence[Sequence[str]], root: Path, nvml: object
) -> Iterator[PolledMeter]:
    """Meters of the board's total, the best first, named after the chip; they are not probed yet."""
    try:
        found = rails(root)
    except DeviceError as error:
        yield _meter((), reason=str(error))
        return
    by_label = {rail.label: rail for rail in reversed(found)}
    possible = [labels for labels in totals if set(labels) <= set(by_label)]
    for labels in possible:
        yield _meter(tuple(by_label[label] for label in labels), found)
    if not possible:
        yield _meter((), reason=_why_none(found, totals))


def _why_none(found: tuple[Rail, ...], totals: Sequence[Sequence[str]]) -> str:
    if not found:
        return "neither an INA3221 nor an INA238 in /sys/class/hwmon"
    labels = ", ".join(rail.label for rail in found)
    if not totals:
        return f"which of the rails {labels} make up the total is not known for this device"
    wanted = " or ".join(" + ".join(total) for total in totals)
    return f"the board's total is {wanted}, but its rails are {labels}"


def _meter(
    chosen: tuple[Rail, ...], found: tuple[Rail, ...] = (), reason: str | None = None
) -> PolledMeter:
    formula = " + ".join(rail.label for rail in chosen)
    # One rail carries all that goes in. A sum of several is what NVIDIA's tools add up as well, but
    # which rails feed others is not documented.
    scope = f"module ({formula})" if len(chosen) == 1 else f"module estimate ({formula})"
    notes = {key: value for rail in chosen for key, value in rail.notes.items()}
    conversions_s = [
        float(value) / 1e3 for key, value in notes.items() if key.endswith("update_interval_ms")
    ]
    steps = [rail.resolution_w for rail in chosen]
    known = [step for step in steps if step is not None]
    return PolledMeter(
        name=chosen[0].chip if chosen else "ina3221",
        scope=scope if chosen else "module",
        quantity="power_w",
        open=lambda: _open_sum(chosen),
        poll_s=POLL_S,
        period_s=max([POLL_S, *conversions_s]),
        resolution=sum(known) if len(known) == len(steps) > 0 else None,
        notes={**notes, **({"rails": ", ".join(rail.label for rail in found)} if found else {})},
        reason=reason,
    )


@contextmanager
def _open_sum(chosen: tuple[Rail, ...]) -> Iterator[Read]:
    with ExitStack() as stack:
        reads = [stack.enter_context(rail.open()) for rail in chosen]
        yield lambda: sum(read() for read in reads)


def _ina3221(folder: Path) -> list[Rail]:
    notes = _settings(folder)
    found = []
    for channel in (1, 2, 3):
        label = _text(folder / f"in{channel}_label")
        if label and label.upper() != "NC":
            voltage, current = folder / f"in{channel}_input", folder / f"curr{channel}_input"
            found.append(
                Rail(
                    label=label,
                    chip="ina3221",
                    files=(voltage, current),
                    scale=1e-6,  # mV x mA
                    resolution_w=_resolution_w(folder, channel),
                    notes=notes,
                )
            )
    return found


def _ina238(folder: Path) -> list[Rail]:
    label = _text(folder / "label")
    if not label or label.upper() == "NC":
        return []
    file = folder / "power1_input"
    return [
        Rail(label=label, chip="ina238", files=(file,), scale=1e-6, notes=_settings(folder))  # uW
    ]


def _ina3221x(folder: Path) -> list[Rail]:
    found = []
    for channel in (0, 1, 2):
        label = _text(folder / f"rail_name_{channel}")
        if label and label.upper() != "NC":
            file = folder / f"in_power{channel}_input"
            found.append(Rail(label=label, chip="ina3221", files=(file,), scale=1e-3))  # mW
    return found


def _none(folder: Path) -> list[Rail]:
    return []


def _settings(folder: Path) -> dict[str, str]:
    """How the chip converts, which root may have changed, under the chip's place on the bus."""
    link = folder / "device"
    chip = link.resolve().name if link.exists() else folder.name
    settings = {
        "update_interval_ms": _text(folder / "update_interval"),
        "samples": _text(folder / "samples"),
    }
    return {f"{chip} {key}": value for key, value in settings.items() if value}


def _resolution_w(folder: Path, channel: int) -> float | None:
    try:
        shunt_uohm = int(_text(folder / f"shunt{channel}_resistor"))
        voltage_mv = int(_text(folder / f"in{channel}_input"))
    except (ValueError, DeviceError):  # not there, gated off or not permitted: then it is not known
        return None
    return _SHUNT_STEP_UV / shunt_uohm * voltage_mv / 1e3 if shunt_uohm > 0 else None


def _opened(path: Path, stack: ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(_words(error, path)) from error
    stack.callback(os.close, descriptor)
    return descriptor


def _text(path: Path) -> str:
    """Content of a file; empty if it is not there or has nothing to say now."""
    try:
        return path.read_text(errors="replace").strip()
    except PermissionError as error:
        raise DeviceError(_words(error, path)) from error
    except OSError:
        return ""


def _words(error: Exception, path: Path) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM):
        return (
            f"no permission to read {path}; run: sudo chmod a+r {path.parent}/*_input (until the "
            'next boot), or for good add a udev rule for SUBSYSTEM=="hwmon" that does so'
        )
    if number == errno.EAGAIN:
        return f"{path.name} has no reading while its part is power-gated (EAGAIN)"
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"{path} is gone: the sensor's driver was unloaded"
    return f"{path}: {error}"


def _by_number(folder: Path) -> tuple[int, str]:
    return len(folder.name), folder.name
