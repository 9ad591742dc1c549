"""Measures networks of timm, more than are resident at once, by the protocol of the profiles.

    reference | group: reference, A, B, C | freed | group: reference, D, E, F | freed | ... until the cap

Within a group all are interleaved, as topologies are; the reference is measured in each, so that
what the machine did between groups is seen. Groups are drawn at random: where the cap ends it, what
was measured is no special part. Each network gets an equal share of the time that is left. What is
done is on disk at once, and a killed run goes on there.
"""

import gc
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import timm
import torch
from torch import nn

from . import __version__
from .artifact import Value, sha256
from .backends import Backend, Compiled, Request, Resident, Run
from .backends import backend as find_backend
from .device import Device
from .energy import EnergySettings
from .errors import EdgestitchError
from .family import Anchor, Family
from .instruments import Instruments
from .journal import Journal
from .measure import LoadedSource, MeasureSettings, conditions, measure
from .memory import require_room
from .peers import Peer, Peers
from .profile import Profile, Protocol
from .program import Program, require
from .progress import Progress, silent
from .timer import Clock, TimerSettings
from .zoo import DRIFT, Group, Zoo, ZooRow, drift, select, tables

if TYPE_CHECKING:
    from .network import StitchNetwork

SETTINGS = MeasureSettings(
    timer=TimerSettings(min_samples=473),
    energy=EnergySettings(max_windows=4, mixed_windows=0, settle_s=2.0, idle_s=4.0),
    compose=False,
)
"""As a profile, with less rest: each group has an idle time of its own."""

GROUP = 6
"""Networks that are resident at once, beside the reference."""

DEATHS = 2
"""So often a process may die while it makes a network ready; then the network is left out."""

OUT_OF_TIME = "time: the cap ended the measuring before its turn"

RENAMED = {"vit_base_patch32_224_sam": "vit_base_patch32_224.sam_in1k"}
"""What timm renamed and, under the old name, no longer finds."""

# The module, what a backend keeps of it packed for its kernels, and what passes through it.
_COPIES_OF_WEIGHTS = 3.0
_PASSING_MIB = 256.0


def measure_zoo(
    instruments: Instruments,
    settings: MeasureSettings = SETTINGS,
    *,
    models: Sequence[str] = (),
    found: Sequence[Peers] | None = None,
    backend: str | Backend = "auto",
    precision: str = "fp32",
    batch: int = 1,
    time_cap_s: float = 600.0,
    group: int = GROUP,
    unfinished: Path | None = None,
    progress: Progress = silent,
    clock: Callable[[], float] = time.monotonic,
) -> Zoo:
    """The networks of the tables whose names match, measured as profiles are, with random weights.

    No group begins that cannot end, one window of each network at least, within `time_cap_s`; of
    `settings` the time caps are not used. What cannot be built, run or fitted in is a row with the
    reason. With `unfinished`, a folder, a run that was killed goes on where it was, and one that the
    cap ended with what is left; the caller removes it once `is_complete`.

    Raises:
        ValueError: a pattern matches no network; the backend does not know the precision.
        DeviceError: the backend does not work here, or the device throttles all the time.
        MismatchError: `unfinished` is of something else.
    """
    chosen = find_backend(backend, instruments.device.accelerator)
    require(chosen, precision, instruments.device)
    if group < 1:
        raise ValueError(f"a group has one network or more, not {group}")
    found = tables() if found is None else found
    selected = select(found, models)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgestitch-")))
        kept = folder / "unfinished" if unfinished is None else unfinished
        journal = Journal(
            kept / "zoo",
            _key(selected, instruments, settings, chosen, precision, batch),
            kind="unfinished zoo",
        )
        stack.callback(journal.close)
        run = _Run(
            builder=_Builder(
                instruments.device, chosen, precision, batch, folder, instruments.clock
            ),
            instruments=instruments,
            settings=msgspec.structs.replace(settings, compose=False),
            selected=selected,
            journal=journal,
            folder=kept,
            time_cap_s=time_cap_s,
            group=group,
            progress=progress,
            clock=clock,
        )
        run.until_done()
        return run.zoo(found[0])


def is_complete(zoo: Zoo) -> bool:
    """Whether nothing is left that the time cap kept from being measured."""
    return all(row.reason != OUT_OF_TIME for row in zoo.rows)


def known(name: str) -> bool:
    """Whether the installed timm has a model of that name, today's or a former one."""
    return bool(timm.models.is_model(RENAMED.get(name, name)))


class _About(Value, frozen=True, kw_only=True):
    """What was built for a network."""

    name: str
    model: str
    input_shape: tuple[int, int, int]


