"""Measuring: topologies on a device become a profile.

    designed (D-optimal) + held out (random) -> measured -> fitted, judged -> the rest composed
              ^                                                   |
              `---- what was held out is fitted to, others are ---' error above the target
                    held out

What was measured is kept as soon as it is final, so that a killed profile goes on where it was.
"""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from . import __version__
from .artifact import Value, load_tensors, save, save_tensors, tensor_digest
from .compose import Selection, Terms, predict, terms
from .device import Device
from .energy import (
    Energies,
    EnergySettings,
    Wattmeter,
    Window,
    energies,
    measure_energies,
    measure_mixed,
)
from .errors import MismatchError
from .family import Family
from .instruments import Instruments, beside
from .journal import Journal
from .profile import Attribution, Certificate, Composition, Conditions, Cost, Load, Profile
from .profile import Protocol as ProtocolRecord
from .program import Program, example_images
from .progress import Progress, silent
from .timer import Clock, Pacer, Samples, Taken, TimerSettings, interleave, summarize

SAMPLES = "latency samples"
SAMPLES_VERSION = 1

# Attribution is a median over few calls: it explains, and nothing is decided by it.
MARKED_CALLS = 20
MARKED_TOPOLOGIES = 8


class Source(Protocol):
    """What gives topologies that can be called."""

    @property
    def family(self) -> Family: ...

    @property
    def network(self) -> str | None:
        """Digest of the weights; `None`: random ones."""

    @property
    def segments(self) -> Mapping[str, tuple[str, ...]]:
        """How each topology is cut; the order is the profile's."""

    def program(self, topologies: Sequence[str]) -> Program:
        """Some of them, compiled and loaded, cut in this way."""

    def classes(self) -> Mapping[str, str]:
        """For each atom one that computes the same thing."""

    def sizes(self) -> Mapping[str, float] | None:
        """What each topology is expected to cost, up to a factor; `None`: not known."""


@dataclass(frozen=True)
class LoadedSource:
    """A source that is one program, all of it compiled and loaded."""

    family: Family
    network: str | None
    segments: Mapping[str, tuple[str, ...]]
    loaded: Program

    def program(self, topologies: Sequence[str]) -> Program:
        return self.loaded

    def classes(self) -> Mapping[str, str]:
        """Every atom is a class of its own."""
        return {atom: atom for name in self.segments for atom in self.family.atoms(name)}

    def sizes(self) -> None:
        return None


class MeasureSettings(Value, frozen=True, kw_only=True):
    """What is measured, and when it is enough."""

    timer: TimerSettings = TimerSettings()
    energy: EnergySettings | None = EnergySettings()
    """`None`: no energy is measured."""
    load: Load = Load()
    contention: str | None = None
    """A command that runs beside."""
    compose: bool = True
    """Whether only some topologies are measured where the rest can be composed."""
    target: float = 0.05
    """Largest 95th percentile of the error of composed costs, and of its median 0.4 times that."""
    confidence: float = 0.9
    """Of the bounds of composed costs."""


# Enough that the bound of a 99th percentile is not the largest sample: a thousand for the choice of
# what to keep, and, since those are few, more for what is deployed. The cap is for slow machines.
# Energy takes minutes; who has a budget for it calls for a profile.
QUICK = MeasureSettings(
    timer=TimerSettings(min_samples=1000, precision=0.05, time_cap_s=40),
    energy=None,
    compose=False,
)


def deployed(settings: MeasureSettings) -> MeasureSettings:
    """The settings for measuring a deployment after a profile was taken with `settings`."""
    timer = settings.timer
    more = msgspec.structs.replace(timer, min_samples=2 * timer.min_samples)
    return msgspec.structs.replace(settings, timer=more)


def measure(
    source: Source,
    instruments: Instruments,
    settings: MeasureSettings | None = None,
    *,
    journal: Journal | None = None,
    progress: Progress = silent,
) -> tuple[Profile, Samples]:
    """The profile of a source's topologies, and the samples behind it.

    A sample is one call: image in host memory in, logits in host memory out.

    Raises:
        DeviceError: the device throttles all the time, or the command beside cannot be run.
        ArtifactError: the journal cannot be written.
    """
    settings = settings or MeasureSettings()
    run = _Run(source, instruments, settings, journal, progress)
    with beside(settings.contention):
        run.until_good()
    return run.profile(), run.samples


