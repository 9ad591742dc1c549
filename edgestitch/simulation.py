"""A device whose true costs are known, and whose clock only work and sleep move.

It is what profiles are tested against, and it says in code what the profiler assumes of a device:

    a call takes    the sum over its atoms + a call + borders  (+ what does not add up, if you say so)
                    x noise x drift x throttling x a cold start
    and uses        the sum over its atoms, however long it takes, beside what the idle device uses
                    in that time
    a counter says  the energy at its last update, in steps
    a gauge says    the mean power over a part of the period before its last update

No real time passes: a profile that would take ten minutes takes some seconds.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import exp, floor

import numpy as np

from .backends import Resident
from .cut import cut_topologies
from .device import Device
from .family import Family
from .instruments import Instruments
from .meters import Meter, NoMeter, Quantity, Recording, Trace
from .program import Program
from .sensors import State

BORDER = "border"
CALL = "call"


@dataclass(frozen=True, kw_only=True)
class Throttling:
    """An interval, since the device's beginning, in which it is slower and its sensors say so."""

    start_s: float
    stop_s: float
    slower: float = 1.5
    """Factor of each call's time."""
    reason: str = "thermal"


def roles(family: Family) -> dict[str, str]:
    """For each atom its role in its anchor: the blocks of one stage are one class, and the like."""
    atoms = dict.fromkeys(atom for name in family.topologies for atom in family.atoms(name))
    return {atom: _role(family, atom) for atom in atoms}


def _role(family: Family, atom: str) -> str:
    front, _, back = atom.partition("+")
    anchor, _, part = front.partition(":")
    if not part.isdigit():
        return atom
    # The stage of a stitching layer is that of the block before it.
    block, stage = int(part) - bool(back), 0
    while sum(family.anchor(anchor).stage(stage)) <= block:
        stage += 1
    return f"{anchor}:stage{stage}" + (f"+{back.partition(':')[0]}" if back else "")


def default_costs(family: Family, classes: Mapping[str, str]) -> dict[str, float]:
    """Milliseconds of each class of atoms, of a call and of a border; each anchor costs double."""
    costs = {CALL: 0.2, BORDER: 0.004}
    for atom, name in classes.items():
        anchor, _, part = atom.partition("+")[0].partition(":")
        size = 2.0 ** [a.name for a in family.anchors].index(anchor)
        share = 0.4 if "+" in atom else 1.0 if part.isdigit() else 0.6
        costs[name] = 0.2 * size * share
    return costs


