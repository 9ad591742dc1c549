"""Whether a profile or a deployment still holds on this device.

A profile: a few of its topologies are measured again. A deployment: every file is as it was written,
every topology equals eager, and a few of them take the time that they took.
"""

from functools import partial
from pathlib import Path

import numpy as np

from .artifact import Value
from .deployment import Deployment, open_deployment
from .engine import network_source
from .equality import Check, compare, require_close
from .errors import ArtifactError, CompileError, MismatchError
from .family import Family
from .instruments import Instruments, beside
from .measure import conditions
from .network import StitchNetwork
from .profile import Cost, Profile, require_comparable, require_equal
from .program import Program, example_images
from .progress import Progress, silent
from .timer import TimerSettings, interleave, summarize


class Replay(Value, frozen=True, kw_only=True):
    """One topology, then and now: medians with their intervals, in milliseconds."""

    topology: str
    then_ms: float
    then_low_ms: float
    then_high_ms: float
    now_ms: float
    now_low_ms: float
    now_high_ms: float
    holds: bool
    """Whether the intervals, each wider by the tolerance, meet."""

    @property
    def ratio(self) -> float:
        return self.now_ms / self.then_ms


class Verification(Value, frozen=True, kw_only=True):
    """What replaying a profile found."""

    replays: tuple[Replay, ...]
    tolerance: float
    """Relative change of a median that is let pass."""

    @property
    def holds(self) -> bool:
        return all(replay.holds for replay in self.replays)


class Equality(Value, frozen=True, kw_only=True):
    """A compiled topology beside eager, on images that it was not compiled with."""

    topology: str
    check: Check | None
    failure: str | None
    """Why it is not as it was compiled; `None`: it is."""


class Inspection(Value, frozen=True, kw_only=True):
    """What was found of a deployment for one batch size."""

    batch: int
    files: int
    """That are as they were written."""
    versions: dict[str, str]
    """That are those of the compilation."""
    equalities: tuple[Equality, ...]
    replay: Verification

    @property
    def holds(self) -> bool:
        return self.replay.holds and all(found.failure is None for found in self.equalities)


def verify(
    profile: Profile,
    network: StitchNetwork,
    instruments: Instruments,
    *,
    number: int = 5,
    tolerance: float = 0.05,
    timer: TimerSettings | None = None,
    progress: Progress = silent,
) -> Verification:
    """Measures `number` topologies of a profile again: the cheapest, the dearest, and random ones.

    Raises:
        MismatchError: profile and network, or the conditions then and now, differ; with both values.
    """
    timer = timer or TimerSettings(min_samples=473)
    if profile.estimated:
        raise MismatchError(
            f"the profile of {profile.family} for {profile.conditions.device} was estimated and not "
            "measured; `edgestitch profile` on the device measures one"
        )
    require_equal("profile and network", family=(profile.family, network.family.name))
    if profile.network is not None:
        require_equal("profile and network", network=(profile.network, network.digest))
    then = profile.conditions
    with network_source(
        network,
        instruments.device,
        tuple(profile.by_topology),
        backend=then.backend,
        precision=then.precision,
        batch=then.batch,
        progress=progress,
    ) as source:
        names = _some(profile, number, timer.seed)
        return _replayed(
            profile,
            source.program(names),
            network.family,
            names,
            instruments,
            timer,
            tolerance=tolerance,
            progress=progress,
        )


def verify_deployment(
    folder: Path,
    instruments: Instruments,
    *,
    number: int = 5,
    tolerance: float = 0.05,
    timer: TimerSettings | None = None,
    progress: Progress = silent,
) -> tuple[Inspection, ...]:
    """What is found of the deployment in a folder, one for each of its batch sizes.

    Raises:
        ArtifactError: there is none, or a file in it is missing or altered.
        MismatchError: it is of another machine, or of another version of its backend.
        DeviceError: its backend does not work here.
    """
    timer = timer or TimerSettings(min_samples=473)
    opened = open_deployment(folder)
    return tuple(
        _inspected(one, instruments, number, tolerance, timer, progress)
        for one in (opened, *opened.others)
    )