class _Finished(Value, frozen=True, kw_only=True):
    """A group that was measured, as the journal keeps it."""

    members: dict[str, _About]
    """By the name of the topology in the profile."""
    profile: Profile


class _NetworkError(Exception):
    """A network failed while it was measured."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


# --- one network ------------------------------------------------------------------------------


class _Alone(nn.Module):
    """A network that is one segment, in the form that backends ask for segments."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def chain(self, atoms: Iterable[str]) -> nn.Sequential:
        return nn.Sequential(self.model)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Member:
    """A network that is ready to be called."""

    about: _About
    run: Run
    images: np.ndarray
    call_s: float
    """What its second call took."""

    def call(self, _: np.ndarray) -> np.ndarray:
        """One call on images of its own: networks of a group take images of different sizes."""
        try:
            return self.run(self.images)
        except Exception as error:  # of whatever library; the others are worth having without it
            raise _NetworkError(self.about.name, _reason(error)) from error


@dataclass(frozen=True)
class _Builder:
    """Makes networks ready to be called."""

    device: Device
    backend: Backend
    precision: str
    batch: int
    folder: Path
    clock: Clock

    def member(self, peer: Peer, num_classes: int) -> _Member:
        """A network of timm with random weights, compiled and called twice."""
        require_room(
            peer.name,
            peer.params * 4 / 2**20 * _COPIES_OF_WEIGHTS + _PASSING_MIB,
            self.device,
            "measure it with fewer beside it (--group 1)",
        )
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # Of timm, about names of its past; of tracers, about code of the models.
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            name = RENAMED.get(peer.name, peer.name)
            model = timm.create_model(name, num_classes=num_classes).eval().requires_grad_(False)
            config = cast("Mapping[str, Any]", model.pretrained_cfg)
            about = _About(
                name=peer.name,
                model=".".join(filter(None, [config["architecture"], config.get("tag")])),
                input_shape=_input_shape(name, config, peer.gmacs),
            )
            run = self._run(model, about)
            random = np.random.default_rng(0)
            images = random.standard_normal((self.batch, *about.input_shape), dtype=np.float32)
            found, wanted = np.shape(run(images)), (self.batch, num_classes)
            started = self.clock()
            run(images)
            call_s = (self.clock() - started) / 1e9
        if found != wanted:
            raise ValueError(f"it answers an array {list(found)}, not {list(wanted)}")
        return _Member(about=about, run=run, images=images, call_s=call_s)

    def _run(self, model: nn.Module, about: _About) -> Run:
        alone = _Alone(model).to(self.device.accelerator)
        shape = (self.batch, *about.input_shape)
        with tempfile.TemporaryDirectory(dir=self.folder) as files:
            request = Request(
                module=alone.chain(()),
                example=torch.zeros(shape, device=self.device.accelerator),
                path=Path(files) / about.name,
                precision=self.precision,
            )
            self.backend.compile(request)
            compiled = Compiled(
                folder=Path(files),
                chains={about.name: (about.name,)},
                atoms={about.name: (about.name,)},
                precision=self.precision,
                threads=self.device.cores,
                accelerator=self.device.accelerator,
                input_shape=shape,
                # Where a backend has its own copy of the weights, the module can go.
                network=partial(_network, alone if self.backend.shares_weights else None),
            )
            return self.backend.load(compiled)(about.name).run

    def program(self, ready: Mapping[str, Resident]) -> Program:
        return Program(
            backend=self.backend.name,
            precision=self.precision,
            batch=self.batch,
            threads=self.device.cores,
            version=self.backend.version(),
            segments=tuple(ready),
            topologies=tuple(ready),
            load=ready.__getitem__,
        )


def _network(alone: _Alone | None) -> "StitchNetwork":
    assert alone is not None, "a backend that shares no weights asked for the network"
    return cast("StitchNetwork", alone)


def _input_shape(name: str, config: Mapping[str, Any], gmacs: float) -> tuple[int, int, int]:
    """The images that a network's published multiply-adds, and so its accuracy, are of.

    timm has one size or two, for training and for testing: it is the one whose multiply-adds are
    nearest. They are counted without computing anything, on tensors that have no values.
    """
    sizes = (config["input_size"], config.get("test_input_size") or config["input_size"])
    shapes = list(dict.fromkeys((int(c), int(h), int(w)) for c, h, w in sizes))
    if len(shapes) == 1:
        return shapes[0]
    return min(shapes, key=lambda shape: abs(_count_gmacs(name, shape) / gmacs - 1))


