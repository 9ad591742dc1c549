"""edgestitch: stitchable networks on the device, measured, scheduled, compiled, switched in place."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .accuracy import Accuracy
from .artifact import load
from .errors import (
    ArtifactError,
    CompileError,
    DeviceError,
    EdgestitchError,
    InfeasibleError,
    MismatchError,
)
from .family import Family
from .profile import Cost, Profile
from .recipe import load_family
from .schedule import Budget, Plan, plan
from .topology import Topology

if TYPE_CHECKING:
    from . import data as data
    from .network import StitchNetwork, load_network
    from .runtime import Runtime

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "ArtifactError",
    "Budget",
    "CompileError",
    "Cost",
    "DeviceError",
    "EdgestitchError",
    "Family",
    "InfeasibleError",
    "MismatchError",
    "Plan",
    "Profile",
    "Runtime",
    "StitchNetwork",
    "Topology",
    "__version__",
    "load_accuracy",
    "load_family",
    "load_network",
    "load_plan",
    "load_profile",
    "plan",
]

# What needs torch is imported when it is first used, so that planning answers at once.
_LAZY = {"Runtime": "runtime", "StitchNetwork": "network", "load_network": "network"}


def load_profile(path: str | Path) -> Profile:
    """The profile in a file that `edgestitch profile` wrote."""
    return load(Profile, Path(path))


def load_accuracy(path: str | Path) -> Accuracy:
    """The accuracies in a file that `edgestitch evaluate` wrote."""
    return load(Accuracy, Path(path))


def load_plan(path: str | Path) -> Plan:
    """The plan in a file that `edgestitch schedule` wrote."""
    return load(Plan, Path(path))


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    if name == "data":
        return import_module(".data", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
