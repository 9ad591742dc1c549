"""Programs: topologies of a network cut into segments, compiled, and ready to be called."""

import threading
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .backends import Backend, Compiled, Load, Marked, Request, Resident, Run
from .cut import Cut
from .device import Device
from .errors import DeviceError
from .family import Family, normalized_range
from .progress import Progress, silent

if TYPE_CHECKING:
    from .network import StitchNetwork


@dataclass(frozen=True, kw_only=True)
class Program:
    """Topologies that can be called, by name."""

    backend: str
    precision: str
    batch: int
    threads: int
    version: str
    segments: tuple[str, ...]
    topologies: tuple[str, ...]
    load: Load
    """Makes one of them ready; asked again it gives the same."""

    @property
    def runs(self) -> dict[str, Run]:
        """All of them."""
        return {name: self.load(name).run for name in self.topologies}

    @property
    def marked(self) -> dict[str, Marked]:
        """The same with the time of each segment, if the backend can tell."""
        found = {name: self.load(name).marked for name in self.topologies}
        return {name: marked for name, marked in found.items() if marked}


def atom_classes(network: "StitchNetwork") -> dict[str, str]:
    """For each atom the first one of its anchor that computes the same thing.

    That is one of the same modules with the same options, weights of the same shapes and the same
    buffers: blocks of Swin that shift their windows have a mask, and the others do not.
    """
    from .network import structure  # with timm, which takes seconds: not to run what is compiled

    first: dict[tuple[str, str], str] = {}
    return {
        name: first.setdefault((name.split(":")[0], structure(module)), name)
        for name, module in network.atoms.items()
    }


def require(backend: Backend, precision: str, device: Device) -> None:
    """Raises unless the backend works here, on this device, and knows the precision."""
    if device.accelerator not in backend.accelerators:
        raise DeviceError(
            f"backend {backend.name} computes on {', '.join(backend.accelerators)}, not on "
            f"{device.name}; use another backend, or --device cpu"
        )
    reason = backend.unavailable()
    if reason is not None:
        raise DeviceError(f"backend {backend.name} does not work here: {reason}")
    if precision not in backend.precisions:
        raise ValueError(
            f"backend {backend.name} knows {', '.join(backend.precisions)}, not {precision!r}"
        )


def compile_segments(
    network: "StitchNetwork",
    plan: Cut,
    backend: Backend,
    folder: Path,
    *,
    precision: str = "fp32",
    variant: str = "",
    batch: int = 1,
    done: Container[str] = (),
    finished: Callable[[str], None] = lambda segment: None,
    progress: Progress = silent,
) -> None:
    """Compiles every segment once, on its real input shape, to files in a folder.

    Those in `done` are there already; `finished` is told of each of the others when it is.
    """
    import torch  # a second and 200 MiB, which running what is compiled need not cost

    folder.mkdir(parents=True, exist_ok=True)
    outputs: dict[str, torch.Size] = {}
    device = next(network.parameters()).device
    network.eval()
    for chain in plan.chains.values():
        shape = torch.Size((batch, *network.family.input_shape))
        for name in chain:
            if name not in outputs:
                progress("compile", len(outputs), len(plan.atoms))
                segment = network.chain(plan.atoms[name])
                example = torch.zeros(shape, device=device)
                if name not in done:
                    backend.compile(
                        Request(
                            module=segment,
                            example=example,
                            path=folder / name,
                            precision=precision,
                            variant=variant,
                        )
                    )
                    finished(name)
                with torch.inference_mode():
                    outputs[name] = segment(example).shape
            shape = outputs[name]
    progress("compile", len(plan.atoms), len(plan.atoms))


def load_program(
    plan: Cut,
    backend: Backend,
    folder: Path,
    family: Family,
    network: "Callable[[], StitchNetwork]",
    device: Device,
    *,
    precision: str,
    batch: int,
) -> Program:
    """The topologies whose segments `compile_segments` wrote to a folder."""
    require(backend, precision, device)
    compiled = Compiled(
        folder=folder,
        chains=plan.chains,
        atoms=plan.atoms,
        precision=precision,
        threads=device.cores,
        accelerator=device.accelerator,
        input_shape=(batch, *family.input_shape),
        network=network,
    )
    return Program(
        backend=backend.name,
        precision=precision,
        batch=batch,
        threads=device.cores,
        version=backend.version(),
        segments=tuple(plan.atoms),
        topologies=tuple(plan.chains),
        load=_once(backend.load(compiled)),
    )


def _once(load: Load) -> Load:
    """Loads each topology once, whichever thread asks first."""
    ready: dict[str, Resident] = {}
    lock = threading.Lock()

    def one(name: str) -> Resident:
        with lock:
            if name not in ready:
                ready[name] = load(name)
            return ready[name]

    return one


def example_images(family: Family, batch: int, *, seed: int = 0) -> np.ndarray:
    """Random normalised images, float32 [batch, C, H, W]."""
    low, high = normalized_range(family)
    random = np.random.default_rng(seed)
    return random.uniform(low, high, (batch, *family.input_shape)).astype(np.float32)
