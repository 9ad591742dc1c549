"""Stand-ins that are part of the product: test your own code with them, no GPU, no data, no waiting.

`toy_deployment` compiles and measures a real but tiny network, for code that holds a `Runtime`;
`fake_deployment` is one in memory with the costs that you say; `null_backend` computes nothing;
`FakeTimer` gives the latencies that you say; `SimulatedDevice` is a whole device with true costs that
you say, meters and sensors, on which profiles are made in no time.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from .accuracy import Accuracy, accuracy_row
from .backends import Backend, Compiled, Load, Request, Resident
from .cut import cut_topologies
from .data import toy_images as toy_images
from .deploy import compile_deployment
from .deployment import Attempt, Deployment, Manifest, Memory
from .device import detect
from .engine import profile_network
from .errors import CompileError
from .evaluate import evaluate
from .instruments import find_instruments
from .measure import MeasureSettings
from .meters.replay import ReplayMeter as ReplayMeter
from .network import StitchNetwork, build_network
from .profile import Conditions, Cost, Profile, Protocol
from .program import Program
from .recipe import load_family
from .schedule import Plan, candidates, plan
from .simulation import SimulatedDevice as SimulatedDevice
from .simulation import Throttling as Throttling
from .timer import TimerSettings

TOY_RESIDENT = ("a:0:3", "a:0:2+b:2:3", "a:0:1+b:1:3", "b:0:3")
"""Topologies of the family `toy`, cheapest first."""

FEW_SAMPLES = MeasureSettings(
    timer=TimerSettings(min_samples=20, precision=1.0, time_cap_s=1.0, min_warmup_s=0.0),
    energy=None,
    compose=False,
)
"""Enough to try code with, too few to believe."""


class FakeTimer:
    """A clock that only the subjects move, each call by the latency you give for it.

    >>> timer = FakeTimer({"a": 1.0, "b": lambda call: 2.0 if call < 100 else 3.0})
    >>> samples = interleave(timer.subjects, clock=timer.clock, sleep=timer.sleep)

    A latency is in milliseconds; as a function it gets the number of the call, from 0.
    """

    def __init__(self, latencies_ms: Mapping[str, float | Callable[[int], float]]) -> None:
        self.now_ns = 0
        self.calls = dict.fromkeys(latencies_ms, 0)
        self.order: list[str] = []
        self._latencies = dict(latencies_ms)

    def clock(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    @property
    def subjects(self) -> dict[str, Callable[[], None]]:
        """What to measure, by name."""
        return {name: self._subject(name) for name in self._latencies}

    def _subject(self, name: str) -> Callable[[], None]:
        latency = self._latencies[name]

        def call() -> None:
            latency_ms = latency(self.calls[name]) if callable(latency) else latency
            self.now_ns += round(latency_ms * 1e6)
            self.calls[name] += 1
            self.order.append(name)

        return call


def null_backend(
    num_classes: int, *, fail: Callable[[str], bool] = lambda segment: False
) -> Backend:
    """A backend that computes nothing and answers zeros; compiling raises where `fail` says so."""

    def compile_segment(request: Request) -> None:
        name = request.path.name
        if fail(name):
            raise CompileError(f"null cannot compile {name}, as it was told")
        request.path.with_name(f"{name}.null").write_text(request.precision)

    def load(compiled: Compiled) -> Load:
        def one(topology: str) -> Resident:
            for segment in compiled.chains[topology]:
                (compiled.folder / f"{segment}.null").read_text()
            return Resident(run=lambda images: np.zeros((len(images), num_classes), np.float32))

        return one

    return Backend(
        name="null",
        accelerators=("cpu", "cuda"),
        precisions=("fp32",),
        unavailable=lambda: None,
        compile=compile_segment,
        load=load,
        version=lambda: "1",
    )


def toy_network(*, seed: int = 0) -> StitchNetwork:
    """The network of the recipe `toy` with random weights: 9 topologies of a few thousand weights."""
    torch.manual_seed(seed)
    return build_network(load_family("toy"))


def toy_deployment(folder: Path, *, backend: str = "eager") -> Deployment:
    """A deployment of `toy_network` with four topologies resident, really compiled here."""
    network, instruments = toy_network(), find_instruments(detect(), energy=False)
    accuracy = evaluate(network, toy_images(64))
    profile, _ = profile_network(network, instruments, FEW_SAMPLES, backend=backend)
    chosen = toy_plan(profile, accuracy)
    return compile_deployment(
        network, chosen, accuracy, folder, instruments, FEW_SAMPLES, backend=backend
    )


def toy_plan(profile: Profile, accuracy: Accuracy) -> Plan:
    """A plan that keeps `TOY_RESIDENT`, not the Pareto front, which is what a machine's noise makes it."""
    found = [c for c in candidates(profile, accuracy) if c.topology in TOY_RESIDENT]
    resident = sorted(found, key=lambda c: (c.latency_ms, c.top1))
    return msgspec.structs.replace(plan(profile, accuracy), resident=tuple(resident))