class _Run:
    """One profile in the making."""

    def __init__(
        self,
        source: Source,
        instruments: Instruments,
        settings: MeasureSettings,
        journal: Journal | None,
        progress: Progress,
    ) -> None:
        self.source = source
        self.instruments = instruments
        self.settings = settings
        self.journal = journal
        self.progress = progress
        self.selection = _selection(source, settings)
        self.calls: dict[str, Callable[[], object]] = {}
        self.programs: list[Program] = []
        self.samples = Samples()
        self.costs: dict[str, Cost] = {}
        self.wattmeter = self._wattmeter()
        self.found: Energies | None = None
        self.before = instruments.look()

    # --- measuring

    def until_good(self) -> None:
        """Measures until what is composed is as good as was asked for, or nothing is left to."""
        while True:
            self.load()
            self.measure_latencies()
            if self.good({name: cost.latency_ms for name, cost in self.costs.items()}):
                self.found = self.measure_energies()
                if self.found is None or self.good(self.found.energies_mj):
                    return
            self.selection.extend()

    def load(self) -> None:
        """Makes callable what is to be measured and is not yet."""
        new = [name for name in self.selection.measured if name not in self.calls]
        if not new:
            return
        program = self.source.program(new)
        images = example_images(self.source.family, program.batch, seed=self.settings.timer.seed)
        self.calls |= {name: partial(program.load(name).run, images) for name in new}
        self.programs.append(program)

    def measure_latencies(self) -> None:
        new = {n: self.calls[n] for n in self.selection.measured if n not in self.costs}
        if not new:
            return
        left_s = max(self.settings.timer.time_cap_s - self.samples.duration_s, 0.1)
        samples = interleave(
            new,
            msgspec.structs.replace(self.settings.timer, time_cap_s=left_s),
            load=self.settings.load,
            known=_known(self.journal),
            keep=self._keep,
            look=self.instruments.reader,
            clock=self.instruments.clock,
            sleep=self.instruments.sleep,
            progress=self.progress,
        )
        self.samples = self.samples.joined(samples)
        self.costs |= {name: _measured(name, samples) for name in new}

    def good(self, costs: Mapping[str, float]) -> bool:
        """Whether the sum predicts those held out well enough, or no more can be measured."""
        if self.selection.complete or self.samples.capped or not self._covered(costs):
            return True
        certificate = self.selection.certify(costs)
        target = self.settings.target
        return certificate.p95_error <= target and certificate.median_error <= 0.4 * target

    def _covered(self, costs: Mapping[str, float]) -> bool:
        return all(name in costs for name in self.selection.measured)

    def _keep(self, taken: Mapping[str, Taken]) -> None:
        if self.journal:
            self.journal.add("samples", taken)

    # --- energy

    def _wattmeter(self) -> Wattmeter | None:
        settings, meter = self.settings.energy, self.instruments.meter
        if settings is None or meter.reason is not None:
            return None
        return Wattmeter(
            meter=meter,
            calls=self.calls,
            settings=settings,
            pacer=Pacer(self.settings.load, self.instruments.clock, self.instruments.sleep),
            look=self.instruments.reader,
            keep_throttled=self.settings.timer.keep_throttled,
            windows=list(self.journal.entries("window", Window)) if self.journal else [],
            keep=partial(self.journal.add, "window") if self.journal else None,
        )

    def measure_energies(self) -> Energies | None:
        wattmeter = self.wattmeter
        if wattmeter is None:
            return None
        wattmeter.idle()
        ended = measure_energies(wattmeter, self.selection.measured, progress=self.progress)
        measure_mixed(wattmeter, self.selection.measured, progress=self.progress)
        wattmeter.idle()
        return energies(wattmeter, self.selection.terms, ended)

    # --- the profile

    def profile(self) -> Profile:
        instruments, settings = self.instruments, self.settings
        composition = self.composition()
        return Profile(
            family=self.source.family.name,
            network=self.source.network,
            conditions=conditions(
                self.programs[0], instruments.device, settings.load, settings.contention
            ),
            protocol=self._protocol(),
            segments=tuple(dict.fromkeys(s for c in self.source.segments.values() for s in c)),
            meter=instruments.meter.name,
            energy_reason=self._energy_reason(),
            date=datetime.now(timezone.utc).date().isoformat(),
            samples_digest=tensor_digest(_tensors(self.samples)),
            costs=tuple(self._cost(name, composition) for name in self.source.segments),
            composition=composition,
            energy=self.found.protocol if self.found and self.found.energies_mj else None,
            attribution=self.attribution(),
            before=self.before,
            after=instruments.look(),
            notes=tuple(self._notes(composition)),
        )

    def composition(self) -> Composition | None:
        """How the costs that were not measured follow from those that were; `None`: all were."""
        if self.selection.complete:
            return None
        measured = [self.costs[name] for name in self.selection.measured]
        energy = self.found.energies_mj if self.found else {}
        widths = [(c.latency_high_ms - c.latency_low_ms) / 2 / c.latency_ms for c in measured]
        return Composition(
            designed=tuple(self.selection.designed),
            validated=tuple(self.selection.validated),
            classes=dict(self.source.classes()),
            latency=self.selection.certify({c.topology: c.latency_ms for c in measured}),
            bound=self.selection.certify({c.topology: c.bound_ms for c in measured}),
            energy=self.selection.certify(energy) if self._covered(energy) else None,
            target=self.settings.target,
            noise=float(np.median(widths)),
        )

    def _cost(self, topology: str, composition: Composition | None) -> Cost:
        if topology in self.costs:
            return _with_energy(self.costs[topology], self.found, self.settings.load)
        assert composition is not None
        idle_w = self.found.idle_w if self.found else None
        return _composed(topology, self.selection.terms, composition, idle_w, self.settings.load)

    def _protocol(self) -> ProtocolRecord:
        settings, samples = self.settings.timer, self.samples
        states = [look.state for look in samples.looks]
        return ProtocolRecord(
            precision=settings.precision,
            min_samples=settings.min_samples,
            time_cap_s=settings.time_cap_s,
            seed=settings.seed,
            duration_s=round(samples.duration_s, 3),
            steady=samples.steady,
            capped=samples.capped,
            late=samples.late,
            throttled=dict(samples.throttled),
            clocks_mhz=_ranges([state.clocks_mhz for state in states]),
            temperatures_c=_ranges([state.temperatures_c for state in states]),
            locked=self.instruments.sensors.locked if self.instruments.sensors else None,
            resumed=self.journal.resumed if self.journal else 0,
        )

    def _energy_reason(self) -> str | None:
        if self.settings.energy is None:
            return "not asked for"
        if self.instruments.meter.reason is not None:
            return self.instruments.meter.reason
        return self.found.reason if self.found else None

    def _notes(self, composition: Composition | None) -> Iterator[str]:
        """What a reader must know before trusting the profile."""
        others = {other for look in self.samples.looks for other in look.state.others}
        if others:
            yield f"others used the device meanwhile: {', '.join(sorted(others))}"
        throttled = self.samples.throttled
        if throttled and self.settings.timer.keep_throttled:
            yield (
                f"{max(throttled.values())} samples were taken while the device throttled "
                f"({', '.join(sorted(throttled))}) and kept, as was asked for"
            )
        if composition and composition.latency.p95_error > composition.target:
            yield (
                f"composed latencies miss the target: 95th percentile of the error "
                f"{composition.latency.p95_error:.1%}, asked for {composition.target:.1%}; the time "
                "cap ended the measuring"
            )
        protocol = self.found.protocol if self.found else None
        if protocol and protocol.methods_agree is False:
            yield (
                f"the two methods disagree about energy: {protocol.mixed_difference:.1%} apart, their "
                f"errors explain {protocol.mixed_error:.1%}"
            )

    def attribution(self) -> Attribution | None:
        """Where the time goes, from marks between segments; `None`: the backend sets none."""
        marked = {n: run for program in self.programs for n, run in program.marked.items()}
        known = {n: self.source.segments[n] for n in self.selection.measured if n in marked}
        names = _covering(known, MARKED_TOPOLOGIES)
        if not names:
            return None
        images = example_images(self.source.family, self.programs[0].batch)
        return attribute(
            {name: self.source.segments[name] for name in names},
            {name: partial(marked[name], images) for name in names},
            {name: self.calls[name] for name in names},
            self.instruments.clock,
        )


