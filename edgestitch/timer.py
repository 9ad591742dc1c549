"""Latency samples that can be trusted: settled, interleaved, as many as the question needs.

    warm-up, until the windows' medians agree | round 1: C A B | round 2: B C A | ...   | summary
    `--- not kept ----------------------------' `--- each call is one sample -------------'

One sample is one call, from the host's monotonic clock. Everything under test is called once a
round, in random order, so that a drift of the machine meets all alike. Sampling ends for a subject
when the interval of its median is narrow and its 99th percentile is bounded; nothing is trimmed.
"""

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np

from .artifact import Value
from .progress import Progress, silent

MIN_SAMPLES_P99 = 473
"""Fewest samples whose order statistics bound a 99th percentile from above, at 97.5 %, by other
than the maximum."""

Clock = Callable[[], int]


class TimerSettings(Value, frozen=True, kw_only=True):
    """When to stop."""

    precision: float = 0.01
    """Half-width of the 95 % interval of the median, relative to the median."""
    min_samples: int = 1000
    """With fewer than 473, 99th percentiles are not known."""
    max_samples: int = 20_000
    time_cap_s: float = 60.0
    """For all subjects together, warm-up included."""
    warmup_share: float = 0.2
    """Largest part of the time cap that warming up may take."""
    window: int = 20
    """Rounds between two looks at the stop rules."""
    steady: float = 0.02
    """Largest relative spread of the medians of three windows that counts as settled."""
    seed: int = 0


@dataclass(frozen=True)
class Samples:
    """Nanoseconds of each call, in the order they were taken."""

    durations_ns: Mapping[str, np.ndarray]
    steady: bool
    capped: bool
    duration_s: float


@dataclass(frozen=True)
class Summary:
    """Milliseconds; see `profile.Cost` for what each means."""

    median: float
    low: float
    high: float
    p99: float | None
    p99_high: float | None
    max: float
    samples: int


def interleave(
    subjects: Mapping[str, Callable[[], object]],
    settings: TimerSettings | None = None,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = silent,
) -> Samples:
    """Samples of every subject, by the protocol above.

    Raises:
        ValueError: there is no subject.
    """
    settings = settings or TimerSettings()
    if not subjects:
        raise ValueError("nothing to measure: no topology was given")
    sampler = _Sampler(subjects, settings, clock)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle of a call is not the subject's latency
    try:
        steady = sampler.warm_up(progress)
        capped = sampler.sample(progress)
    finally:
        if collecting:
            gc.enable()
    return Samples(
        durations_ns={name: np.asarray(d, np.int64) for name, d in sampler.durations.items()},
        steady=steady,
        capped=capped,
        duration_s=sampler.elapsed_s,
    )


class _Sampler:
    def __init__(
        self, subjects: Mapping[str, Callable[[], object]], settings: TimerSettings, clock: Clock
    ) -> None:
        self.subjects = dict(subjects)
        self.settings = settings
        self.clock = clock
        self.random = np.random.default_rng(settings.seed)
        self.durations: dict[str, list[int]] = {name: [] for name in subjects}
        self.start = clock()

    @property
    def elapsed_s(self) -> float:
        return (self.clock() - self.start) / 1e9

    def round(self, names: list[str]) -> dict[str, int]:
        """Duration of one call of each, in random order."""
        durations = {}
        for index in self.random.permutation(len(names)):
            subject = self.subjects[names[index]]
            before = self.clock()
            subject()
            durations[names[index]] = self.clock() - before
        return durations

    def warm_up(self, progress: Progress) -> bool:
        """Runs all until the rounds have settled; returns whether they did before the time was up."""
        cap_s = self.settings.time_cap_s * self.settings.warmup_share
        names = list(self.subjects)
        medians: list[float] = []
        while self.elapsed_s < cap_s:
            rounds = [sum(self.round(names).values()) for _ in range(self.settings.window)]
            medians.append(float(np.median(rounds)))
            progress("warm up", int(1000 * min(self.elapsed_s / cap_s, 1)), 1000)
            last = medians[-3:]
            if len(last) == 3 and max(last) <= min(last) * (1 + self.settings.steady):
                return True
        return False

    def sample(self, progress: Progress) -> bool:
        """Samples until the stop rule holds for each; returns whether the time was up before that."""
        active = list(self.subjects)
        while active:
            for _ in range(self.settings.window):
                for name, duration in self.round(active).items():
                    self.durations[name].append(duration)
            active = [name for name in active if not self.enough(self.durations[name])]
            spent = self.elapsed_s / self.settings.time_cap_s
            fewest = min(len(d) for d in self.durations.values()) / self.settings.min_samples
            progress("measure", int(1000 * min(max(spent, fewest * 0.99), 1)), 1000)
            if spent >= 1:
                break
        progress("measure", 1000, 1000)
        return bool(active)

    def enough(self, durations: list[int]) -> bool:
        number = len(durations)
        if number < self.settings.min_samples:
            return False
        summary = summarize(np.asarray(durations))
        narrow = (summary.high - summary.low) / 2 <= self.settings.precision * summary.median
        return narrow or number >= self.settings.max_samples


def summarize(durations_ns: Iterable[int] | np.ndarray) -> Summary:
    """Median and 99th percentile with their 95 % intervals, free of any assumed distribution.

    Raises:
        ValueError: there are no samples.
    """
    ordered = np.sort(np.asarray(durations_ns, dtype=np.int64)) / 1e6
    number = len(ordered)
    if number == 0:
        raise ValueError("no samples to summarize")
    low, high = interval_ranks(number, 0.5)
    enough = number >= MIN_SAMPLES_P99
    _, p99_high = interval_ranks(number, 0.99)
    return Summary(
        median=float(np.median(ordered)),
        low=float(ordered[max(low, 1) - 1]),
        high=float(ordered[min(high, number) - 1]),
        p99=float(ordered[ceil(0.99 * number) - 1]) if enough else None,
        p99_high=float(ordered[p99_high - 1]) if enough else None,
        max=float(ordered[-1]),
        samples=number,
    )


def interval_ranks(number: int, quantile: float, confidence: float = 0.95) -> tuple[int, int]:
    """Ranks, from 1, of the order statistics that enclose a quantile with that confidence.

    The number of samples below the quantile is binomial (David and Nagaraja 2003, section 7.1). A
    rank of 0 or of `number + 1` says that the samples are too few for that side.
    """
    from scipy.stats import binom

    tail = (1 - confidence) / 2
    low = int(binom.ppf(tail, number, quantile))
    high = int(binom.ppf(1 - tail, number, quantile)) + 1
    return low, high
