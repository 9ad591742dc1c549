"""Deployments: the folder that `Runtime` opens, compiled, checked against eager, and measured.

deployment/
  manifest.json         what is in the folder, with digests; written last
  network.safetensors   the weights, for backends that use them, and for eager where one fails
  segments/             what the backend compiled
  selftest.safetensors  images, and what eager says of them, by topology
  accuracy.json         what each topology is worth
  profile.json          what each resident topology costs as it is deployed, and its samples
  plan.json             which one is used under which budget, from those costs

What is compiled is a cache: on another machine, or under another version of its backend, it is made
again from the network, never loaded.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .accuracy import Accuracy
from .artifact import Artifact, Value, load, load_tensors, read, sha256
from .backends import Backend, Resident, Run
from .backends import backend as find_backend
from .cut import Cut, largest_resident
from .device import Device, detect, resolve
from .equality import Check, compare, require_close
from .errors import ArtifactError, InfeasibleError, MismatchError
from .family import Family
from .memory import available_mib
from .profile import Conditions, Profile
from .program import Program, load_program, require
from .schedule import Plan

if TYPE_CHECKING:
    from .network import StitchNetwork

MANIFEST = "manifest.json"
NETWORK = "network.safetensors"
SEGMENTS = "segments"
SELFTEST = "selftest.safetensors"
SELFTEST_KIND = "self-test"
WARM_UP = 3
"""Inferences of a topology before it is ready, since the first ones allocate what later ones use."""


class Attempt(Value, frozen=True, kw_only=True):
    """One way to compile, and what became of it."""

    backend: str
    precision: str
    variant: str = ""
    """One of the backend's; empty: its first."""
    failure: str | None = None
    """Why it was not used; `None`: it is what is deployed."""


class Memory(Value, frozen=True, kw_only=True):
    """What the resident topologies take, measured as they were loaded to be checked."""

    segments_mib: dict[str, float]
    """Of each segment: its weights, times what the backend takes in all over what all weights are."""
    total_mib: float
    weights_mib: float
    """One copy of the union of the weights, in the precision."""

    def __str__(self) -> str:
        return f"{self.total_mib:.1f} MiB, {self.total_mib / self.weights_mib:.2f} copies of the weights"


class Manifest(Artifact, frozen=True, kw_only=True):
    """What a deployment is made of."""

    kind: ClassVar[str] = "deployment"
    version: ClassVar[int] = 2

    family: Family
    network: str
    """Digest of the weights."""
    conditions: Conditions
    segments: dict[str, tuple[str, ...]]
    """The atoms of each segment."""
    chains: dict[str, tuple[str, ...]]
    """The segments of each resident topology."""
    checks: tuple[Check, ...]
    attempts: tuple[Attempt, ...]
    """What was tried, in order; the last one is deployed."""
    memory: Memory
    other_batches: tuple[int, ...] = ()
    """Batch sizes that there are deployments for in folders of this one's."""
    segment_files: dict[str, tuple[str, ...]]
    """Of each segment, in the folder `segments`."""
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
    selftest: Mapping[str, np.ndarray] = field(default_factory=dict)
    """`images` [batch, C, H, W] and, by topology, what eager says of them."""
    others: tuple["Deployment", ...] = ()
    """The same topologies for other batch sizes, on the same weights."""

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return (self.manifest.conditions.batch, *self.manifest.family.input_shape)

    def ready(self, topology: str, guard: AbstractContextManager[object] | None = None) -> Resident:
        """A topology, loaded, warmed up, and found equal to eager on images of the compilation.

        `guard` is held while it is run.

        Raises:
            ArtifactError: a file of it was altered.
            CompileError: it cannot be loaded, or computes something else than when it was compiled.
        """
        for segment in self.manifest.chains[topology]:
            for name in self.manifest.segment_files.get(segment, ()):
                self._require_whole(f"{SEGMENTS}/{name}")
        resident = self.program.load(topology)
        images = self.selftest.get("images")
        given = np.zeros(self.input_shape, np.float32) if images is None else images
        for _ in range(WARM_UP):
            with guard or nullcontext():
                logits = resident.run(given)
        if images is not None:
            conditions = self.manifest.conditions
            check = compare(topology, logits, self.selftest[topology])
            require_close(check, conditions.backend, conditions.precision)
        return resident

    def eager(self, topology: str) -> Run:
        """A topology run by PyTorch on the CPU, for where what was compiled fails."""
        import torch

        module = self._network.assemble(topology)

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                logits: np.ndarray = module(torch.from_numpy(images)).numpy()
            return logits

        return run

    @cached_property
    def _network(self) -> "StitchNetwork":
        return stored_network(self.folder, self.manifest).eval()

    def moved(self, folder: Path) -> "Deployment":
        """The same after its folder was renamed."""
        others = tuple(one.moved(folder / one.folder.name) for one in self.others)
        return replace(self, folder=folder, others=others)

    def _require_whole(self, name: str) -> None:
        expected = self.manifest.files.get(name)
        if expected is not None:
            _require_digest(self.folder / name, expected)


# --- opening ---------------------------------------------------------------------------------------


