"""Deployments: the folder that `Runtime` opens, compiled, checked against eager, and measured.

deployment/
  manifest.json         what is in the folder, with digests; written last
  network.safetensors   the weights, for the eager backend and for checks
  segments/             what the backend compiled
  accuracy.json         what each topology is worth
  profile.json          what each resident topology costs as it is deployed, and its samples
  plan.json             which one is used under which budget, from those costs
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import torch

from . import __version__
from .accuracy import Accuracy
from .artifact import Artifact, Value, load, read, save, sha256
from .backends import Backend
from .backends import backend as find_backend
from .catalog import shipped_complexity
from .device import Device, detect, resolve
from .errors import ArtifactError, CompileError, MismatchError
from .family import Family
from .folder import digests, replacing_folder
from .instruments import Instruments
from .journal import Journal
from .measure import LoadedSource, MeasureSettings, measure, save_profile
from .network import StitchNetwork, count, load_network, save_network
from .profile import Conditions, Profile, require_same_network
from .program import (
    Cut,
    Program,
    atom_classes,
    compile_segments,
    cut_topologies,
    example_images,
    load_program,
    part,
    require,
)
from .progress import Progress, silent
from .schedule import Plan, with_costs
from .timer import Samples

MANIFEST = "manifest.json"
NETWORK = "network.safetensors"
SEGMENTS = "segments"

# How far a compiled topology may be from eager before it is refused: largest difference of a logit
# relative to the largest logit, and smallest cosine of the logits of an image. Half precision keeps
# 11 bits of each number, bfloat16 8.
TOLERANCE = {"fp32": (1e-3, 0.9999), "fp16": (0.03, 0.999), "bf16": (0.25, 0.99)}


class Check(Value, frozen=True, kw_only=True):
    """A compiled topology beside eager, on the same images."""

    topology: str
    images: int
    max_difference: float
    """Largest difference of a logit, relative to the largest logit."""
    min_cosine: float
    """Of the logits of one image."""
    top1_agreement: float
    """Part of the images that both put in the same class."""


class Manifest(Artifact, frozen=True, kw_only=True):
    """What a deployment is made of."""

    kind: ClassVar[str] = "deployment"
    version: ClassVar[int] = 1

    family: Family
    network: str
    """Digest of the weights."""
    conditions: Conditions
    segments: dict[str, tuple[str, ...]]
    """The atoms of each segment."""
    chains: dict[str, tuple[str, ...]]
    """The segments of each resident topology."""
    checks: tuple[Check, ...]
    files: dict[str, str]
    """SHA-256 of every other file in the folder."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """An opened deployment."""

    folder: Path
    manifest: Manifest
    plan: Plan
    profile: Profile
    accuracy: Accuracy
    program: Program

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return (self.manifest.conditions.batch, *self.manifest.family.input_shape)


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


def compile_deployment(
    network: StitchNetwork,
    plan: Plan,
    accuracy: Accuracy,
    out: Path,
    instruments: Instruments,
    settings: MeasureSettings | None = None,
    *,
    backend: str | Backend = "auto",
    precision: str = "fp32",
    batch: int = 1,
    images: np.ndarray | None = None,
    from_estimate: bool = False,
    progress: Progress = silent,
) -> Deployment:
    """Compiles the resident topologies of a plan into a deployment, and opens it.

    Each is compared with eager on `images` (normalised, float32 [N, C, H, W]; random ones if not
    given) and refused beyond the tolerance. Then each is measured as it is deployed, and the plan
    in the deployment has those costs. The folder appears whole or not at all; an older
    deployment in its place is replaced.

    Raises:
        MismatchError: plan or accuracy are another network's, or the plan was made from estimates
            and `from_estimate` does not insist.
        CompileError: the backend refuses a segment or computes something else than eager.
        ArtifactError: `out` exists and is no deployment, or cannot be written.
    """
    weights = network.digest
    require_same_network("network and plan", weights, plan.network)
    if plan.estimated and not from_estimate:
        raise MismatchError(
            f"the plan of {plan.family} was made from estimated costs, and a deployment stands on "
            "measured ones; profile on the device and plan again, or insist with --from-estimate"
        )
    settings = msgspec.structs.replace(settings or MeasureSettings(), compose=False)
    accuracy.check("network", network.family.name, weights)
    names = tuple(candidate.topology for candidate in plan.resident)
    with replacing_folder(out, MANIFEST, "deployment") as folder:
        segments, program = build_program(
            network,
            names,
            folder / SEGMENTS,
            instruments.device,
            backend=backend,
            precision=precision,
            batch=batch,
            progress=progress,
        )
        checks = check_program(program, network, images, progress=progress)
        source = LoadedSource(network.family, weights, segments.chains, program)
        profile, samples = measure(source, instruments, settings, progress=progress)
        save_network(network, folder / NETWORK)
        save(accuracy, folder / "accuracy.json")
        save_profile(profile, samples, folder / "profile.json")
        save(with_costs(plan, profile, accuracy), folder / "plan.json")
        manifest = Manifest(
            family=network.family,
            network=weights,
            conditions=profile.conditions,
            segments=dict(segments.atoms),
            chains=dict(segments.chains),
            checks=checks,
            files=digests(folder),
        )
        save(manifest, folder / MANIFEST)
        # Opened before it takes its place: there another process may put its own at any moment.
        deployment = open_deployment(folder)
    return replace(deployment, folder=out)


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
        checks.append(_check(name, found, expected))
        _require_close(checks[-1], program)
    progress("check", len(checks), len(checks))
    return tuple(checks)


def open_deployment(folder: Path) -> Deployment:
    """The deployment in a folder, its topologies ready to be called.

    Raises:
        ArtifactError: there is none, or a file in it is missing or altered.
        MismatchError: it was compiled for other hardware or another version of its backend.
    """
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"no deployment at {folder}: it has no {MANIFEST}; `edgestitch compile` makes one"
        )
    manifest = load(Manifest, folder / MANIFEST)
    for name, expected in manifest.files.items():
        if sha256(read(folder / name)) != expected:
            raise ArtifactError(
                f"{folder / name} was altered after the deployment was made; compile it again"
            )
    conditions = manifest.conditions
    device = detect()
    if conditions.device not in (device.name, "cpu"):
        raise MismatchError(_elsewhere(folder, "device", conditions.device, device.name))
    device = resolve(conditions.device)
    backend = find_backend(conditions.backend)
    require(backend, conditions.precision, device)
    pairs = {
        "hardware": (conditions.hardware, device.hardware),
        "module": (conditions.module, device.module),
        "power mode": (conditions.power_mode, device.power_mode),
        "driver": (conditions.versions.get("driver"), device.driver),
        f"{backend.name} version": (conditions.versions[backend.name], backend.version()),
    }
    for what, (made_with, found) in pairs.items():
        if made_with not in (None, found):
            raise MismatchError(_elsewhere(folder, what, made_with, found))
    program = load_program(
        Cut(atoms=manifest.segments, chains=manifest.chains),
        backend,
        folder / SEGMENTS,
        manifest.family,
        lambda: load_network(folder / NETWORK),
        device,
        precision=conditions.precision,
        batch=conditions.batch,
    )
    return Deployment(
        folder=folder,
        manifest=manifest,
        plan=load(Plan, folder / "plan.json"),
        profile=load(Profile, folder / "profile.json"),
        accuracy=load(Accuracy, folder / "accuracy.json"),
        program=program,
    )


def _elsewhere(folder: Path, field: str, made_for: str | None, found: str | None) -> str:
    return (
        f"the deployment at {folder} was compiled and measured for another machine: {field} is "
        f"{made_for} there and {found} here; compile it here"
    )


def _check(name: str, found: np.ndarray, expected: np.ndarray) -> Check:
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = (found * expected).sum(1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return Check(
        topology=name,
        images=len(found),
        max_difference=float(np.abs(found - expected).max() / np.abs(expected).max()),
        min_cosine=float(cosine.min()),
        top1_agreement=float((found.argmax(1) == expected.argmax(1)).mean()),
    )


def _require_close(check: Check, program: Program) -> None:
    largest, smallest = TOLERANCE[program.precision]
    # Not-a-number must fail, so the comparison asks for what is right.
    if not (check.max_difference <= largest and check.min_cosine >= smallest):
        raise CompileError(
            f"{check.topology} compiled by {program.backend} {program.precision} is not equal to "
            f"eager: logits differ by {check.max_difference:.2g} of the largest (allowed "
            f"{largest:g}), cosine {check.min_cosine:.6f} (at least {smallest:g}); use another "
            "precision or backend"
        )
