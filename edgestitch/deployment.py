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

import fcntl
import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import torch

from . import __version__
from .accuracy import Accuracy
from .artifact import (
    Artifact,
    Value,
    load,
    load_tensors,
    read,
    save,
    save_tensors,
    sha256,
)
from .backends import Backend, Resident, Run, available
from .backends import backend as find_backend
from .cut import Cut, choose_cut, cut_topologies, largest_resident
from .device import Device, detect, resolve
from .engine import check_program
from .equality import Check, compare, require_close
from .errors import ArtifactError, CompileError, DeviceError, InfeasibleError, MismatchError
from .family import Family
from .folder import digests, replacing_folder
from .instruments import Instruments, find_instruments
from .measure import QUICK, LoadedSource, MeasureSettings, deployed, measure, save_profile
from .memory import MIB, available_mib, require_room, used_mib
from .network import StitchNetwork, load_network, save_network
from .profile import Conditions, Profile, require_same_network
from .program import (
    Program,
    compile_segments,
    example_images,
    load_program,
    require,
)
from .progress import Progress, silent
from .schedule import Plan, with_costs
from .store import store

MANIFEST = "manifest.json"
NETWORK = "network.safetensors"
SEGMENTS = "segments"
SELFTEST = "selftest.safetensors"
SELFTEST_KIND = "self-test"
WARM_UP = 3
"""Inferences of a topology before it is ready, since the first ones allocate what later ones use."""

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
WIDER = {"fp16": ("bf16", "fp32"), "bf16": ("fp32",), "fp32": ()}
"""Precisions to try where one is not equal to eager: bfloat16 has the range of fp32."""

log = logging.getLogger(__name__)


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
        module = self._network.assemble(topology)

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                logits: np.ndarray = module(torch.from_numpy(images)).numpy()
            return logits

        return run

    @cached_property
    def _network(self) -> StitchNetwork:
        self._require_whole(NETWORK)
        return load_network(self.folder / NETWORK).eval()

    def _require_whole(self, name: str) -> None:
        expected = self.manifest.files.get(name)
        if expected is not None:
            _require_digest(self.folder / name, expected)


# --- compiling -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Order:
    """A deployment that is wanted."""

    network: StitchNetwork
    plan: Plan
    accuracy: Accuracy
    out: Path
    instruments: Instruments
    settings: MeasureSettings
    batch: int
    images: np.ndarray
    memory_mib: float | None
    progress: Progress

    @property
    def topologies(self) -> list[str]:
        return [candidate.topology for candidate in self.plan.resident]

    @cached_property
    def weights(self) -> str:
        return self.network.digest


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
    fallback: bool = True,
    memory_mib: float | None = None,
    progress: Progress = silent,
) -> Deployment:
    """Compiles the resident topologies of a plan into a deployment, and opens it.

    Each is compared with eager on `images` (normalised, float32 [N, C, H, W]; random ones if not
    given). Where one cannot be compiled, or is beyond the tolerance, the backend's next variant is
    tried, then wider precisions, then other backends; without `fallback` it is an error. Then each
    is measured as it is deployed, and the plan in the deployment has those costs.

    Every weight is compiled once. With `memory_mib`, segments that save borders at the price of
    second copies are compiled as far as all that is resident fits in it.

    The folder appears whole or not at all; an older deployment in its place is replaced. Killed and
    called again, it goes on with the segments that were finished.

    Raises:
        MismatchError: plan or accuracy are another network's, or the plan was made from estimates
            and `from_estimate` does not insist.
        CompileError: no backend computes what eager does.
        DeviceError: the backend does not work on this device.
        InfeasibleError: one copy of the weights is more than the memory that is left, or than
            `memory_mib`.
        ArtifactError: `out` exists and is no deployment, or cannot be written.
    """
    weights = network.digest
    require_same_network("network and plan", weights, plan.network)
    if plan.estimated and not from_estimate:
        raise MismatchError(
            f"the plan of {plan.family} was made from estimated costs, and a deployment stands on "
            "measured ones; profile on the device and plan again, or insist with --from-estimate"
        )
    accuracy.check("network", network.family.name, weights)
    if images is None:
        images = example_images(network.family, 8 * batch, seed=1)
    order = _Order(
        network=network,
        plan=plan,
        accuracy=accuracy,
        out=out,
        instruments=instruments,
        settings=msgspec.structs.replace(settings or MeasureSettings(), compose=False),
        batch=batch,
        images=images,
        memory_mib=memory_mib,
        progress=progress,
    )
    device = instruments.device
    chosen = find_backend(backend, device.accelerator)
    require(chosen, precision, device)
    failed: list[Attempt] = []
    for one, attempt in _ladder(chosen, precision, device.accelerator):
        try:
            return _within_budget(order, one, attempt, failed)
        except CompileError as error:
            if not fallback:
                raise
            log.warning("%s; the next way to compile is tried", error)
            failed.append(msgspec.structs.replace(attempt, failure=str(error)))
    raise CompileError(
        f"nothing here computes {network.family.name} as eager does: "
        + "; ".join(str(attempt.failure) for attempt in failed)
    )