class SimulatedDevice:
    """A device that runs the topologies of a family, with the costs that you say.

    >>> device = SimulatedDevice(load_family("deit-ti-s-b"), noise=0.02)
    >>> profile, samples = measure(device.source(), device.instruments(device.counter()))
    >>> profile.predict("ti:0:12").latency_ms, device.latency_ms("ti:0:12")

    Args:
        family: Its topologies can be called.
        classes: For each atom the class that it is of, `roles` if not given.
        costs_ms: Milliseconds of each class, of a `call` and of a `border`, instead of the
            defaults.
        energies_mj: Millijoules of each of them beyond what the idle device uses in that time;
            without it each millisecond takes 20 W.
        extra_ms: Milliseconds of a topology beyond the sum: the device does not add up.
        extra_mj: Millijoules, likewise.
        noise: Standard deviation of the logarithm of a call's time.
        spike_probability: That a call takes longer by the factor `spike`.
        drift: What a call's time grows by in a second, relative; or its factor, as a function of
            the seconds since the beginning.
        throttling: When it throttles.
        cold: Factor of the time of the very first call; it is forgotten over `cold_calls` calls.
        wake_ms: What a call takes longer after the device has slept for 10 ms or more.
        idle_w: Power of the idle device.
        others: Other processes that use it.
    """

    def __init__(
        self,
        family: Family,
        *,
        classes: Mapping[str, str] | None = None,
        costs_ms: Mapping[str, float] | None = None,
        energies_mj: Mapping[str, float] | None = None,
        extra_ms: Callable[[str], float] = lambda topology: 0.0,
        extra_mj: Callable[[str], float] = lambda topology: 0.0,
        noise: float = 0.01,
        spike_probability: float = 0.0,
        spike: float = 3.0,
        drift: float | Callable[[float], float] = 0.0,
        throttling: Sequence[Throttling] = (),
        cold: float = 1.0,
        cold_calls: int = 50,
        wake_ms: float = 0.0,
        idle_w: float = 5.0,
        others: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        self.family = family
        self.classes = dict(classes or roles(family))
        self.costs_ms = {**default_costs(family, self.classes), **(costs_ms or {})}
        self.energies_mj = dict(energies_mj or {n: 20 * ms for n, ms in self.costs_ms.items()})
        self.cut = cut_topologies(family, [topology.name for topology in family.topologies])
        self.idle_w = idle_w
        self.noise = noise
        self.now_ns = 1_000_000_000
        self.calls = 0
        self._latency_ms = {n: self._sum(n, self.costs_ms) + extra_ms(n) for n in self.cut.chains}
        self._work_mj = {n: self._sum(n, self.energies_mj) + extra_mj(n) for n in self.cut.chains}
        self._spike_probability = spike_probability
        self._spike = spike
        self._drift = drift if callable(drift) else lambda seconds: 1 + drift * seconds
        self._throttling = tuple(throttling)
        self._cold = cold
        self._cold_calls = cold_calls
        self._wake_ms = wake_ms
        self._rested = False
        self.others = others
        self._random = np.random.default_rng(seed)
        self.start_ns = self.now_ns
        # Work done, in millijoules beyond idle, at the beginning and at the end of each call.
        self._times_ns = [self.now_ns]
        self._done_mj = [0.0]

    def _sum(self, topology: str, costs: Mapping[str, float]) -> float:
        atoms = sum(costs[self.classes[atom]] for atom in self.family.atoms(topology))
        return costs[CALL] + atoms + costs[BORDER] * (len(self.cut.chains[topology]) - 1)

    # --- the truth

    def latency_ms(self, topology: str) -> float:
        """Median time of a call on the warm, cool device, before any drift."""
        return self._latency_ms[topology]

    def mean_ms(self, topology: str) -> float:
        """Mean time of such a call: noise and spikes have a longer tail to the right."""
        spikes = 1 + self._spike_probability * (self._spike - 1)
        return self._latency_ms[topology] * exp(self.noise**2 / 2) * spikes

    def work_mj(self, topology: str) -> float:
        """Energy of a call beyond what the idle device uses in that time."""
        return self._work_mj[topology]

    def energy_mj(self, topology: str) -> float:
        """Mean energy of a call, back to back."""
        return self._work_mj[topology] + self.idle_w * self.mean_ms(topology)

    def used_mj(self, times_ns: np.ndarray) -> np.ndarray:
        """Energy from the beginning to each of these moments."""
        first = max(bisect_left(self._times_ns, int(times_ns[0])) - 1, 0)
        work = np.interp(times_ns, self._times_ns[first:], self._done_mj[first:])
        used: np.ndarray = work + self.idle_w * (times_ns - self.start_ns) / 1e6
        return used

    # --- what it does

    def call(self, topology: str) -> None:
        """Works for as long as a call takes."""
        start_ns = self.now_ns
        self.now_ns += round(self._duration_ms(topology) * 1e6)
        self.calls += 1
        done = self._done_mj[-1]
        self._times_ns += (start_ns, self.now_ns)
        self._done_mj += (done, done + self._work_mj[topology])

    def _duration_ms(self, topology: str) -> float:
        seconds = self.seconds
        factor = self._drift(seconds)
        factor *= 1 + (self._cold - 1) * exp(-self.calls / self._cold_calls)
        factor *= exp(self.noise * self._random.standard_normal())
        if self._spike_probability and self._random.random() < self._spike_probability:
            factor *= self._spike
        for interval in self.active():
            factor *= interval.slower
        rested, self._rested = self._rested, False
        return self._latency_ms[topology] * factor + self._wake_ms * rested

    @property
    def seconds(self) -> float:
        """Since the device's beginning."""
        return (self.now_ns - self.start_ns) / 1e9

    def active(self) -> list[Throttling]:
        """Why it throttles now."""
        return [t for t in self._throttling if t.start_s <= self.seconds < t.stop_s]

    def clock(self) -> int:
        """Nanoseconds."""
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        """Lets the clock go on without work."""
        self.now_ns += round(seconds * 1e9)
        self._rested = self._rested or seconds >= 0.01

    # --- what it is measured with

    def source(self, topologies: Sequence[str] = ()) -> "SimulatedSource":
        """Its topologies, all or those given, cut as all of them are."""
        names = topologies or tuple(self.cut.chains)
        return SimulatedSource(self, {name: self.cut.chains[name] for name in names})

    def instruments(self, meter: Meter | None = None) -> Instruments:
        """Its clock, its sensors and a meter of it."""
        return Instruments(
            device=Device(
                name="cuda", hardware="simulated", cores=1, memory_mib=1024, power_mode=None
            ),
            meter=meter or NoMeter("this simulated device was given no meter"),
            sensors=SimulatedSensors(self),
            clock=self.clock,
            sleep=self.sleep,
        )

    def counter(
        self,
        period_s: float = 0.1,
        *,
        resolution_mj: float = 1.0,
        phase: float = 0.0,
        poll_s: float = 0.002,
        reset_at_s: float | None = None,
        dies_at_s: float | None = None,
    ) -> "SimulatedMeter":
        """A counter of energy, as NVML's: updated once a period, in steps, reset or gone midway.

        `phase` is when its first update comes, in periods.
        """

        def values(moments_ns: np.ndarray) -> np.ndarray:
            updates = self._updates(moments_ns, period_s, phase)
            used = self.used_mj(updates)
            if reset_at_s is not None:
                reset_ns = self.start_ns + round(reset_at_s * 1e9)
                at_reset = self.used_mj(np.array([reset_ns]))[0] if updates[-1] >= reset_ns else 0
                used -= np.where(updates >= reset_ns, at_reset, 0.0)
            steps: np.ndarray = np.floor(used / resolution_mj) * resolution_mj
            return steps

        return SimulatedMeter(self, "energy_mj", period_s, resolution_mj, poll_s, values, dies_at_s)

    def gauge(
        self,
        period_s: float = 0.1,
        *,
        window_s: float | None = None,
        noise_w: float = 0.0,
        resolution_w: float = 0.001,
        phase: float = 0.0,
        poll_s: float = 0.02,
        dies_at_s: float | None = None,
    ) -> "SimulatedMeter":
        """A gauge of power, updated once a period with the mean over the last `window_s` of it."""
        looked_ns = round((window_s or period_s) * 1e9)

        def values(moments_ns: np.ndarray) -> np.ndarray:
            updates = self._updates(moments_ns, period_s, phase)
            begins = np.maximum(updates - looked_ns, self.start_ns)
            mean_w = 1e6 * (self.used_mj(updates) - self.used_mj(begins)) / looked_ns
            # One reading an update: its noise is the same however often it is read.
            _, which = np.unique(updates, return_inverse=True)
            noisy = mean_w + noise_w * self._random.standard_normal(which.max() + 1)[which]
            steps: np.ndarray = np.round(noisy / resolution_w) * resolution_w
            return steps

        return SimulatedMeter(self, "power_w", period_s, resolution_w, poll_s, values, dies_at_s)

    def _updates(self, moments_ns: np.ndarray, period_s: float, phase: float) -> np.ndarray:
        """When the last update before each moment was."""
        period_ns = period_s * 1e9
        first_ns = self.start_ns + phase * period_ns
        number = np.floor((moments_ns - first_ns) / period_ns)
        return np.maximum(first_ns + number * period_ns, self.start_ns).astype(np.int64)


@dataclass(frozen=True)
class SimulatedSource:
    """What `measure` asks of a source."""

    device: SimulatedDevice
    segments: Mapping[str, tuple[str, ...]]
    network: str | None = None

    @property
    def family(self) -> Family:
        return self.device.family

    def program(self, topologies: Sequence[str]) -> Program:
        return Program(
            backend="simulated",
            precision="fp32",
            batch=1,
            threads=1,
            version="1",
            segments=tuple(dict.fromkeys(s for n in topologies for s in self.segments[n])),
            topologies=tuple(topologies),
            load=lambda name: Resident(run=partial(self._run, name)),
        )

    def _run(self, topology: str, images: np.ndarray) -> np.ndarray:
        self.device.call(topology)
        return np.zeros((len(images), 1), np.float32)

    def classes(self) -> Mapping[str, str]:
        return self.device.classes

    def sizes(self) -> Mapping[str, float]:
        return {name: self.device.latency_ms(name) for name in self.segments}


@dataclass(frozen=True)
class SimulatedSensors:
    """Clock, temperature and throttling of a simulated device."""

    device: SimulatedDevice
    locked: bool | None = False

    def read(self) -> State:
        active = self.device.active()
        return State(
            clocks_mhz={"gpu": floor(1000 / np.prod([t.slower for t in active]))},
            temperatures_c={"gpu": 90.0 if active else 60.0},
            throttle=tuple(t.reason for t in active),
            events={},
            others=self.device.others,
        )


@dataclass(frozen=True, eq=False)
class SimulatedMeter:
    """A meter that is read every `poll_s` while it is recorded, at the beginning and at the end."""

    device: SimulatedDevice
    quantity: Quantity
    period_s: float
    resolution: float
    poll_s: float
    values: Callable[[np.ndarray], np.ndarray]
    """What it shows at these moments."""
    dies_at_s: float | None = None
    lag_s: float = 0.0
    name: str = "simulated"
    scope: str = "simulated device"

    @property
    def reason(self) -> None:
        return None

    @property
    def notes(self) -> Mapping[str, str]:
        return {}

    @contextmanager
    def record(self) -> Iterator[Recording]:
        recording = _Recording(self._trace(np.array([self.device.clock()])))
        start_ns = self.device.clock()
        try:
            yield recording
        finally:
            stop_ns = self.device.clock()
            moments = np.arange(start_ns, stop_ns, round(self.poll_s * 1e9))
            recording.trace = self._trace(np.append(moments, stop_ns))

    def _trace(self, moments_ns: np.ndarray) -> Trace:
        failures: tuple[str, ...] = ()
        if self.dies_at_s is not None:
            gone = moments_ns >= self.device.start_ns + self.dies_at_s * 1e9
            failures = ("the meter does not answer any more",) * int(gone.sum())
            moments_ns = moments_ns[~gone]
        return Trace(
            quantity=self.quantity,
            times_ns=moments_ns,
            values=self.values(moments_ns) if len(moments_ns) else np.empty(0),
            period_s=self.period_s,
            resolution=self.resolution,
            failures=failures,
        )


@dataclass
class _Recording:
    trace: Trace
