"""How far composed latencies are from measured ones, and how much time they save.

Every topology is measured twice at once: two subjects of the same program in the same rounds. From
one of them a profile is composed as the profiler does it, for many random choices of what is held
out; the other is the truth that it is judged on. What the two differ by is the noise: nothing can be
predicted better than it repeats.
"""

import argparse
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pages
from scipy.stats import binom
from subjects import network_of

from edgestitch import __version__
from edgestitch.compose import Selection, predict, variance_factors
from edgestitch.device import resolve
from edgestitch.engine import NetworkSource, network_source
from edgestitch.instruments import Instruments, find_instruments
from edgestitch.measure import terms_of
from edgestitch.program import example_images
from edgestitch.progress import Progress, silent
from edgestitch.timer import TimerSettings, interleave, summarize

CONFIDENCE = 0.9
SPLITS = 200
"""Random choices of what is held out."""


class Twice(msgspec.Struct, frozen=True, kw_only=True):
    """Medians and 99th percentiles' bounds of every topology, in milliseconds, measured twice."""

    first_ms: dict[str, float]
    second_ms: dict[str, float]
    first_bound_ms: dict[str, float]
    second_bound_ms: dict[str, float]
    samples: int


class Composed(msgspec.Struct, frozen=True, kw_only=True):
    """What composing gives, over random choices of what is held out."""

    topologies: int
    measured: int
    designed: int
    rank: int
    variance_factor: float
    """The largest of a prediction, in units of a measurement's."""
    noise_median: float
    noise_p95: float
    """Relative difference of two measurements of the same topology."""
    error_median: float
    error_p95: float
    """Of composed latencies against the second measurement; medians over the choices."""
    coverage: float
    bound_coverage: float
    """Part of all composed topologies whose second measurement is within the first's bound."""
    claimed: float
    time_share: float
    """Time of the calls of what is measured, over that of all; median over the choices."""


def measure_twice(
    source: NetworkSource,
    instruments: Instruments,
    timer: TimerSettings,
    progress: Progress = silent,
) -> Twice:
    names = list(source.segments)
    program = source.program(names)
    images = example_images(source.family, program.batch, seed=timer.seed)
    subjects = {
        f"{name} {turn}": partial(program.runs[name], images)
        for name in names
        for turn in ("first", "second")
    }
    samples = interleave(
        subjects,
        timer,
        look=instruments.reader,
        progress=progress,
    )
    found = {name: summarize(durations) for name, durations in samples.durations_ns.items()}

    def of(turn: str, field: str) -> dict[str, float]:
        summaries = {name: found[f"{name} {turn}"] for name in names}
        if field == "median":
            return {name: s.median for name, s in summaries.items()}
        return {name: s.p99_high or s.max for name, s in summaries.items()}

    return Twice(
        first_ms=of("first", "median"),
        second_ms=of("second", "median"),
        first_bound_ms=of("first", "bound"),
        second_bound_ms=of("second", "bound"),
        samples=min(s.samples for s in found.values()),
    )


def judge(source: NetworkSource, twice: Twice) -> Composed:
    found = terms_of(source)
    errors, p95s, covered, bounds, shares = [], [], [], [], []
    claimed = 0.0
    for seed in range(SPLITS):
        selection = Selection(found, CONFIDENCE, seed)
        if selection.complete:
            raise SystemExit(f"all {len(found.topologies)} topologies are measured: none composed")
        left = [n for n in found.topologies if n not in set(selection.measured)]
        latency = selection.certify(twice.first_ms)
        bound = selection.certify(twice.first_bound_ms)
        claimed = latency.confidence
        truth = np.array([twice.second_ms[n] for n in left])
        tails = np.array([twice.second_bound_ms[n] for n in left])
        ratio = predict(found, latency.costs, left) / truth
        errors.append(float(np.median(np.abs(ratio - 1))))
        p95s.append(float(np.quantile(np.abs(ratio - 1), 0.95)))
        covered.append(truth <= predict(found, latency.costs, left) * latency.factor)
        bounds.append(tails <= predict(found, bound.costs, left) * bound.factor)
        total = sum(twice.first_ms.values())
        shares.append(sum(twice.first_ms[n] for n in selection.measured) / total)
    noise = np.abs(
        np.array(list(twice.first_ms.values())) / np.array(list(twice.second_ms.values())) - 1
    )
    return Composed(
        topologies=len(found.topologies),
        measured=len(selection.measured),
        designed=len(selection.designed),
        rank=found.rank,
        variance_factor=float(variance_factors(found, selection.designed).max()),
        noise_median=float(np.median(noise)),
        noise_p95=float(np.quantile(noise, 0.95)),
        error_median=float(np.median(errors)),
        error_p95=float(np.median(p95s)),
        coverage=float(np.concatenate(covered).mean()),
        bound_coverage=float(np.concatenate(bounds).mean()),
        claimed=claimed,
        time_share=float(np.median(shares)),
    )


