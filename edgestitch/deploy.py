"""Compiling a plan's topologies into a deployment, in the first way that computes what eager does."""

import fcntl
import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from . import __version__
from .accuracy import Accuracy
from .artifact import load, load_tensors, save, save_tensors, sha256
from .backends import Backend, available
from .backends import backend as find_backend
from .cut import Cut, choose_cut, cut_topologies
from .deployment import (
    MANIFEST,
    NETWORK,
    SEGMENTS,
    SELFTEST,
    SELFTEST_KIND,
    Attempt,
    Deployment,
    Manifest,
    Memory,
    batch_folder,
    load_manifest,
    open_deployment,
    stored_network,
)
from .device import detect, resolve
from .engine import check_program
from .errors import CompileError, DeviceError, InfeasibleError, MismatchError
from .folder import digests, replacing_folder
from .instruments import Instruments, find_instruments
from .measure import QUICK, LoadedSource, MeasureSettings, deployed, measure, save_profile
from .memory import MIB, require_room, used_mib
from .network import StitchNetwork, save_network
from .profile import Profile, require_same_network
from .program import compile_segments, example_images, load_program, require
from .progress import Progress, silent
from .schedule import Plan, with_costs
from .store import store

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
WIDER = {"fp16": ("bf16", "fp32"), "bf16": ("fp32",), "fp32": ()}
"""Precisions to try where one is not equal to eager: bfloat16 has the range of fp32."""

log = logging.getLogger(__name__)


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
    other_batches: tuple[int, ...]
    images: np.ndarray
    kept_at: Path
    """Beside it lies what is compiled, until the deployment is whole."""
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
    other_batches: Sequence[int] = (),
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

    Images come `batch` at a time, which is what the plan is about, or as many as one of
    `other_batches`, for which the same topologies are compiled and measured too.

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
    others = tuple(dict.fromkeys(other for other in other_batches if other != batch))
    most = max(batch, *others) if others else batch
    if images is None:
        images = example_images(network.family, 8 * most, seed=1)
    elif len(images) < most:
        raise ValueError(f"comparing batches of {most} takes as many images, not {len(images)}")
    order = _Order(
        network=network,
        plan=plan,
        accuracy=accuracy,
        out=out,
        instruments=instruments,
        settings=msgspec.structs.replace(settings or MeasureSettings(), compose=False),
        batch=batch,
        other_batches=others,
        images=images,
        kept_at=out,
        memory_mib=memory_mib,
        progress=progress,
    )
    device = instruments.device
    chosen = find_backend(backend, device.accelerator)
    require(chosen, precision, device)
    network.to(device.accelerator)
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
        store(order.kept_at, backend, key) as kept,
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
        load_all = partial(
            load_program,
            segments,
            backend,
            folder / SEGMENTS,
            family,
            lambda: order.network,
            device,
            precision=attempt.precision,
            batch=order.batch,
        )
        # Once for nothing: the backend's own libraries are no copy of the weights.
        load_all().load(order.topologies[0]).run(order.images[: order.batch])
        gc.collect()
        before = used_mib(device)
        program = load_all()
        checks = check_program(program, order.network, order.images, progress=progress)
        memory = _memory(weights_mib, used_mib(device) - before)
        _require_budget(order, memory)
        source = LoadedSource(family, order.weights, segments.chains, program)
        profile, samples = measure(source, order.instruments, order.settings, progress=progress)
        if order.out == order.kept_at:  # one for another batch size is inside this one
            save_network(order.network, folder / NETWORK)
        save(order.accuracy, folder / "accuracy.json")
        save_profile(profile, samples, folder / "profile.json")
        save(with_costs(order.plan, profile, order.accuracy), folder / "plan.json")
        _save_selftest(order, folder / SELFTEST)
        others = tuple(
            _attempt(_for_batch(order, other, folder), backend, attempt, [], copies)
            for other in order.other_batches
        )
        manifest = Manifest(
            family=family,
            network=order.weights,
            conditions=profile.conditions,
            segments=dict(segments.atoms),
            chains=dict(segments.chains),
            checks=checks,
            attempts=(*failed, attempt),
            memory=memory,
            other_batches=order.other_batches,
            segment_files={name: tuple(files) for name, files in kept.files.items()},
            files=digests(folder),
        )
        save(manifest, folder / MANIFEST)
        # Opened before it takes its place: there another process may put its own at any moment.
        opened = open_deployment(folder)
        # What was measured is all loaded; what was opened would be loaded from where it no longer is.
        deployment = replace(opened, program=program, others=others)
    return deployment.moved(order.out)


def _for_batch(order: _Order, batch: int, folder: Path) -> _Order:
    """The same for another batch size, inside the folder of the main one."""
    name = batch_folder(batch)
    return replace(
        order,
        batch=batch,
        other_batches=(),
        out=folder / name,
        kept_at=order.kept_at.with_name(f"{order.kept_at.name}.{name}"),
    )


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


# --- again ----------------------------------------------------------------------------------------


def made_again(folder: Path, *, progress: Progress = silent) -> Deployment:
    """The deployment in a folder, compiled and measured again if it was made for something else.

    Of several processes one makes it, the others wait for it. That it is done is logged as a warning.

    Raises:
        As `open_deployment` and `compile_deployment`.
    """
    with _alone(folder):
        try:
            return open_deployment(folder)  # another process has made it meanwhile
        except (MismatchError, DeviceError) as error:
            log.warning("%s: that is being done now", error)
        return _rebuild(folder, progress)


def _rebuild(folder: Path, progress: Progress) -> Deployment:
    manifest = load_manifest(folder)
    conditions, asked = manifest.conditions, manifest.attempts[0]
    device = resolve("cpu") if conditions.device == "cpu" else detect()
    here = list(available(device.accelerator))
    chosen = next((b for b in here if b.name == asked.backend), here[0])
    measured_energy = load(Profile, folder / "profile.json").energy_reason is None
    instruments = find_instruments(device, energy=measured_energy)
    full = MeasureSettings(timer=deployed(QUICK).timer, load=conditions.load)
    return compile_deployment(
        stored_network(folder, manifest),
        load(Plan, folder / "plan.json"),
        load(Accuracy, folder / "accuracy.json"),
        folder,
        instruments,
        full if measured_energy else msgspec.structs.replace(full, energy=None),
        backend=chosen,
        precision=asked.precision if asked.precision in chosen.precisions else "fp32",
        batch=conditions.batch,
        other_batches=manifest.other_batches,
        images=_stored_images(folder, manifest),
        progress=progress,
    )


def _stored_images(folder: Path, manifest: Manifest) -> np.ndarray:
    """Of the largest batch that there is."""
    folders = [folder, *(folder / batch_folder(batch) for batch in manifest.other_batches)]
    stored = [load_tensors(SELFTEST_KIND, 1, one / SELFTEST)[1]["images"] for one in folders]
    return max(stored, key=len)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process makes this deployment anew."""
    with (folder / MANIFEST).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
