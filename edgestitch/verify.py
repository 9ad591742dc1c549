"""Whether a profile still holds: a few of its topologies measured again on the device."""

from functools import partial

import numpy as np

from .artifact import Value
from .engine import network_source
from .errors import MismatchError
from .instruments import Instruments, beside
from .measure import conditions
from .network import StitchNetwork
from .profile import Cost, Profile, require_comparable, require_equal
from .program import example_images
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
        program = source.program(names)
        now = conditions(program, instruments.device, then.load, then.contention)
        require_comparable("the profile and this device", then, now)
        images = example_images(network.family, program.batch, seed=timer.seed)
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