def _selection(source: Source, settings: MeasureSettings) -> Selection:
    if settings.compose:
        return Selection(terms_of(source), settings.confidence, settings.timer.seed)
    # Neither design nor sizes, which may take a pass over the whole network.
    everything = terms_of(source, sizes=False)
    return Selection(everything, settings.confidence, settings.timer.seed, everything=True)


def terms_of(source: Source, *, sizes: bool = True) -> Terms:
    """What the costs of a source's topologies are sums of."""
    return terms(
        {name: source.family.atoms(name) for name in source.segments},
        source.classes(),
        {name: len(segments) - 1 for name, segments in source.segments.items()},
        source.sizes() if sizes else None,
    )


def _known(journal: Journal | None) -> dict[str, Taken]:
    """The samples of earlier runs that a journal has."""
    known: dict[str, Taken] = {}
    for entry in journal.entries("samples", dict[str, Taken]) if journal else ():
        for name, taken in entry.items():
            known.setdefault(name, Taken()).extend(taken)
    return known


def _measured(topology: str, samples: Samples) -> Cost:
    summary = summarize(samples.durations_ns[topology])
    return Cost(
        topology=topology,
        latency_ms=summary.median,
        latency_low_ms=summary.low,
        latency_high_ms=summary.high,
        p99_ms=summary.p99,
        p99_high_ms=summary.p99_high,
        max_ms=summary.max,
        energy_mj=None,
        samples=summary.samples,
        dropped=samples.dropped.get(topology, 0),
        origin="measured",
    )


