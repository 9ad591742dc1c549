"""Backends: what executes a topology's segments.

A backend is three functions: whether it works here, how a segment is compiled to files, and how
compiled segments become topologies that can be called. `BACKENDS` has them by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgestitch.network import StitchNetwork

Run = Callable[[np.ndarray], np.ndarray]
"""One inference: float32 images [B, C, H, W] in, float32 logits [B, classes] out, both owned by the
caller. Not to be called by two threads at once."""


Marked = Callable[[np.ndarray], Sequence[float]]
"""One inference with marks between the segments: the milliseconds of each, in order."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Every topology of the chains, ready to be called."""

    runs: Mapping[str, Run]
    marked: Mapping[str, Marked] = field(default_factory=dict)
    """The same with marks, of a backend that can set them; they share everything with the runs."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a backend needs to make compiled segments callable."""

    folder: Path
    """Holds each segment's files, named after the segment."""
    chains: Mapping[str, tuple[str, ...]]
    """The segments of each topology, in order."""
    atoms: Mapping[str, tuple[str, ...]]
    """The atoms of each segment."""
    precision: str
    threads: int
    accelerator: str
    """`cpu` or `cuda`."""
    network: "Callable[[], StitchNetwork]"
    """Loads the network, for backends that run its modules themselves."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    name: str
    accelerators: tuple[str, ...]
    """What it computes on, of `cpu` and `cuda`."""
    precisions: tuple[str, ...]
    unavailable: Callable[[], str | None]
    """Why it does not work here and what to do about it; `None` if it works."""
    compile: "Callable[[nn.Module, Tensor, Path, str], None]"
    """Compiles a segment for inputs like the example, in a precision, to files that begin with a path."""
    load: Callable[[Compiled], Loaded]
    version: Callable[[], str]
    """Of the software behind it."""


# In order of preference: the first one that is available for the device is the default.
NAMES = ("openvino", "eager", "inductor")


def backend(name: str | Backend, accelerator: str = "cpu") -> Backend:
    """The backend of that name; `auto` is the first that is available; a backend is itself.

    Raises:
        ValueError: there is no such backend.
    """
    if isinstance(name, Backend):
        return name
    if name == "auto":
        found = (backend(candidate) for candidate in NAMES)
        return next(b for b in found if accelerator in b.accelerators and b.unavailable() is None)
    if name not in NAMES:
        raise ValueError(f"no backend {name!r}; there are {', '.join(NAMES)}")
    module = import_module(f".{name}", __name__)
    found_backend: Backend = module.BACKEND
    return found_backend
