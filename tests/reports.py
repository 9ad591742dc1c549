"""Artifacts that reports are made of in tests, and a browser to look at the page."""

import math
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

from edgestitch.accuracy import Accuracy, TopologyAccuracy
from edgestitch.energy import EnergySettings
from edgestitch.measure import MeasureSettings, measure
from edgestitch.profile import Conditions, Cost, Profile, Protocol
from edgestitch.recipe import load_family
from edgestitch.runlog import Frame, Reading, RunLog
from edgestitch.switches import Middle, SwitchMatrix, Transition
from edgestitch.testing import SimulatedDevice
from edgestitch.timer import TimerSettings
from edgestitch.zoo import Zoo, ZooRow
from tests.strategies import conditions

FAMILY = load_family("toy")
NETWORK = "5eed" * 16
CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# In the family's order: anchors a and b, then the stitched ones; some of them on the front.
MEDIANS = (1.0, 3.0, 2.71, 2.2, 2.45, 1.72, 1.5, 1.93, 1.38)
TOP1 = (80.0, 91.0, 90.25, 88.5, 88.0, 86.0, 84.0, 83.5, 81.0)
HOSTILE = "</script><b>{{title}}</b><script>alert('x')</script>"


def make_accuracy(top1: Sequence[float] = TOP1) -> Accuracy:
    names = [topology.name for topology in FAMILY.topologies]
    return Accuracy(
        family="toy",
        network=NETWORK,
        data="da7a" * 16,
        num_images=400,
        rows=tuple(
            TopologyAccuracy(
                topology=name, top1=x, low=x - 2.5, high=x + 2.25, correct=round(4 * x)
            )
            for name, x in zip(names, top1, strict=True)
        ),
    )


def make_profile(medians: Sequence[float] = MEDIANS, **changes: Any) -> Profile:
    names = [topology.name for topology in FAMILY.topologies]
    conditions = Conditions(
        device="cpu",
        hardware="Toy CPU, 2 cores",
        power_mode=None,
        backend="openvino",
        precision="fp32",
        batch=1,
        threads=2,
        versions={"openvino": "2025.3", "torch": "2.9"},
    )
    protocol = Protocol(
        precision=0.01,
        min_samples=500,
        time_cap_s=60,
        seed=7,
        duration_s=31.4,
        steady=True,
        capped=False,
    )
    values: dict[str, Any] = {
        "family": "toy",
        "network": NETWORK,
        "conditions": conditions,
        "protocol": protocol,
        "segments": ("a:stem", "a:0"),
        "meter": "none",
        "energy_reason": "no counter <here> & now",
        "date": "2026-11-24",
        "samples_digest": "5a" * 32,
        "costs": tuple(make_cost(name, x) for name, x in zip(names, medians, strict=True)),
    }
    return Profile(**{**values, **changes})


def make_cost(name: str, median_ms: float) -> Cost:
    return Cost(
        topology=name,
        latency_ms=median_ms,
        latency_low_ms=0.99 * median_ms,
        latency_high_ms=1.01 * median_ms,
        p99_ms=1.07 * median_ms,
        p99_high_ms=1.13 * median_ms,
        max_ms=2 * median_ms,
        energy_mj=None,
        samples=1200,
        origin="measured",
    )


def make_log(
    number: int = 400, *, network: str = NETWORK, deadlines: bool = True, seed: int = 0
) -> RunLog:
    """Frames at 50 Hz of two topologies under two budgets, one in fifty late; readings each second."""
    numbers = random.Random(seed)
    frames = []
    for index in range(number):
        fast = index % 200 < 100
        late = index % 50 == 49
        frames.append(
            Frame(
                time_s=index / 50,
                topology="a:0:3" if fast else "b:0:3",
                latency_ms=(1.0 if fast else 3.0)
                * (3 if late else 1)
                * numbers.uniform(0.95, 1.05),
                budget_ms=(1.5 if fast else 4.0) if deadlines else None,
                budget_w=9.0,
            )
        )
    readings = [
        Reading(
            time_s=float(second),
            power_w=5.0 + second % 3,
            temperatures_c={"gpu": 50.0 + second, "cpu": 45.0},
            throttle=("thermal",) if 2 <= second < 4 else (),
            slowdown=1.1,
        )
        for second in range(math.ceil(number / 50) + 1)
    ]
    return RunLog(
        family="toy",
        network=network,
        plan="91a2" * 16,
        conditions=conditions(),
        date="2026-11-24",
        frames=tuple(frames),
        readings=tuple(readings),
    )


def make_switches(names: Sequence[str] = ("a:0:3", "a:0:1+b:0:3", "b:0:3")) -> SwitchMatrix:
    """The first inference takes a tenth longer, and half as long again from a to b."""

    def around(median: float) -> Middle:
        return Middle(median=median, low=0.9 * median, high=1.1 * median)

    def transition(before: str, after: str) -> Transition:
        ratio = 1.5 if (before, after) == ("a:0:3", "b:0:3") else 1.1
        return Transition(
            before=before,
            after=after,
            switch_us=around(2.5),
            first_ms=around(2 * ratio),
            steady_ms=around(2),
            ratio=around(ratio),
        )

    return SwitchMatrix(
        family="toy",
        network=NETWORK,
        plan="91a2" * 16,
        conditions=conditions(),
        date="2026-11-24",
        repeats=20,
        topologies=tuple(names),
        transitions=tuple(transition(a, b) for a in names for b in names if a != b),
    )


def make_zoo(profile: Profile, *, classes: int = FAMILY.num_classes) -> Zoo:
    """Two networks under the conditions of a profile, one better and one slower; one not measured."""
    rows = [("better", 1.9, 92.0), ("slower", 40.0, 95.0)]
    measured = [
        ZooRow(name=name, gmacs=6e-5, params=1234, top1=top1, cost=make_cost(name, median_ms))
        for name, median_ms, top1 in rows
    ]
    return Zoo(
        dataset="Toys",
        num_classes=classes,
        source="a page",
        timm="1.0.20",
        conditions=profile.conditions,
        protocol=profile.protocol,
        meter="none",
        energy_reason="no counter",
        date="2026-11-24",
        rows=(
            *measured,
            ZooRow(name="gone", gmacs=1.0, params=1, top1=90.0, reason="no such model"),
        ),
    )


@cache
def composed_profile(family: str = "fashion-vit") -> Profile:
    """A profile of a simulated device with energy, most of its costs composed."""
    device = SimulatedDevice(load_family(family), noise=0.005)
    settings = MeasureSettings(
        timer=TimerSettings(min_samples=30, precision=0.05, min_warmup_s=0.0),
        energy=EnergySettings(time_cap_s=600),
    )
    profile, _ = measure(device.source(), device.instruments(device.counter()), settings)
    return profile


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's Chromium without a screen; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()