def _with_energy(cost: Cost, found: Energies | None, load: Load) -> Cost:
    if found is None or cost.topology not in found.energies_mj:
        return cost
    energy_mj, half_width = found.energies_mj[cost.topology], found.half_width
    idle_mj = None if found.idle_w is None else found.idle_w * found.durations_ms[cost.topology]
    return msgspec.structs.replace(
        cost,
        energy_mj=energy_mj,
        energy_low_mj=None if half_width is None else energy_mj * (1 - half_width),
        energy_high_mj=None if half_width is None else energy_mj * (1 + half_width),
        energy_above_idle_mj=None if idle_mj is None else energy_mj - idle_mj,
        energy_origin="measured",
        slot_ms=_slot_ms(load, cost.latency_ms),
    )


def _slot_ms(load: Load, latency_ms: float) -> float | None:
    """From one call to the next; `None` back to back."""
    if load.rate_hz is not None:
        return max(latency_ms, 1e3 / load.rate_hz)
    return None if load.gap_ms is None else latency_ms + load.gap_ms


def _composed(
    topology: str,
    terms: Terms,
    composition: Composition,
    idle_w: float | None,
    load: Load,
) -> Cost:
    """The cost of a topology that was not measured, with the bounds of the composition."""

    def predicted(certificate: Certificate) -> float:
        return float(predict(terms, certificate.costs, [topology])[0])

    latency, bound, energy = composition.latency, composition.bound, composition.energy
    latency_ms = predicted(latency)
    latency_high_ms = latency_ms * (1 + latency.spread)
    cost = Cost(
        topology=topology,
        latency_ms=latency_ms,
        latency_low_ms=max(latency_ms * (1 - latency.spread), 0.0),
        latency_high_ms=latency_high_ms,
        p99_ms=None,
        p99_high_ms=max(predicted(bound) * bound.factor, latency_high_ms),
        max_ms=None,
        energy_mj=None,
        samples=0,
        origin="composed",
    )
    if energy is None:
        return cost
    energy_mj = predicted(energy)
    return msgspec.structs.replace(
        cost,
        energy_mj=energy_mj,
        energy_low_mj=max(energy_mj * (1 - energy.spread), 0.0),
        energy_high_mj=energy_mj * (1 + energy.spread),
        energy_above_idle_mj=(
            None
            if idle_w is None
            else energy_mj - idle_w * (_slot_ms(load, latency_ms) or latency_ms)
        ),
        energy_origin="composed",
        slot_ms=_slot_ms(load, latency_ms),
    )