def _count_gmacs(name: str, shape: tuple[int, int, int]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        timm.create_model(name).eval().requires_grad_(False)(torch.zeros(1, *shape))
    return float(counter.get_total_flops()) / 2e9  # it counts a multiply-add as two


def _reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    said = " ".join(str(error).split())[:300]
    return said if isinstance(error, EdgestitchError) else f"{type(error).__name__}: {said}"


# --- all of them ------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Run:
    """One zoo in the making."""

    builder: _Builder
    instruments: Instruments
    settings: MeasureSettings
    selected: tuple[tuple[Peers, Peer], ...]
    journal: Journal
    folder: Path
    time_cap_s: float
    group: int
    progress: Progress
    clock: Callable[[], float]
    finished: list[_Finished] = field(init=False)
    failed: dict[str, ZooRow] = field(init=False)
    reference: _Member | None = None

    def __post_init__(self) -> None:
        self.deadline = self.clock() + self.time_cap_s
        self.peers = {peer.name: peer for _, peer in self.selected}
        self.tables = {peer.name: table for table, peer in self.selected}
        self.finished = list(self.journal.entries("group", _Finished))
        self.failed = {row.name: row for row in self.journal.entries("row", ZooRow)}
        self.begun = Counter(self.journal.entries("begun", str))
        self.begun.subtract(self.journal.entries("ready", str))
        self.again = next(reversed(list(self.journal.entries("members", tuple[str, ...]))), ())
        """Those whose measuring may have been interrupted: measured together again."""

    @property
    def left_s(self) -> float:
        return self.deadline - self.clock()

    def pending(self) -> list[str]:
        """Those without a result, in random order, but for those that were being measured."""
        done = {about.name for group in self.finished for about in group.members.values()}
        names = list(self.peers)
        order = np.random.default_rng(self.settings.timer.seed).permutation(len(names))
        left = [n for n in (names[i] for i in order) if n not in done and n not in self.failed]
        return sorted(left, key=lambda name: name not in self.again)

    def until_done(self) -> None:
        total = len(self.peers)
        for name in self.pending():
            if not known(name):
                self.fail(name, f"timm {timm.__version__} knows no such model")
        while (left := self.pending()) and self.left_s > 0:
            self.progress("networks", total - len(left), total)
            members = self.ready(left)
            new = any(member.about.name in left for member in members)
            if new and not self.measured(members):
                break
            del members
            _free(self.builder.device.accelerator)
        self.progress("networks", total, total)

    # --- making ready

    def ready(self, left: list[str]) -> list[_Member]:
        """The reference and the networks of the next group, as many as half of its time makes ready."""
        began, half_s = self.clock(), self.left_s * min(self.group / len(left), 1) / 2
        if self.reference is None:
            self.reference = self.first_built(self.by_size())
        members = [] if self.reference is None else [self.reference]
        again = [name for name in left if name in self.again]
        for name in again or left:
            late = self.clock() - began > half_s
            full = len(members) > (len(again) or self.group)
            if full or self.left_s <= 0 or (late and len(members) > 1):
                break
            if self.reference is None or name != self.reference.about.name:
                members += filter(None, [self.built(name)])
        return members

    def by_size(self) -> list[str]:
        """Cheapest first: a reference is called in every group."""
        names = [name for name in self.peers if name not in self.failed]
        return sorted(names, key=lambda name: self.peers[name].gmacs)

    def first_built(self, names: Iterable[str]) -> _Member | None:
        for name in names:
            if self.left_s > 0 and (member := self.built(name)):
                return member
        return None

    def built(self, name: str) -> _Member | None:
        """A network ready to be called; `None`: it failed, which is noted."""
        if self.begun[name] >= DEATHS:
            self.fail(
                name,
                f"the process ended {DEATHS} times while it was made ready: too little memory, or a "
                "fault of the backend",
            )
            return None
        self.journal.add("begun", name)
        try:
            return self.builder.member(self.peers[name], self.tables[name].num_classes)
        except Exception as error:  # of whatever library; the others are worth having without it
            self.fail(name, _reason(error))
            return None
        finally:  # not reached where the kernel kills for memory
            self.journal.add("ready", name)

    def fail(self, name: str, reason: str) -> None:
        row = self.row(name, reason=reason)
        self.failed[name] = row
        self.journal.add("row", row)

    # --- measuring

    def measured(self, members: list[_Member]) -> bool:
        """Measures a group; `False`: there is no time for any of it."""
        members = self.fitting(members)
        if not members:
            return False
        names = tuple(member.about.name for member in members)
        self.journal.add("members", names)
        path = self.folder / f"group-{sha256(chr(10).join(names).encode())[:12]}"
        journal = Journal(path, {"networks": ", ".join(names)}, kind="unfinished group")
        source = self.source(members)
        try:
            profile, _ = measure(source, self.instruments, self.boxed(members), journal=journal)
        except _NetworkError as error:
            self.fail(error.name, str(error))
            if self.reference and error.name == self.reference.about.name:
                self.reference = None
            return True
        finally:
            journal.close()
        found = _Finished(
            members=dict(zip(source.segments, (m.about for m in members), strict=True)),
            profile=profile,
        )
        self.journal.add("group", found)
        self.finished.append(found)
        self.again = ()
        path.unlink()
        return True

    def fitting(self, members: list[_Member]) -> list[_Member]:
        """Those of which one window each can be taken in the time left; the slowest are left out."""
        first = members[:1] if members[0] is self.reference else []
        others = sorted(members[len(first) :], key=lambda member: member.call_s)
        while others and self.least_s([*first, *others]) > self.left_s:
            others.pop()
        if not others and (self.finished or self.least_s(first) > self.left_s):
            return []  # the reference alone tells nothing new
        return [member for member in members if member in first or member in others]

    def least_s(self, members: list[_Member]) -> float:
        """What the shortest measuring of a group takes: a round to warm up, and a window."""
        timer = self.settings.timer
        rounds = ceil(timer.window / timer.burst) + 1
        calls_s = rounds * (timer.burst + 1) * sum(member.call_s for member in members)
        return calls_s + self.energy_s(len(members))

    def energy_s(self, networks: int) -> float:
        """What the least number of windows of energy takes, with idle time before and after."""
        settings, meter = self.settings.energy, self.instruments.meter
        if settings is None or meter.reason is not None:
            return 0.0
        window_s = max(settings.window_s, settings.periods * meter.period_s)
        idle_s = settings.settle_s + max(settings.idle_s, 20 * meter.period_s)
        return 2 * idle_s + networks * settings.min_windows * window_s

    def boxed(self, members: list[_Member]) -> MeasureSettings:
        """The settings with the group's share of the time that is left."""
        left, names = set(self.pending()), {member.about.name for member in members}
        share_s = self.left_s * len(left & names) / len(left)
        for_energy_s = self.energy_s(len(members))
        latency_s = max(share_s - for_energy_s, self.least_s(members) - for_energy_s)
        energy = self.settings.energy
        return msgspec.structs.replace(
            self.settings,
            timer=msgspec.structs.replace(self.settings.timer, time_cap_s=latency_s),
            energy=energy and msgspec.structs.replace(energy, time_cap_s=max(for_energy_s, 1.0)),
        )

    def source(self, members: list[_Member]) -> LoadedSource:
        """A group as a family that stitches nothing: each network is an anchor."""
        family = _family(member.about for member in members)
        names = [family.whole(anchor.name).name for anchor in family.anchors]
        ready = {
            name: Resident(run=member.call) for name, member in zip(names, members, strict=True)
        }
        return LoadedSource(
            family=family,
            network=None,
            segments={name: (name,) for name in names},
            loaded=self.builder.program(ready),
        )

    # --- the zoo

    def zoo(self, table: Peers) -> Zoo:
        instruments, settings = self.instruments, self.settings
        profiles = [group.profile for group in self.finished]
        return Zoo(
            dataset=table.dataset,
            num_classes=table.num_classes,
            source=table.source,
            timm=timm.__version__,
            conditions=conditions(
                self.builder.program({}),
                instruments.device,
                settings.load,
                settings.contention,
            ),
            protocol=_protocol(profiles, settings, self.time_cap_s, self.journal.resumed),
            meter=instruments.meter.name,
            energy_reason=self.energy_reason(profiles),
            date=datetime.now(timezone.utc).date().isoformat(),
            rows=tuple(self.rows(table)),
            reference=next(iter(self.finished[0].members.values())).name if profiles else None,
            groups=tuple(map(_group, self.finished)),
            notes=tuple(self.notes(profiles)),
        )

    def rows(self, table: Peers) -> Iterable[ZooRow]:
        costs: dict[str, ZooRow] = {}
        for group in self.finished:
            for topology, about in group.members.items():
                cost = group.profile.by_topology[topology]
                if about.name not in costs:  # the reference is in all groups
                    costs[about.name] = self.row(
                        about.name,
                        model=about.model,
                        input_shape=about.input_shape,
                        cost=msgspec.structs.replace(cost, topology=about.name),
                    )
        for name in self.peers:
            row = costs.get(name) or self.failed.get(name) or self.row(name, reason=OUT_OF_TIME)
            own = self.tables[name].source
            yield row if own == table.source else msgspec.structs.replace(row, source=own)

    def row(self, name: str, **known: Any) -> ZooRow:
        peer = self.peers[name]
        return ZooRow(name=name, gmacs=peer.gmacs, params=peer.params, top1=peer.top1, **known)

    def energy_reason(self, profiles: list[Profile]) -> str | None:
        if self.settings.energy is None:
            return "not asked for"
        if self.instruments.meter.reason is not None:
            return self.instruments.meter.reason
        return next((p.energy_reason for p in profiles if p.energy_reason), None)

    def notes(self, profiles: list[Profile]) -> Iterable[str]:
        yield "weights are random: what a call costs does not depend on them"
        yield from dict.fromkeys(note for profile in profiles for note in profile.notes)
        apart = drift([_group(group) for group in self.finished])
        if apart is not None and apart > DRIFT:
            yield (
                f"the machine was not the same for all groups: medians of the reference lie {apart:.1%} "
                "apart, and so may those of networks of different groups"
            )


def _family(members: Iterable[_About]) -> Family:
    return Family(
        name="zoo",
        anchors=tuple(
            Anchor(name=f"n{index}", model=about.model, depth=1)
            for index, about in enumerate(members)
        ),
        input_shape=(3, 224, 224),  # of none in particular: each is called with images of its own
        num_classes=1000,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )


def _group(finished: _Finished) -> Group:
    """What a zoo says of a group; the reference is its first."""
    topology = next(iter(finished.members))
    cost, protocol = finished.profile.by_topology[topology], finished.profile.protocol
    return Group(
        names=tuple(about.name for about in finished.members.values()),
        reference_ms=cost.latency_ms,
        reference_low_ms=cost.latency_low_ms,
        reference_high_ms=cost.latency_high_ms,
        duration_s=protocol.duration_s,
        steady=protocol.steady,
        capped=protocol.capped,
    )


def _protocol(
    profiles: Sequence[Profile], settings: MeasureSettings, time_cap_s: float, resumed: int
) -> Protocol:
    """Of all groups together."""
    each = [profile.protocol for profile in profiles]
    throttled: Counter[str] = Counter()
    for protocol in each:
        throttled.update(protocol.throttled)
    return Protocol(
        precision=settings.timer.precision,
        min_samples=settings.timer.min_samples,
        time_cap_s=time_cap_s,
        seed=settings.timer.seed,
        duration_s=round(sum(protocol.duration_s for protocol in each), 3),
        steady=all(protocol.steady for protocol in each),
        capped=any(protocol.capped for protocol in each),
        late=sum(protocol.late for protocol in each),
        throttled=dict(throttled),
        clocks_mhz=_joined([protocol.clocks_mhz for protocol in each]),
        temperatures_c=_joined([protocol.temperatures_c for protocol in each]),
        locked=each[0].locked if each else None,
        resumed=resumed,
    )


Ranges = dict[str, tuple[float, float, float]]


def _joined(groups: Sequence[Ranges]) -> Ranges:
    """Least, median of medians and most of each quantity."""
    values: dict[str, list[tuple[float, float, float]]] = {}
    for group in groups:
        for name, found in group.items():
            values.setdefault(name, []).append(found)
    return {
        name: (
            min(least for least, _, _ in found),
            float(np.median([middle for _, middle, _ in found])),
            max(most for _, _, most in found),
        )
        for name, found in values.items()
    }


def _key(
    selected: Sequence[tuple[Peers, Peer]],
    instruments: Instruments,
    settings: MeasureSettings,
    backend: Backend,
    precision: str,
    batch: int,
) -> dict[str, str]:
    """What an earlier run must have been of to be gone on with; how much is enough may differ."""
    device = instruments.device
    names = sorted(peer.name for _, peer in selected)
    return {
        "models": f"{len(names)}, digest {sha256(chr(10).join(names).encode())[:12]}",
        "device": f"{device.name}, {device.hardware}, {device.power_mode}",
        "backend": f"{backend.name} {backend.version()}, {precision}",
        "batch": str(batch),
        "meter": instruments.meter.name,
        "load": str(settings.load),
        "contention": str(settings.contention),
        "timm": timm.__version__,
        "edgestitch": __version__,
        "throttled": "kept" if settings.timer.keep_throttled else "dropped",
    }


def _free(accelerator: str) -> None:
    """Gives the memory of a group back before the next one is built."""
    gc.collect()
    if accelerator == "cuda":
        torch.cuda.empty_cache()
