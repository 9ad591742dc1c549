"""Backends: what executes a topology's segments.

A backend is three functions: whether it works here, how a segment is compiled to files, and how
compiled segments become topologies that can be called. `backend` gives them by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgestitch.network import StitchNetwork

Run = Callable[[np.ndarray], np.ndarray]
"""One inference: float32 images [B, C, H, W] in, float32 logits [B, classes] out, both owned by the
caller. Of what a backend has loaded, one runs at a time: they share what passes between segments."""

Marked = Callable[[np.ndarray], Sequence[float]]
"""One inference with marks between the segments: the milliseconds of each, in order."""

OnDevice = Callable[["Tensor"], "Tensor"]
"""One inference on images that lie on the accelerator already, float32 [B, C, H, W]; the logits,
float32 [B, classes], stay there and are finished."""


@dataclass(frozen=True, kw_only=True)
class Resident:
    """A topology that is ready to be called; its callables share everything."""

    run: Run
    marked: Marked | None = None
    """`None`: the backend cannot set marks."""
    on_device: OnDevice | None = None
    """`None`: the backend takes images in host memory only."""


Load = Callable[[str], Resident]
"""Makes a topology ready, by name; segments that earlier ones have are used again."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A segment to be compiled."""

    module: "nn.Module"
    example: "Tensor"
    """Of the shape that the segment will be called with, and on the device."""
    path: Path
    """What its files' names begin with."""
    precision: str
    variant: str = ""
    """One of the backend's."""


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
    input_shape: tuple[int, int, int, int]
    network: "Callable[[], StitchNetwork]"
    """Loads the network, for backends that run its modules or use its weights themselves."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    name: str
    accelerators: tuple[str, ...]
    """What it computes on, of `cpu` and `cuda`."""
    precisions: tuple[str, ...]
    unavailable: Callable[[], str | None]
    """Why it does not work here and what to do about it; `None` if it works."""
    compile: Callable[[Request], None]
    load: Callable[[Compiled], Load]
    version: Callable[[], str]
    """Of the software behind it."""
    variants: tuple[str, ...] = ("",)
    """Ways to compile, the fastest first: where one computes something else than eager, the next
    one is tried."""
    files: "Callable[[Path, str], list[Path]]" = lambda folder, segment: sorted(
        folder.glob(f"{segment}.*")
    )
    """The files of a compiled segment in a folder, those that it shares with others included."""
    shares_weights: bool = False
    """Whether all that is compiled uses the network's own tensors: then a segment that repeats
    another's atoms costs no second copy of their weights."""


NAMES = ("openvino", "eager", "inductor", "cudagraph", "tensorrt")

# In order of preference: the first that is available is the default, and the next ones are tried
# where one fails. On a CPU AOTInductor compiles for minutes and is not faster than OpenVINO.
PREFERENCE = {
    "cpu": ("openvino", "eager", "inductor"),
    "cuda": ("tensorrt", "inductor", "cudagraph", "eager"),
}


def backend(name: str | Backend, accelerator: str = "cpu") -> Backend:
    """The backend of that name; `auto` is the first that is available; a backend is itself.

    Raises:
        ValueError: there is no such backend.
    """
    if isinstance(name, Backend):
        return name
    if name == "auto":
        return next(available(accelerator))
    if name not in NAMES:
        raise ValueError(f"no backend {name!r}; there are {', '.join(NAMES)}")
    module = import_module(f".{name}", __name__)
    found: Backend = module.BACKEND
    return found


def available(accelerator: str) -> Iterator[Backend]:
    """The backends that work here for an accelerator, in order of preference."""
    found = (backend(name) for name in PREFERENCE[accelerator])
    return (candidate for candidate in found if candidate.unavailable() is None)
