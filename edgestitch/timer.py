"""Latency samples that can be trusted: settled, interleaved, as many as the question needs.

    warm-up, until the windows' medians agree | round 1: -CCCC -AAAA -BBBB | round 2: ... | summary
    `--- not kept ----------------------------' `--- each call but the first of a burst is a sample

One sample is one call, from the host's monotonic clock. Everything under test is called in a burst
each round, in random order, until the interval of each median is narrow and each 99th percentile is
bounded: who left earlier would miss what the machine did to the others. Nothing is trimmed but
what was taken while the device throttled: it is looked at between calls, some times a second, and
if it throttles at either of two looks the samples between them are dropped and counted. So are
those over which the clock was set back; where it leapt ahead nobody can tell that from a stall, and
the sample stays.
"""

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from statistics import median

import numpy as np

from .artifact import Value
from .errors import DeviceError
from .profile import Load
from .progress import Progress, silent
from .sensors import State, throttled

MIN_SAMPLES_P99 = 473
"""Fewest samples whose order statistics bound a 99th percentile from above, at 97.5 %, by other
than the maximum."""

CLOCK_JUMPED = "clock jumped"
"""Why a sample is dropped over which the clock was set back: it ended before it began."""

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
    min_warmup_s: float = 1.0
    burst: int = 4
    """Samples of a subject in a row, after one call that is none: the first one after another
    subject's finds the caches filled with that one's weights, and is what a switch costs."""
    window: int = 20
    """Samples of a subject between two looks at the stop rules."""
    steady: float = 0.02
    """Largest relative spread of the medians of three windows that counts as settled."""
    trend: float = 0.005
    """Largest relative change from window to window, over the last five, that counts as settled."""
    look_s: float = 0.1
    """Between two looks at the device."""
    keep_throttled: bool = False
    """Whether samples are kept that were taken while the device throttled."""
    seed: int = 0


@dataclass(frozen=True)
class Look:
    """The device at one moment, and why it throttled since the look before."""

    time_ns: int
    """Since the first sample of all."""
    state: State
    throttle: tuple[str, ...]


@dataclass(frozen=True)
class Taken:
    """Samples of one subject: when each began, since the first of all, and how long it took."""

    starts_ns: list[int] = field(default_factory=list)
    durations_ns: list[int] = field(default_factory=list)

    def extend(self, other: "Taken") -> None:
        self.starts_ns.extend(other.starts_ns)
        self.durations_ns.extend(other.durations_ns)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Nanoseconds of each call, in the order they were taken."""

    durations_ns: Mapping[str, np.ndarray] = field(default_factory=dict)
    starts_ns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """When each call began, since the first of all."""
    steady: bool = True
    capped: bool = False
    duration_s: float = 0.0
    looks: tuple[Look, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Samples thrown away, by subject."""
    throttled: Mapping[str, int] = field(default_factory=dict)
    """Samples taken while the device throttled, by reason, dropped or not."""
    late: int = 0

    @property
    def end_ns(self) -> int:
        """When the last call or look was over, since the first of all."""
        ends = [int((self.starts_ns[n] + d).max()) for n, d in self.durations_ns.items()]
        return max(ends + [look.time_ns for look in self.looks], default=0)

    def joined(self, later: "Samples") -> "Samples":
        """Both, of different subjects; the later ones began when the earlier were done."""
        starts_ns = {name: self.end_ns + starts for name, starts in later.starts_ns.items()}
        looks = tuple(replace(look, time_ns=self.end_ns + look.time_ns) for look in later.looks)
        return Samples(
            durations_ns={**self.durations_ns, **later.durations_ns},
            starts_ns={**self.starts_ns, **starts_ns},
            steady=self.steady and later.steady,
            capped=self.capped or later.capped,
            duration_s=self.duration_s + later.duration_s,
            looks=self.looks + looks,
            dropped={**self.dropped, **later.dropped},
            throttled=dict(Counter(self.throttled) + Counter(later.throttled)),
            late=self.late + later.late,
        )


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


Keep = Callable[[Mapping[str, Taken]], None]
"""Told of the samples of a window as soon as they are final."""


