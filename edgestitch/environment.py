"""What this machine is and does, what works on it, and why the rest does not."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from . import backends, power
from .artifact import Value
from .device import Descriptor, Device, descriptor, detect
from .errors import DeviceError
from .meters import Tried, survey
from .power import PowerMode
from .sensors import State, find_sensors

if TYPE_CHECKING:
    from .nvml import Nvml

PACKAGES = (
    "edgestitch",
    "torch",
    "timm",
    "openvino",
    "torch-tensorrt",
    "nvidia-ml-py",
    "scipy",
    "numpy",
)


class Availability(Value, frozen=True, kw_only=True):
    name: str
    reason: str | None
    """Why it does not work here; `None` if it does."""
    scope: str | None = None
    """Of a meter: what its energy is the energy of."""


class Environment(Value, frozen=True, kw_only=True):
    device: Device
    nvml: str | None
    """Why NVML does not work here; `None` if it does."""
    power_modes: tuple[PowerMode, ...]
    """That this board has."""
    state: State
    locked: bool | None
    """Whether the device's clocks are pinned; `None`: unknown."""
    meter: Availability
    """The first of `meters` that works; `none` where none does, with the reasons of all."""
    meters: tuple[Availability, ...]
    backends: tuple[Availability, ...]
    python: str
    packages: dict[str, str | None]
    """Installed versions; `None`: not installed."""


def describe(root: Path = Path("/"), *, nvml: "Nvml | None" = None) -> Environment:
    """This machine, what it does at this moment, its meters and backends, and installed versions.

    Works on every machine; what it lacks has a reason in the place of a value.
    """
    nvml, reason = (nvml, None) if nvml else _nvml()
    device = detect(root, nvml=nvml)
    kind = descriptor(device.name)
    sensors = find_sensors(device, root=root, nvml=nvml)
    found = _meters(device, kind, root, nvml)
    return Environment(
        device=device,
        nvml=reason,
        power_modes=power.modes(root) if kind.chip else (),
        state=sensors.read(),
        locked=sensors.locked,
        meter=_first_that_works(found),
        meters=found,
        backends=tuple(_backend(name, kind) for name in backends.NAMES),
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
    )


def lines(found: Environment) -> Iterator[str]:
    """The same for people, a line for each thing."""
    device, state = found.device, found.state
    yield f"device     {device.name}: {device.hardware}"
    known = {"module": device.module, "jetpack": device.jetpack, "driver": device.driver}
    yield from (f"{name:<10} {value}" for name, value in known.items() if value)
    if found.nvml and not device.driver:
        yield f"nvml       {found.nvml}"
    available = state.memory_available_mib
    free = "" if available is None else f", {available} MiB of them available"
    yield f"memory     {device.memory_mib} MiB{free}"
    yield f"power mode {device.power_mode or 'none that can be read'}"
    for mode in found.power_modes:
        yield f"           {mode.id} {mode.name}" + (" (default)" if mode.default else "")
    pinned = {True: "yes", False: "no", None: "unknown"}[found.locked]
    yield f"clocks     {_listed(state.clocks_mhz, 'MHz')}; pinned: {pinned}"
    yield f"heat       {_listed(state.temperatures_c, 'C')}"
    said = "none" if "throttle" not in state.unread else "unknown"
    yield f"throttling {', '.join(state.throttle) or said}"
    yield from (f"events     {name} {count}" for name, count in state.events.items())
    yield from (f"other      {process}" for process in state.others)
    yield from (f"unread     {name}: {reason}" for name, reason in state.unread.items())
    for meter in found.meters:
        scope = f" ({meter.scope})" if meter.scope else ""
        yield f"meter      {meter.name}{scope}: {meter.reason or 'works'}"
    for backend in found.backends:
        yield f"backend    {backend.name}: {backend.reason or 'works'}"
    yield f"python     {found.python}"
    for name, installed in found.packages.items():
        yield f"package    {name} {installed or 'not installed'}"


def _nvml() -> "tuple[Nvml | None, str | None]":
    from .nvml import connect

    try:
        return connect(), None
    except DeviceError as error:
        return None, str(error)


def _meters(
    device: Device, kind: Descriptor, root: Path, nvml: "Nvml | None"
) -> tuple[Availability, ...]:
    found = survey(device, totals=kind.rails.totals, root=root, nvml=nvml)
    return tuple(
        Availability(name=meter.name, reason=meter.reason, scope=_scope(meter, kind))
        for meter in found
    )


def _scope(meter: Tried, kind: Descriptor) -> str:
    estimated = kind.rails.estimate and meter.name.startswith("ina")
    return meter.scope + (", an estimate" if estimated else "")


def _first_that_works(found: tuple[Availability, ...]) -> Availability:
    reasons = "; ".join(f"{meter.name}: {meter.reason}" for meter in found)
    none = Availability(name="none", reason=reasons or "no meter is known for this device")
    return next((meter for meter in found if meter.reason is None), none)


def _backend(name: str, kind: Descriptor) -> Availability:
    reason = backends.backend(name).unavailable()
    if name != "eager" and not kind.compile:
        reason = kind.compile_reason
    return Availability(name=name, reason=reason)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _listed(values: dict[str, float], unit: str) -> str:
    listed = (f"{name} {value:.0f} {unit}" for name, value in values.items())
    return ", ".join(listed) or "none that can be read"
