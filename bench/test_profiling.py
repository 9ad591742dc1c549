"""How long a profile takes, and how far what it composes is from what is measured."""

from typing import Any

import pytest
from profiler import judge, measure_twice
from rivals import Job
from subjects import network_of

from edgestitch.device import resolve
from edgestitch.engine import network_source, profile_network
from edgestitch.instruments import find_instruments
from edgestitch.measure import MeasureSettings
from edgestitch.timer import TimerSettings

TIMER = TimerSettings(min_samples=60, precision=0.05, time_cap_s=40, min_warmup_s=0.2)
"""Few: what is compared is composing with measuring all, both with the same settings."""
TRIED = TimerSettings(min_samples=20, precision=1.0, time_cap_s=1, min_warmup_s=0)
"""For the toy family, which only tries the suites."""


@pytest.fixture
def small(job: Job) -> Job:
    """A network on which all topologies can be measured in seconds."""
    if job.family not in ("fashion-vit", "toy"):
        pytest.skip(f"measuring every topology of {job.family} takes minutes: see profiler.py")
    return job


@pytest.fixture
def timer(small: Job) -> TimerSettings:
    return TRIED if small.family == "toy" else TIMER


@pytest.mark.parametrize("compose", [True, False], ids=["composed", "all measured"])
def test_a_profile(
    benchmark: Any,
    described: Any,
    small: Job,
    subject: str,
    backend: str,
    timer: TimerSettings,
    compose: bool,
) -> None:
    network = network_of(small.subject)
    instruments = find_instruments(resolve(small.device), energy=False)
    settings = MeasureSettings(timer=timer, energy=None, compose=compose)
    profile, _ = benchmark.pedantic(
        profile_network,
        (network, instruments, settings),
        {"backend": backend, "precision": small.precision},
        rounds=1,
    )
    measured = sum(cost.origin == "measured" for cost in profile.costs)
    word = "composed where it can be" if compose else "nothing composed"
    described(f"a profile, {word}: {measured} of {len(profile.costs)} measured", subject, "s")


def test_how_far_composed_latencies_are_off(
    benchmark: Any,
    described: Any,
    small: Job,
    subject: str,
    backend: str,
    timer: TimerSettings,
) -> None:
    """Every topology is measured twice: composed from the first, judged on the second."""
    device = resolve(small.device)
    instruments = find_instruments(device, energy=False)
    with network_source(
        network_of(small.subject), device, backend=backend, precision=small.precision
    ) as source:
        twice = benchmark.pedantic(measure_twice, (source, instruments, timer), rounds=1)
        try:
            found = judge(source, twice)
        except SystemExit as error:  # so few topologies that all are measured
            pytest.skip(str(error))
    noise, error = found.noise_median, found.error_median
    described(
        "measuring every topology twice",
        subject,
        "s",
        values={
            "error of composed latencies, median": (f"{100 * error:.2f} %", ""),
            "error of composed latencies, p95": (f"{100 * found.error_p95:.2f} %", ""),
            "the same of two measurements, median": (f"{100 * noise:.2f} %", ""),
            "error over noise, median": (f"{error / noise:.2f}", "two measurements of the same"),
            "within a bound that claims 90 %": (f"{100 * found.coverage:.0f} %", ""),
        },
    )