def interleave(
    subjects: Mapping[str, Callable[[], object]],
    settings: TimerSettings | None = None,
    *,
    load: Load | None = None,
    known: Mapping[str, Taken] | None = None,
    keep: Keep | None = None,
    look: Callable[[], State] | None = None,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    progress: Progress = silent,
) -> Samples:
    """Samples of every subject, by the protocol above.

    `known` are samples of an interrupted run that are taken over; `keep` is told of new ones;
    `look` reads the state of the device.

    Raises:
        ValueError: there is no subject.
        DeviceError: the device throttled all the time, so that some subject has no sample.
    """
    settings = settings or TimerSettings()
    if not subjects:
        raise ValueError("nothing to measure: no topology was given")
    pacer = Pacer(load or Load(), clock, sleep)
    sampler = _Sampler(subjects, settings, pacer, known or {}, keep, look)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle of a call is not the subject's latency
    try:
        steady = sampler.done() or sampler.warm_up(progress)
        capped = sampler.sample(progress)
    finally:
        if collecting:
            gc.enable()
    sampler.require_samples()
    return Samples(
        durations_ns={n: np.asarray(t.durations_ns, np.int64) for n, t in sampler.taken.items()},
        starts_ns={n: np.asarray(t.starts_ns, np.int64) for n, t in sampler.taken.items()},
        steady=steady,
        capped=capped,
        duration_s=sampler.elapsed_s,
        looks=tuple(sampler.looks),
        dropped=dict(sampler.dropped),
        throttled=dict(sampler.reasons),
        late=pacer.late,
    )


class Pacer:
    """Waits, before each call, as the load says."""

    def __init__(self, load: Load, clock: Clock, sleep: Callable[[float], None]) -> None:
        self.load = load
        self.clock = clock
        self.sleep = sleep
        self.late = 0
        """Calls that began late, because the one before had not ended."""
        self._next_ns: int | None = None

    def wait(self) -> None:
        if self.load.gap_ms is not None:
            self.sleep(self.load.gap_ms / 1e3)
        elif self.load.rate_hz is not None:
            self._wait_for_slot(round(1e9 / self.load.rate_hz))

    def _wait_for_slot(self, period_ns: int) -> None:
        now = self.clock()
        if self._next_ns is None or not -period_ns < self._next_ns - now <= 2 * period_ns:
            # The first call, one so late that its frame is gone, or a clock that was set back:
            # slots begin anew.
            self.late += self._next_ns is not None and now > self._next_ns
            self._next_ns = now
        elif now <= self._next_ns:
            self.sleep((self._next_ns - now) / 1e9)
        else:
            self.late += 1
        self._next_ns += period_ns