def _ranges(readings: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Least, median and most of each quantity that was read."""
    names = dict.fromkeys(name for reading in readings for name in reading)
    values = {name: [r[name] for r in readings if name in r] for name in names}
    return {n: (min(v), float(np.median(v)), max(v)) for n, v in values.items()}


def _covering(segments: Mapping[str, tuple[str, ...]], number: int) -> list[str]:
    """Topologies, `number` at most, that have as many of the segments as can be; greedily."""
    left = {segment for chain in segments.values() for segment in chain}
    chosen: list[str] = []
    while left and len(chosen) < number:
        chosen.append(max(segments, key=lambda name: len(left.intersection(segments[name]))))
        left -= set(segments[chosen[-1]])
    return chosen


def attribute(
    segments: Mapping[str, tuple[str, ...]],
    marked: Mapping[str, Callable[[], Sequence[float]]],
    plain: Mapping[str, Callable[[], object]],
    clock: Clock,
) -> Attribution:
    """Where the time of calls goes; calls with marks and without are made in turn."""
    by_segment: dict[str, list[float]] = {}
    rest, ratios = [], []
    for name, call in marked.items():
        with_marks, without = [], []
        for _ in range(MARKED_CALLS):
            start = clock()
            plain[name]()
            middle = clock()
            parts = call()
            stop = clock()
            without.append((middle - start) / 1e6)
            with_marks.append((stop - middle) / 1e6)
            rest.append(with_marks[-1] - sum(parts))
            for segment, part in zip(segments[name], parts, strict=True):
                by_segment.setdefault(segment, []).append(part)
        ratios.append(float(np.median(with_marks) / np.median(without)))
    return Attribution(
        segments_ms={name: float(np.median(parts)) for name, parts in by_segment.items()},
        rest_ms=float(np.median(rest)),
        overhead=float(np.median(ratios)) - 1,
    )


def conditions(
    program: Program,
    device: Device,
    load: Load | None = None,
    contention: str | None = None,
) -> Conditions:
    """What a profile of this program on this device depends on."""
    versions = {
        "edgestitch": __version__,
        "python": platform.python_version(),
        program.backend: program.version,
    }
    if device.driver:
        versions["driver"] = device.driver
    return Conditions(
        device=device.name,
        hardware=device.hardware,
        module=device.module,
        power_mode=device.power_mode,
        backend=program.backend,
        precision=program.precision,
        batch=program.batch,
        threads=program.threads,
        versions=versions,
        load=load or Load(),
        contention=contention,
    )


def save_profile(profile: Profile, samples: Samples, path: Path) -> None:
    """Writes the profile, and beside it the samples as `<name>.samples.safetensors`."""
    save_tensors(SAMPLES, SAMPLES_VERSION, {"unit": "ns"}, _tensors(samples), _beside(path))
    save(profile, path)


def load_samples(profile: Profile, path: Path) -> dict[str, np.ndarray]:
    """The nanoseconds of each call behind a profile that `save_profile` wrote to `path`.

    Under `start TOPOLOGY` is when each call began, under `state ...` the device between calls.

    Raises:
        MismatchError: the samples beside it are another profile's.
    """
    _, tensors = load_tensors(SAMPLES, SAMPLES_VERSION, _beside(path))
    found = tensor_digest(tensors)
    if found != profile.samples_digest:
        raise MismatchError(
            f"{_beside(path)} has the digest {found[:12]}, the profile was made from samples with "
            f"{profile.samples_digest[:12]}"
        )
    return tensors


def _tensors(samples: Samples) -> dict[str, np.ndarray]:
    """Samples as they are stored, with what the device did at each look."""
    tensors = dict(samples.durations_ns)
    tensors |= {f"start {name}": starts for name, starts in samples.starts_ns.items()}
    if not samples.looks:
        return tensors
    tensors["state time"] = np.array([look.time_ns for look in samples.looks], np.int64)
    tensors["state throttled"] = np.array([bool(look.throttle) for look in samples.looks], np.int8)
    for quantity in ("clocks_mhz", "temperatures_c"):
        readings = [getattr(look.state, quantity) for look in samples.looks]
        for name in dict.fromkeys(name for reading in readings for name in reading):
            values = [reading.get(name, np.nan) for reading in readings]
            tensors[f"state {quantity} {name}"] = np.array(values, np.float32)
    return tensors


def _beside(path: Path) -> Path:
    return path.with_suffix(".samples.safetensors")