def row(label: str, twice: Twice, found: Composed) -> list[str]:
    number = found.topologies - found.designed
    low, high = binom.ppf([0.025, 0.975], number, found.claimed) / number
    return [
        label,
        f"{found.measured} of {found.topologies}",
        f"{twice.samples}",
        f"{100 * found.noise_median:.2f} / {100 * found.noise_p95:.2f} %",
        f"**{100 * found.error_median:.2f}** / **{100 * found.error_p95:.2f}** %",
        f"**{found.error_median / found.noise_median:.2f}x** / "
        f"**{found.error_p95 / found.noise_p95:.2f}x**",
        f"{found.coverage:.3f} / {found.bound_coverage:.3f}",
        f"{found.claimed:.2f} ({low:.3f} to {high:.3f})",
        f"**{found.time_share:.2f}**",
    ]


COLUMNS = (
    "network",
    "measured",
    "samples each",
    "noise, median / p95",
    "error, median / p95",
    "error over noise",
    "within bound: median / p99",
    "claimed",
    "time of calls over that of all",
)


def reading(judged: list[Composed], others: float) -> list[str]:
    return [
        pages.noise(others),
        *(
            f"{found.measured} of {found.topologies} topologies measured, in "
            f"{100 * found.time_share:.0f} % of the time of all: composed latencies are "
            f"{100 * found.error_median:.2f} % off by the median and {100 * found.error_p95:.2f} % "
            f"at the 95th percentile, {found.error_median / found.noise_median:.2f} and "
            f"{found.error_p95 / found.noise_p95:.2f} times what two measurements differ by; "
            f"{100 * found.coverage:.0f} % are within a bound that claims {100 * found.claimed:.0f} %."
            for found in judged
        ),
    ]


EXPLANATION = (
    "Noise: relative difference of two measurements of the same topology. Error: composed against the "
    "second measurement, over the topologies that are not measured; medians over the choices of what "
    "is held out. Within bound: part of the composed topologies whose second measurement is below the "
    "first's conformal bound; the interval is binomial, for as many topologies as are not in the "
    "design, since the choices share them."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "networks",
        nargs="*",
        default=["fashion-vit:openvino", "deit-ti-s-b:eager"],
        help="NETWORK:BACKEND[:PRECISION]",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--min-samples", type=int, default=60)
    parser.add_argument("--time-cap-s", type=float, default=500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = resolve(options.device)
    instruments = find_instruments(device, energy=False)
    timer = TimerSettings(
        min_samples=options.min_samples, time_cap_s=options.time_cap_s, warmup_share=0.1
    )
    rows, twices, judged, versions = [], [], [], {"edgestitch": __version__}
    with pages.observed() as span:
        for item in options.networks:
            name, backend, *rest = item.split(":")
            precision = rest[0] if rest else "fp32"
            with network_source(
                network_of(name), device, backend=backend, precision=precision
            ) as source:
                versions[backend] = source.backend.version()
                twices.append(measure_twice(source, instruments, timer))
                judged.append(judge(source, twices[-1]))
            rows.append(row(f"`{name}`, {backend} {precision}", twices[-1], judged[-1]))
            print(item, judged[-1], flush=True)
    text = pages.page(
        "How good are composed latencies?",
        "Batch 1. Every topology measured twice in the same rounds; composed from the first, judged on "
        f"the second, over {SPLITS} random choices of what is held out. `deit-ti-s-b` has random "
        "weights.",
        reading=reading(judged, span.others),
        machine=f"{device.hardware}, {device.memory_mib} MiB.",
        versions=versions,
        command=" ".join(["python bench/profiler.py", *options.networks]),
        sections={
            "Composed and measured": [*pages.table(COLUMNS, rows), "", EXPLANATION],
        },
        missing=["Energy: this machine has no meter that can be read."]
        if device.name == "cpu"
        else [],
    )
    print(text)
    (options.out or pages.result_path("profiler", device.hardware)).write_text(text)


if __name__ == "__main__":
    main()