class _Sampler:
    def __init__(
        self,
        subjects: Mapping[str, Callable[[], object]],
        settings: TimerSettings,
        pacer: Pacer,
        known: Mapping[str, Taken],
        keep: Keep | None,
        look: Callable[[], State] | None,
    ) -> None:
        self.subjects = dict(subjects)
        self.settings = settings
        self.pacer = pacer
        self.clock = pacer.clock
        self.keep = keep
        self.read_state = look
        self.random = np.random.default_rng(settings.seed)
        self.taken = {name: Taken() for name in subjects}
        for name in known.keys() & subjects.keys():
            self.taken[name].extend(known[name])
        self.looks: list[Look] = []
        self.dropped: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._pending: list[tuple[str, int, int]] = []
        self._fresh: dict[str, Taken] = {}
        self._pauses = 0
        last = (t.starts_ns[-1] + t.durations_ns[-1] for t in self.taken.values() if t.starts_ns)
        self._offset_ns = max(last, default=0)
        self._read_ns = self.clock()
        self._start_ns = self._read_ns - self._offset_ns

    def now_ns(self) -> int:
        """Since the first sample of all; where the clock is set back it goes on from there."""
        now = self.clock()
        self._start_ns -= max(self._read_ns - now, 0)
        self._read_ns = now
        return now - self._start_ns

    @property
    def elapsed_s(self) -> float:
        return (self.now_ns() - self._offset_ns) / 1e9

    def round(self, names: list[str]) -> float:
        """A burst of each, in random order; the sum of their medians, in nanoseconds."""
        total = 0.0
        for index in self.random.permutation(len(names)):
            name = names[index]
            if len(names) > 1:
                self.pacer.wait()
                self.subjects[name]()  # pays for the switch
            total += median(self.call(name) for _ in range(self.settings.burst))
        return total

    def call(self, name: str) -> int:
        """Takes one sample; its nanoseconds."""
        self.pacer.wait()
        start = self.now_ns()
        before = self.clock()
        self.subjects[name]()
        duration = self.clock() - before
        if duration < 0:
            self.dropped[name] += 1
            self.reasons[CLOCK_JUMPED] += 1
        else:
            self._pending.append((name, start, duration))
        if self.read_state and self.now_ns() - self._looked_ns >= self.settings.look_s * 1e9:
            self.look()
        return duration

    @property
    def _looked_ns(self) -> int:
        return self.looks[-1].time_ns if self.looks else self._offset_ns

    def look(self) -> None:
        """Decides about the samples since the look before: kept, or dropped."""
        reasons = self._throttled() if self.read_state else ()
        if reasons and not self.settings.keep_throttled:
            self.dropped.update(name for name, _, _ in self._pending)
        else:
            for name, start, duration in self._pending:
                taken = self._fresh.setdefault(name, Taken())
                taken.starts_ns.append(start)
                taken.durations_ns.append(duration)
        self.reasons.update({reason: len(self._pending) for reason in reasons if self._pending})
        self._pending.clear()
        self._pauses = self._pauses + 1 if reasons else 0
        if reasons and not self.settings.keep_throttled:
            self.pacer.sleep(min(0.05 * self._pauses, 0.5))  # time to recover, as nvbench gives

    def _throttled(self) -> tuple[str, ...]:
        assert self.read_state is not None
        state = self.read_state()
        before = self.looks[-1].state if self.looks else state
        reasons = throttled(before, state)
        self.looks.append(Look(self.now_ns(), state, reasons))
        return reasons

    def warm_up(self, progress: Progress) -> bool:
        """Runs all until the rounds have settled; returns whether they did before the time was up."""
        cap_s = self.settings.time_cap_s * self.settings.warmup_share
        names = list(self.subjects)
        rounds = ceil(self.settings.window / len(names) / self.settings.burst)
        medians: list[float] = []
        steady = False
        while not steady and self.elapsed_s < cap_s:
            medians.append(median(self.round(names) for _ in range(rounds)))
            progress("warm up", int(1000 * min(self.elapsed_s / cap_s, 1)), 1000)
            steady = self.elapsed_s >= self.settings.min_warmup_s and self.settled(medians)
        if self.read_state:
            self.look()
        self.looks = self.looks[-1:]
        self._pending.clear()
        self._fresh.clear()
        self.dropped.clear()
        self.reasons.clear()
        self.pacer.late = 0
        return steady

    def settled(self, medians: list[float]) -> bool:
        last = medians[-3:]
        if len(last) < 3 or max(last) > min(last) * (1 + self.settings.steady):
            return False
        recent = medians[-5:]
        slope = float(np.polyfit(range(len(recent)), recent, 1)[0])
        # Three medians that happen to rise are no trend yet.
        return len(recent) < 5 or abs(slope) <= self.settings.trend * min(recent)

    def sample(self, progress: Progress) -> bool:
        """Samples until the stop rule holds for each; returns whether the time was up before that."""
        names = list(self.subjects)
        spent = 0.0
        while spent < 1 and not self.done():
            for _ in range(ceil(self.settings.window / self.settings.burst)):
                self.round(names)
            self.look()
            self._save()
            spent = self.elapsed_s / self.settings.time_cap_s
            fewest = min(len(taken.durations_ns) for taken in self.taken.values())
            share = 0.99 * fewest / self.settings.min_samples
            progress("measure", int(1000 * min(max(spent, share), 1)), 1000)
        progress("measure", 1000, 1000)
        return not self.done()

    def done(self) -> bool:
        return all(map(self.enough, self.subjects))

    def _save(self) -> None:
        for name, taken in self._fresh.items():
            self.taken[name].extend(taken)
        if self.keep and self._fresh:
            self.keep(self._fresh)
        self._fresh = {}

    def enough(self, name: str) -> bool:
        durations = self.taken[name].durations_ns
        number = len(durations)
        if number < self.settings.min_samples:
            return False
        summary = summarize(np.asarray(durations))
        narrow = (summary.high - summary.low) / 2 <= self.settings.precision * summary.median
        return narrow or number >= self.settings.max_samples

    def require_samples(self) -> None:
        for name, taken in self.taken.items():
            if not taken.durations_ns:
                raise DeviceError(
                    f"the device throttled whenever {name} was measured "
                    f"({', '.join(sorted(self.reasons))}; {self.dropped[name]} samples dropped); let "
                    "it cool or choose a lower power mode, or keep such samples with "
                    "--keep-throttled"
                )


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
