"""Measuring: a program on a device becomes a profile."""

import platform
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .artifact import load_tensors, save, save_tensors, tensor_digest
from .device import Device
from .errors import MismatchError
from .family import Family
from .meter import Meter, find_meter
from .profile import Conditions, Cost, Profile, Protocol
from .program import Program, example_images
from .progress import Progress, silent
from .timer import Clock, Samples, TimerSettings, interleave, summarize

SAMPLES = "latency samples"
SAMPLES_VERSION = 1


def measure(
    program: Program,
    family: Family,
    network: str,
    device: Device,
    settings: TimerSettings | None = None,
    *,
    meter: Meter | None = None,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = silent,
) -> tuple[Profile, Samples]:
    """The latency of every topology of a program, and the samples behind it.

    `network` is the digest of the weights. A sample is one call: image in host memory in, logits in
    host memory out.
    """
    settings = settings or TimerSettings()
    meter = meter or find_meter(device)
    images = example_images(family, program.batch, seed=settings.seed)
    subjects: dict[str, Callable[[], object]] = {
        name: lambda run=run: run(images)  # type: ignore[misc]
        for name, run in program.runs.items()
    }
    samples = interleave(subjects, settings, clock=clock, progress=progress)
    profile = Profile(
        family=family.name,
        network=network,
        conditions=conditions(program, device),
        protocol=Protocol(
            precision=settings.precision,
            min_samples=settings.min_samples,
            time_cap_s=settings.time_cap_s,
            seed=settings.seed,
            duration_s=round(samples.duration_s, 3),
            steady=samples.steady,
            capped=samples.capped,
        ),
        segments=program.segments,
        meter=meter.name,
        energy_reason=meter.reason,
        date=datetime.now(timezone.utc).date().isoformat(),
        samples_digest=tensor_digest(dict(samples.durations_ns)),
        costs=tuple(_cost(name, durations) for name, durations in samples.durations_ns.items()),
    )
    return profile, samples


def conditions(program: Program, device: Device) -> Conditions:
    """What a profile of this program on this device depends on."""
    return Conditions(
        device=device.name,
        hardware=device.hardware,
        power_mode=device.power_mode,
        backend=program.backend,
        precision=program.precision,
        batch=program.batch,
        threads=program.threads,
        versions={
            "edgestitch": version("edgestitch"),
            "python": platform.python_version(),
            program.backend: program.version,
        },
    )


def save_profile(profile: Profile, samples: Samples, path: Path) -> None:
    """Writes the profile, and beside it the samples as `<name>.samples.safetensors`."""
    save_tensors(
        SAMPLES, SAMPLES_VERSION, {"unit": "ns"}, dict(samples.durations_ns), _beside(path)
    )
    save(profile, path)


def load_samples(profile: Profile, path: Path) -> dict[str, np.ndarray]:
    """The nanoseconds of each call behind a profile that `save_profile` wrote to `path`.

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


def _beside(path: Path) -> Path:
    return path.with_suffix(".samples.safetensors")


def _cost(topology: str, durations_ns: np.ndarray) -> Cost:
    summary = summarize(durations_ns)
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
    )
