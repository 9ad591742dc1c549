"""A network's topologies, compiled, loaded, checked against eager and measured."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from . import __version__
from .backends import Backend
from .backends import backend as find_backend
from .catalog import shipped_complexity
from .cut import Cut, cut_topologies, part
from .device import Device
from .equality import Check, compare, require_close
from .family import Family
from .instruments import Instruments
from .journal import Journal
from .measure import MeasureSettings, measure
from .network import StitchNetwork, count
from .profile import Profile
from .program import (
    Program,
    atom_classes,
    compile_segments,
    example_images,
    load_program,
    require,
)
from .progress import Progress, silent
from .timer import Samples


def build_program(
    network: StitchNetwork,
    topologies: tuple[str, ...],
    folder: Path,
    device: Device,
    *,
    backend: str | Backend = "auto",
    precision: str = "fp32",
    batch: int = 1,
    progress: Progress = silent,
) -> tuple[Cut, Program]:
    """Compiles topologies into a folder and loads them."""
    chosen = find_backend(backend, device.accelerator)
    require(chosen, precision, device)
    network.to(device.accelerator)
    segments = cut_topologies(network.family, topologies)
    compile_segments(
        network, segments, chosen, folder, precision=precision, batch=batch, progress=progress
    )
    program = load_program(
        segments,
        chosen,
        folder,
        network.family,
        lambda: network,
        device,
        precision=precision,
        batch=batch,
    )
    return segments, program


@dataclass
class NetworkSource:
    """The topologies of a network, cut together, compiled as they are asked for."""

    stitched: StitchNetwork
    network: str | None
    """Digest of the weights; `None`: random ones."""
    cut: Cut
    folder: Path
    device: Device
    backend: Backend
    precision: str
    batch: int
    progress: Progress = silent
    done: set[str] = field(default_factory=set)

    @property
    def family(self) -> Family:
        return self.stitched.family

    @property
    def segments(self) -> Mapping[str, tuple[str, ...]]:
        return self.cut.chains

    def program(self, topologies: Sequence[str]) -> Program:
        wanted = part(self.cut, topologies)
        compile_segments(
            self.stitched,
            wanted,
            self.backend,
            self.folder,
            precision=self.precision,
            batch=self.batch,
            done=self.done,
            progress=self.progress,
        )
        self.done |= set(wanted.atoms)
        return load_program(
            wanted,
            self.backend,
            self.folder,
            self.family,
            lambda: self.stitched,
            self.device,
            precision=self.precision,
            batch=self.batch,
        )

    def classes(self) -> Mapping[str, str]:
        return atom_classes(self.stitched)

    def sizes(self) -> Mapping[str, float]:
        """Multiply-adds and a share that each call costs: half of the mean topology."""
        complexity = shipped_complexity(self.family) or count(self.stitched)
        gmacs = {name: complexity.gmacs(self.family, name) for name in self.segments}
        call = float(np.mean(list(gmacs.values()))) / 2
        return {name: call + value for name, value in gmacs.items()}


def profile_network(
    network: StitchNetwork,
    instruments: Instruments,
    settings: MeasureSettings | None = None,
    *,
    topologies: tuple[str, ...] = (),
    backend: str | Backend = "auto",
    precision: str = "fp32",
    batch: int = 1,
    random_weights: bool = False,
    unfinished: Path | None = None,
    progress: Progress = silent,
) -> tuple[Profile, Samples]:
    """The profile of a network's topologies, all or those given, and the samples behind it.

    With `unfinished` what is measured is kept there at once, and a killed profile that is called
    again goes on with it; the caller removes the file once the profile is saved.

    Raises:
        MismatchError: `unfinished` is of something else.
    """
    settings = settings or MeasureSettings()
    with network_source(
        network,
        instruments.device,
        topologies,
        backend=backend,
        precision=precision,
        batch=batch,
        random_weights=random_weights,
        progress=progress,
    ) as source:
        journal = _journal(source, instruments, settings, unfinished) if unfinished else None
        try:
            return measure(source, instruments, settings, journal=journal, progress=progress)
        finally:
            if journal:
                journal.close()


@contextmanager
def network_source(
    network: StitchNetwork,
    device: Device,
    topologies: tuple[str, ...] = (),
    *,
    backend: str | Backend = "auto",
    precision: str = "fp32",
    batch: int = 1,
    random_weights: bool = False,
    progress: Progress = silent,
) -> Iterator[NetworkSource]:
    """A network's topologies, all or those given, cut together; what is compiled goes at the end."""
    names = topologies or tuple(t.name for t in network.topologies)
    chosen = find_backend(backend, device.accelerator)
    require(chosen, precision, device)
    network.to(device.accelerator)
    with tempfile.TemporaryDirectory(prefix="edgestitch-") as folder:
        yield NetworkSource(
            stitched=network,
            network=None if random_weights else network.digest,
            cut=cut_topologies(network.family, [network.family.topology(n).name for n in names]),
            folder=Path(folder),
            device=device,
            backend=chosen,
            precision=precision,
            batch=batch,
            progress=progress,
        )


def _journal(
    source: NetworkSource, instruments: Instruments, settings: MeasureSettings, path: Path
) -> Journal:
    """What was measured of just this before, if anything was.

    How much is enough may have changed: that is no reason to throw away what there is.
    """
    device, energy = source.device, settings.energy
    return Journal(
        path,
        {
            "family": source.family.digest,
            "network": str(source.network),
            "topologies": " ".join(source.segments),
            "device": f"{device.name}, {device.hardware}, {device.power_mode}",
            "backend": f"{source.backend.name} {source.backend.version()}, {source.precision}",
            "batch": str(source.batch),
            "meter": instruments.meter.name,
            "window": f"{energy.window_s} s, {energy.periods} periods" if energy else "none",
            "load": str(settings.load),
            "contention": str(settings.contention),
            "burst": str(settings.timer.burst),
            "edgestitch": __version__,
            "throttled": "kept" if settings.timer.keep_throttled else "dropped",
        },
    )


def check_program(
    program: Program,
    network: StitchNetwork,
    images: np.ndarray | None = None,
    *,
    progress: Progress = silent,
) -> tuple[Check, ...]:
    """Every topology of a program beside eager.

    Raises:
        CompileError: one is beyond the tolerance; the message has the figures.
    """
    batch = program.batch
    if images is None:
        images = example_images(network.family, 8 * batch, seed=1)
    whole = len(images) // batch * batch
    images = np.ascontiguousarray(images[:whole])
    device = next(network.parameters()).device
    checks = []
    for index, name in enumerate(program.topologies):
        progress("check", index, len(program.topologies))
        run = program.load(name).run
        with torch.inference_mode():
            expected = network.assemble(name)(torch.from_numpy(images).to(device)).cpu().numpy()
        found = np.concatenate([run(images[i : i + batch]) for i in range(0, whole, batch)])
        checks.append(compare(name, found, expected))
        require_close(checks[-1], program.backend, program.precision)
    progress("check", len(checks), len(checks))
    return tuple(checks)