def _ladder(chosen: Backend, precision: str, accelerator: str) -> Iterator[tuple[Backend, Attempt]]:
    """Ways to compile, in the order in which they are tried."""
    others = (backend for backend in available(accelerator) if backend.name != chosen.name)
    for backend in (chosen, *others):
        for each in (precision, *WIDER[precision]):
            for variant in backend.variants if each in backend.precisions else ():
                yield backend, Attempt(backend=backend.name, precision=each, variant=variant)


class _OverBudgetError(CompileError):
    """What was compiled takes more memory than it may."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory


def _within_budget(
    order: _Order, backend: Backend, attempt: Attempt, failed: list[Attempt]
) -> Deployment:
    try:
        return _attempt(order, backend, attempt, failed)
    except _OverBudgetError as error:
        copies = error.memory.total_mib / error.memory.weights_mib
    try:
        return _attempt(order, backend, attempt, failed, copies)
    except _OverBudgetError as error:
        raise InfeasibleError(
            f"{backend.name} {attempt.precision} keeps {len(order.topologies)} topologies in "
            f"{error.memory}, and {order.memory_mib:g} MiB were asked for; keep fewer, allow more, or "
            "use a backend that shares the weights"
        ) from None


def _attempt(
    order: _Order,
    backend: Backend,
    attempt: Attempt,
    failed: list[Attempt],
    copies: float = 1.0,
) -> Deployment:
    """The deployment, compiled in one way, if the backend keeps that many copies of the weights.

    How many it keeps is known when they are loaded. If that is more than the budget of memory has
    room for, they are divided anew with what is known then.
    """
    device, family, progress = order.instruments.device, order.network.family, order.progress
    segments = _cut(order, backend, attempt.precision, copies)
    weights_mib = _weights_mib(order.network, segments, attempt.precision)
    require_room(
        f"one copy of the weights of {len(order.topologies)} topologies in {attempt.precision}",
        sum(weights_mib.values()),
        device,
        "keep fewer of them, or use half precision",
    )
    key = _key(order, backend, attempt, segments)
    with (
        store(order.out, backend, key) as kept,
        replacing_folder(order.out, MANIFEST, "deployment") as folder,
    ):
        compile_segments(
            order.network,
            segments,
            backend,
            kept.folder,
            precision=attempt.precision,
            variant=attempt.variant,
            batch=order.batch,
            done=kept.files,
            finished=kept.finished,
            progress=progress,
        )
        kept.deliver(folder / SEGMENTS)
        gc.collect()
        before = used_mib(device)
        program = load_program(
            segments,
            backend,
            folder / SEGMENTS,
            family,
            lambda: order.network,
            device,
            precision=attempt.precision,
            batch=order.batch,
        )
        checks = check_program(program, order.network, order.images, progress=progress)
        memory = _memory(weights_mib, used_mib(device) - before)
        _require_budget(order, memory)
        source = LoadedSource(family, order.weights, segments.chains, program)
        profile, samples = measure(source, order.instruments, order.settings, progress=progress)
        save_network(order.network, folder / NETWORK)
        save(order.accuracy, folder / "accuracy.json")
        save_profile(profile, samples, folder / "profile.json")
        save(with_costs(order.plan, profile, order.accuracy), folder / "plan.json")
        _save_selftest(order, folder / SELFTEST)
        manifest = Manifest(
            family=family,
            network=order.weights,
            conditions=profile.conditions,
            segments=dict(segments.atoms),
            chains=dict(segments.chains),
            checks=checks,
            attempts=(*failed, attempt),
            memory=memory,
            segment_files={name: tuple(files) for name, files in kept.files.items()},
            files=digests(folder),
        )
        save(manifest, folder / MANIFEST)
        # Opened before it takes its place: there another process may put its own at any moment.
        deployment = open_deployment(folder)
    return replace(deployment, folder=order.out)


def _cut(order: _Order, backend: Backend, precision: str, copies: float) -> Cut:
    """How the topologies are divided: without copies, or as the budget of memory allows."""
    family = order.network.family
    if order.memory_mib is None:
        return cut_topologies(family, order.topologies)
    atoms = {atom for name in order.topologies for atom in family.atoms(name)}
    return choose_cut(
        family,
        order.topologies,
        atoms_mib={a: copies * _mib(order.network, (a,), precision) for a in atoms},
        border_ms=1.0,  # only that they cost something matters: all cost the same
        memory_mib=order.memory_mib,
        shares_weights=backend.shares_weights,
    ).cut


def _require_budget(order: _Order, memory: Memory) -> None:
    if order.memory_mib is not None and memory.total_mib > order.memory_mib:
        raise _OverBudgetError(memory)


def _key(order: _Order, backend: Backend, attempt: Attempt, segments: Cut) -> dict[str, str]:
    """All that compiled segments depend on: only those of just this are used again."""
    device = order.instruments.device
    return {
        "family": order.network.family.digest,
        "network": order.weights,
        "segments": sha256(repr(sorted(segments.atoms.items())).encode()),
        "backend": f"{backend.name} {backend.version()} {attempt.variant}",
        "precision": attempt.precision,
        "batch": str(order.batch),
        "device": f"{device.name}, {device.hardware}, {device.driver}",
        "edgestitch": __version__,
    }


def _weights_mib(network: StitchNetwork, segments: Cut, precision: str) -> dict[str, float]:
    return {name: _mib(network, atoms, precision) for name, atoms in segments.atoms.items()}


def _mib(network: StitchNetwork, atoms: tuple[str, ...], precision: str) -> float:
    """Of the weights of some atoms."""
    elements: int = sum(t.numel() for t in network.chain(atoms).state_dict().values())
    return elements * BYTES[precision] / MIB


def _memory(weights_mib: Mapping[str, float], grown_mib: float) -> Memory:
    weights = sum(weights_mib.values())
    # A process that has just compiled has memory to spare, which what is loaded may take up unseen.
    total = max(grown_mib, weights)
    return Memory(
        segments_mib={name: size * total / weights for name, size in weights_mib.items()},
        total_mib=total,
        weights_mib=weights,
    )


def _save_selftest(order: _Order, path: Path) -> None:
    images = np.ascontiguousarray(order.images[: order.batch])
    device = next(order.network.parameters()).device
    tensors = {"images": images}
    with torch.inference_mode():
        given = torch.from_numpy(images).to(device)
        for name in order.topologies:
            tensors[name] = order.network.assemble(name)(given).cpu().numpy()
    save_tensors(SELFTEST_KIND, 1, {}, tensors, path)


# --- opening ---------------------------------------------------------------------------------------


def open_deployment(folder: Path, *, whole: bool = True) -> Deployment:
    """The deployment in a folder, its topologies ready to be loaded.

    Every file is compared with its digest; without `whole` those of a topology when it is loaded.

    Raises:
        ArtifactError: there is none, or a file in it is missing or altered.
        MismatchError: it was compiled for other hardware or another version of its backend.
        DeviceError: its backend does not work here.
    """
    manifest = _manifest(folder)
    large = (f"{SEGMENTS}/", NETWORK)
    for name, expected in manifest.files.items():
        if whole or not name.startswith(large):
            _require_digest(folder / name, expected)
    conditions = manifest.conditions
    device = _device(folder, conditions)
    backend = find_backend(conditions.backend)
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
    program = load_program(
        Cut(atoms=manifest.segments, chains=manifest.chains),
        backend,
        folder / SEGMENTS,
        manifest.family,
        lambda: _network(folder, manifest),
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
    )


def use_deployment(
    folder: Path, *, rebuild: bool = True, whole: bool = True, progress: Progress = silent
) -> Deployment:
    """The deployment in a folder; what was made for another machine or version is made again.

    That is logged as a warning; without `rebuild` it is an error. Of several processes one makes it,
    the others wait for it.

    Raises:
        As `open_deployment` and `compile_deployment`.
    """
    try:
        return open_deployment(folder, whole=whole)
    except (MismatchError, DeviceError):
        if not rebuild:
            raise
    with _alone(folder):
        try:
            return open_deployment(folder, whole=whole)  # another process has made it meanwhile
        except (MismatchError, DeviceError) as error:
            log.warning("%s: that is being done now", error)
        return _rebuild(folder, progress)


def _rebuild(folder: Path, progress: Progress) -> Deployment:
    manifest = _manifest(folder)
    conditions, asked = manifest.conditions, manifest.attempts[0]
    device = resolve("cpu") if conditions.device == "cpu" else detect()
    here = list(available(device.accelerator))
    chosen = next((b for b in here if b.name == asked.backend), here[0])
    measured_energy = load(Profile, folder / "profile.json").energy_reason is None
    instruments = find_instruments(device, energy=measured_energy)
    full = MeasureSettings(timer=deployed(QUICK).timer, load=conditions.load)
    return compile_deployment(
        _network(folder, manifest),
        load(Plan, folder / "plan.json"),
        load(Accuracy, folder / "accuracy.json"),
        folder,
        instruments,
        full if measured_energy else msgspec.structs.replace(full, energy=None),
        backend=chosen,
        precision=asked.precision if asked.precision in chosen.precisions else "fp32",
        batch=conditions.batch,
        images=load_tensors(SELFTEST_KIND, 1, folder / SELFTEST)[1]["images"],
        progress=progress,
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process makes this deployment anew."""
    with (folder / MANIFEST).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_fit(deployment: Deployment, topologies: tuple[str, ...]) -> None:
    """Raises unless topologies of a deployment fit into the memory that is left.

    Raises:
        InfeasibleError: with both numbers, and the largest set that would fit.
    """
    manifest = deployment.manifest
    device = resolve(manifest.conditions.device)
    sizes = manifest.memory.segments_mib
    chains = {name: manifest.chains[name] for name in topologies}
    needed = sum(sizes[segment] for segment in {s for chain in chains.values() for s in chain})
    left = available_mib(device)
    if needed > left:
        largest = largest_resident(chains, sizes, memory_mib=left, safety=topologies[0])
        raise InfeasibleError(
            f"keeping {len(topologies)} topologies resident takes {needed:.1f} MiB, and "
            f"{device.name} has {left:.1f} MiB left; the largest set that fits takes "
            f"{largest.memory_mib:.1f} MiB: Runtime(topologies={list(largest.topologies)})"
        )


def _manifest(folder: Path) -> Manifest:
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"no deployment at {folder}: it has no {MANIFEST}; `edgestitch compile` makes one"
        )
    return load(Manifest, folder / MANIFEST)


def _network(folder: Path, manifest: Manifest) -> StitchNetwork:
    _require_digest(folder / NETWORK, manifest.files[NETWORK])
    return load_network(folder / NETWORK)


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