def _inspected(
    deployment: Deployment,
    instruments: Instruments,
    number: int,
    tolerance: float,
    timer: TimerSettings,
    progress: Progress,
) -> Inspection:
    deployment.plan.check(deployment.profile, deployment.accuracy)
    manifest = deployment.manifest
    equalities = []
    for index, topology in enumerate(manifest.chains):
        progress("check", index, len(manifest.chains))
        equalities.append(_beside_eager(deployment, topology))
    progress("check", len(equalities), len(equalities))
    sound = [found.topology for found in equalities if found.failure is None]
    names = [name for name in _some(deployment.profile, number, timer.seed) if name in sound]
    replay = Verification(replays=(), tolerance=tolerance)
    if names:
        replay = _replayed(
            deployment.profile,
            deployment.program,
            manifest.family,
            names,
            instruments,
            timer,
            tolerance=tolerance,
            progress=progress,
        )
    return Inspection(
        batch=manifest.conditions.batch,
        files=len(manifest.files),
        versions=manifest.conditions.versions,
        equalities=tuple(equalities),
        replay=replay,
    )


def _beside_eager(deployment: Deployment, topology: str) -> Equality:
    """One topology, loaded as the runtime loads it, then on other images beside eager of now."""
    conditions = deployment.manifest.conditions
    images = example_images(deployment.manifest.family, conditions.batch, seed=2)
    try:
        found = deployment.ready(topology).run(images)
        check = compare(topology, found, deployment.eager(topology)(images))
        require_close(check, conditions.backend, conditions.precision)
    except (CompileError, ArtifactError) as error:
        return Equality(topology=topology, check=None, failure=str(error))
    return Equality(topology=topology, check=check, failure=None)


def _replayed(
    profile: Profile,
    program: Program,
    family: Family,
    names: list[str],
    instruments: Instruments,
    timer: TimerSettings,
    *,
    tolerance: float,
    progress: Progress,
) -> Verification:
    """Topologies of a program measured again under the conditions of their profile.

    Raises:
        MismatchError: the conditions differ; with both values.
    """
    then = profile.conditions
    now = conditions(program, instruments.device, then.load, then.contention)
    require_comparable("the profile and this device", then, now)
    images = example_images(family, program.batch, seed=timer.seed)
    with beside(then.contention):
        samples = interleave(
            {name: partial(program.load(name).run, images) for name in names},
            timer,
            load=then.load,
            look=instruments.reader,
            clock=instruments.clock,
            sleep=instruments.sleep,
            progress=progress,
        )
    return Verification(
        replays=tuple(
            _replay(profile.by_topology[name], samples.durations_ns[name], tolerance)
            for name in names
        ),
        tolerance=tolerance,
    )


def _some(profile: Profile, number: int, seed: int) -> list[str]:
    ordered = [cost.topology for cost in sorted(profile.costs, key=lambda cost: cost.latency_ms)]
    if len(ordered) <= number:
        return ordered
    between = np.random.default_rng(seed).choice(ordered[1:-1], number - 2, replace=False)
    chosen = {ordered[0], ordered[-1], *map(str, between)}
    return [name for name in ordered if name in chosen]


def _replay(then: Cost, durations_ns: np.ndarray, tolerance: float) -> Replay:
    now = summarize(durations_ns)
    return Replay(
        topology=then.topology,
        then_ms=then.latency_ms,
        then_low_ms=then.latency_low_ms,
        then_high_ms=then.latency_high_ms,
        now_ms=now.median,
        now_low_ms=now.low,
        now_high_ms=now.high,
        holds=now.low <= then.latency_high_ms * (1 + tolerance)
        and now.high >= then.latency_low_ms * (1 - tolerance),
    )
