"""What works on this machine, and why the rest does not."""

import platform
from importlib.metadata import PackageNotFoundError, version

from . import backends
from .artifact import Value
from .device import Device, detect
from .meter import find_meter

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


class Environment(Value, frozen=True, kw_only=True):
    device: Device
    meter: Availability
    backends: tuple[Availability, ...]
    python: str
    packages: dict[str, str | None]
    """Installed versions; `None`: not installed."""


def describe() -> Environment:
    """This machine, its meter, its backends and the versions of what is installed."""
    device = detect()
    meter = find_meter(device)
    return Environment(
        device=device,
        meter=Availability(name=meter.name, reason=meter.reason),
        backends=tuple(
            Availability(name=name, reason=backends.backend(name).unavailable())
            for name in backends.NAMES
        ),
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