def open_deployment(
    folder: Path,
    *,
    whole: bool = True,
    network: "Callable[[], StitchNetwork] | None" = None,
) -> Deployment:
    """The deployment in a folder, its topologies ready to be loaded.

    Every file is compared with its digest; without `whole` those of a topology when it is loaded.
    `network` gives the weights in place of the deployment's own file, for several that share them.

    Raises:
        ArtifactError: there is none, or a file in it is missing or altered.
        MismatchError: it was compiled for other hardware or another version of its backend.
        DeviceError: its backend does not work here.
    """
    manifest = load_manifest(folder)
    conditions = manifest.conditions
    backend = find_backend(conditions.backend)
    for name, expected in manifest.files.items():
        if not _compared_later(name, backend, whole):
            _require_digest(folder / name, expected)
    device = _device(folder, conditions)
    require(backend, conditions.precision, device)
    found = {
        "hardware": (conditions.hardware, device.hardware),
        "module": (conditions.module, device.module),
        "power mode": (conditions.power_mode, device.power_mode),
        "driver": (conditions.versions.get("driver"), device.driver),
        f"{backend.name} version": (conditions.versions[backend.name], backend.version()),
    }
    for what, (made_with, here) in found.items():
        if made_with not in (None, here):
            raise MismatchError(_elsewhere(folder, what, made_with, here))
    network = network or _kept_alive(folder, manifest, device)
    program = load_program(
        Cut(atoms=manifest.segments, chains=manifest.chains),
        backend,
        folder / SEGMENTS,
        manifest.family,
        network,
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
        selftest=load_tensors(SELFTEST_KIND, 1, folder / SELFTEST)[1],
        others=tuple(
            open_deployment(folder / batch_folder(batch), whole=whole, network=network)
            for batch in manifest.other_batches
        ),
    )


def batch_folder(batch: int) -> str:
    """Where the deployment for another batch size lies in the main one's folder."""
    return f"batch-{batch}"


def _kept_alive(folder: Path, manifest: Manifest, device: Device) -> "Callable[[], StitchNetwork]":
    """The network in the precision of the deployment, on its device: the same one as long as it is used."""
    alive: list[weakref.ref[StitchNetwork]] = []

    def network() -> "StitchNetwork":
        found = alive[0]() if alive else None
        if found is None:
            import torch

            from .backends.chain import DTYPES, in_precision

            dtype, where = DTYPES[manifest.conditions.precision], torch.device(device.accelerator)
            found = in_precision(stored_network(folder, manifest), where, dtype)
            alive[:] = [weakref.ref(found)]
        return found

    return network


def require_fit(wanted: Sequence[tuple[Deployment, tuple[str, ...]]]) -> None:
    """Raises unless topologies of deployments fit together into the memory that is left.

    Raises:
        InfeasibleError: with both numbers, and the largest set that would fit.
    """
    sizes: dict[str, float] = {}
    chains: dict[str, list[str]] = {}
    for number, (deployment, topologies) in enumerate(wanted):
        manifest = deployment.manifest
        sizes |= {f"{number} {name}": mib for name, mib in manifest.memory.segments_mib.items()}
        for topology in topologies:
            parts = [f"{number} {segment}" for segment in manifest.chains[topology]]
            chains.setdefault(topology, []).extend(parts)
    needed = sum(sizes[part] for part in {part for chain in chains.values() for part in chain})
    device = resolve(wanted[0][0].manifest.conditions.device)
    left = available_mib(device)
    if needed > left:
        safety = wanted[0][1][0]
        largest = largest_resident(chains, sizes, memory_mib=left, safety=safety)
        raise InfeasibleError(
            f"keeping {len(chains)} topologies resident takes {needed:.1f} MiB, and "
            f"{device.name} has {left:.1f} MiB left; the largest set that fits takes "
            f"{largest.memory_mib:.1f} MiB: Runtime(topologies={list(largest.topologies)})"
        )


def _compared_later(name: str, backend: Backend, whole: bool) -> bool:
    """Whether a file is compared with its digest when it is loaded, and not when all is opened."""
    if name == NETWORK:
        return backend.shares_weights or not whole
    return name.startswith(f"{SEGMENTS}/") and not whole


def load_manifest(folder: Path) -> Manifest:
    """What the deployment in a folder is made of."""
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"no deployment at {folder}: it has no {MANIFEST}; `edgestitch compile` makes one"
        )
    return load(Manifest, folder / MANIFEST)


def stored_network(folder: Path, manifest: Manifest) -> "StitchNetwork":
    """The network of the deployment in a folder.

    Raises:
        ArtifactError: its file was altered.
    """
    from .network import load_network  # with timm, which takes seconds and not every backend needs

    path = folder / NETWORK
    # One for another batch size is inside the one that has the weights.
    return load_network(
        path if path.is_file() else folder.parent / NETWORK, digest=manifest.network
    )


def _require_digest(path: Path, expected: str) -> None:
    if sha256(read(path)) != expected:
        raise ArtifactError(f"{path} was altered after the deployment was made; compile it again")


def _device(folder: Path, conditions: Conditions) -> Device:
    found = detect()
    if conditions.device not in (found.name, "cpu"):
        raise MismatchError(_elsewhere(folder, "device", conditions.device, found.name))
    return resolve(conditions.device)


def _elsewhere(folder: Path, field: str, made_for: str | None, found: str | None) -> str:
    return (
        f"the deployment at {folder} was compiled and measured for another machine: {field} is "
        f"{made_for} there and {found} here; compile it here"
    )