def fake_deployment(
    costs_ms: Mapping[str, float],
    *,
    energies_mj: Mapping[str, float] | None = None,
    run: Callable[[str, np.ndarray], np.ndarray] | None = None,
) -> Deployment:
    """A deployment in memory: topologies of the family `toy` with the costs that you say.

    Accuracy rises with the order of `costs_ms`, 50 % and 5 points each. `run` computes the logits
    of a topology, given its name and the image; without it they are zeros.
    """
    family = load_family("toy")
    correct = {name: 500 + 50 * index for index, name in enumerate(costs_ms)}
    accuracy = Accuracy(
        family=family.name,
        network="fake",
        data="fake",
        num_images=1000,
        rows=tuple(accuracy_row(name, hits, 1000) for name, hits in correct.items()),
    )
    conditions = Conditions(
        device="cpu",
        hardware="fake",
        power_mode=None,
        backend="null",
        precision="fp32",
        batch=1,
        threads=1,
        versions={"null": "1"},
    )
    profile = Profile(
        family=family.name,
        network="fake",
        conditions=conditions,
        protocol=Protocol(
            precision=0.01,
            min_samples=1000,
            time_cap_s=60.0,
            seed=0,
            duration_s=0.0,
            steady=True,
            capped=False,
        ),
        segments=(),
        meter="replay" if energies_mj else "none",
        energy_reason=None if energies_mj else "a fake deployment has no meter",
        date="2026-01-01",
        samples_digest="fake",
        costs=tuple(
            _fake_cost(name, cost_ms, (energies_mj or {}).get(name))
            for name, cost_ms in costs_ms.items()
        ),
    )
    segments = cut_topologies(family, costs_ms)
    compute = run or (lambda name, images: np.zeros((len(images), family.num_classes), np.float32))
    program = Program(
        backend="null",
        precision="fp32",
        batch=1,
        threads=1,
        version="1",
        segments=tuple(segments.atoms),
        topologies=tuple(costs_ms),
        load=lambda name: Resident(run=partial(compute, name)),
    )
    manifest = Manifest(
        family=family,
        network="fake",
        conditions=conditions,
        segments=dict(segments.atoms),
        chains=dict(segments.chains),
        checks=(),
        attempts=(Attempt(backend="null", precision="fp32"),),
        memory=Memory(segments_mib=dict.fromkeys(segments.atoms, 0.0), total_mib=0, weights_mib=1),
        segment_files={},
        files={},
    )
    return Deployment(
        folder=Path(),
        manifest=manifest,
        plan=plan(profile, accuracy),
        profile=profile,
        accuracy=accuracy,
        program=program,
    )


def _fake_cost(topology: str, cost_ms: float, energy_mj: float | None) -> Cost:
    return Cost(
        topology=topology,
        latency_ms=cost_ms,
        latency_low_ms=cost_ms,
        latency_high_ms=cost_ms,
        p99_ms=cost_ms,
        p99_high_ms=cost_ms,
        max_ms=cost_ms,
        energy_mj=energy_mj,
        samples=1000,
        origin="measured",
    )
