"""Millijoules of a call: long windows, interleaved, beside the idle device, by two methods.

    idle | window: A A A ... | window: C C C ... | window: B B B ... | ... | mixed: A C C A ... | idle

A window is long against the sensor's own period, and what is counted lies between two ticks of it.
Windows of one topology each give its energy directly. Windows of random mixtures give it again,
from the sum over atoms that explains them: the two know nothing of each other.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .artifact import Value
from .compose import Terms, explained
from .meters import Meter
from .meters.window import energy, mean_power_w
from .profile import EnergyProtocol
from .progress import Progress, silent
from .sensors import State, throttled
from .timer import Clock, Pacer

MANY_FAILURES = 5
"""So many windows in a row that give nothing end the measuring: the meter is gone."""
LOOK_S = 0.5
"""Between two looks at the device in a window: what throttles in the middle of it is seen."""


class EnergySettings(Value, frozen=True, kw_only=True):
    """How long, and how often."""

    window_s: float = 2.0
    """At least; and at least `periods` of the sensor."""
    periods: int = 50
    precision: float = 0.02
    """Half-width of the 95 % interval of a topology's energy, relative."""
    min_windows: int = 2
    max_windows: int = 10
    """For each topology."""
    mixed_windows: int = 12
    """Of random mixtures; 0 leaves the second method out."""
    settle_s: float = 5.0
    """Between work and the measuring of idle power."""
    idle_s: float = 10.0
    time_cap_s: float = 600.0
    seed: int = 0


class Window(Value, frozen=True, kw_only=True):
    """What the meter said while calls were made."""

    calls: dict[str, float]
    """By topology, with parts of those at the edges."""
    energy_mj: float | None
    duration_s: float
    reason: str | None = None
    """Why it cannot be used."""
    mixed: bool = False


@dataclass(frozen=True, kw_only=True)
class Energies:
    """Millijoules of a call, by topology, with the relative half-width of their 95 % interval."""

    energies_mj: Mapping[str, float]
    durations_ms: Mapping[str, float]
    """Mean time of a call in the windows."""
    half_width: float | None
    protocol: EnergyProtocol
    reason: str | None = None
    """Why there are none, or not all."""

    @property
    def idle_w(self) -> float | None:
        """Of the idle device, the mean of before and after."""
        pair = (self.protocol.idle_before_w, self.protocol.idle_after_w)
        known = [watts for watts in pair if watts is not None]
        return float(np.mean(known)) if known else None


@dataclass(kw_only=True)
class Wattmeter:
    """A meter at work: windows of calls, and of idleness."""

    meter: Meter
    calls: Mapping[str, Callable[[], object]]
    settings: EnergySettings
    pacer: Pacer
    look: Callable[[], State] | None = None
    keep_throttled: bool = False
    """Whether windows count in which the device throttled."""
    windows: list[Window] = field(default_factory=list)
    idles_w: list[float | None] = field(default_factory=list)
    keep: Callable[[Window], None] | None = None

    @property
    def clock(self) -> Clock:
        return self.pacer.clock

    @property
    def window_s(self) -> float:
        return max(self.settings.window_s, self.settings.periods * self.meter.period_s)

    def window(self, topologies: Sequence[str], weights: Sequence[float]) -> Window:
        """Calls of topologies, drawn with these weights, for the length of a window."""
        random = np.random.default_rng((self.settings.seed, len(self.windows)))
        order = random.choice(len(topologies), size=4096, p=np.asarray(weights) / np.sum(weights))
        # A sensor that looks a part of its period only must not see the same part of every window.
        self.pacer.sleep(float(random.uniform(0, self.meter.period_s)))
        states = [self.look()] if self.look else []
        looked = self.clock()
        made: list[int] = []
        with self.meter.record() as recording:
            start = self.clock()
            edges = [start]
            # At the start a gauge still shows what was before; and a period at each end, since
            # what is counted is between ticks.
            first = start + round(max(2 * self.meter.period_s, 1.5 * self.meter.lag_s) * 1e9)
            stop = first + round((self.window_s + 2 * self.meter.period_s) * 1e9)
            while edges[-1] < stop:
                made.append(int(order[len(made) % len(order)]))
                self.pacer.wait()
                self.calls[topologies[made[-1]]]()
                edges.append(self.clock())
                if self.look and edges[-1] - looked >= LOOK_S * 1e9:
                    states.append(self.look())
                    looked = edges[-1]
        reading = energy(recording.trace, first, edges[-1])
        if self.look:
            states.append(self.look())
        reasons = sorted({reason for pair in pairwise(states) for reason in throttled(*pair)})
        spoilt = f"throttled: {', '.join(reasons)}" if reasons and not self.keep_throttled else None
        parts = _parts(np.asarray(edges), reading.start_ns, reading.stop_ns)
        counts = dict.fromkeys(topologies, 0.0)
        for index, part in zip(made, parts, strict=True):
            counts[topologies[index]] += float(part)
        whole = reading.reason is None and reading.duration_s >= self.window_s / 2
        short = f"the meter answered for {reading.duration_s:.3g} s of {self.window_s:g} s"
        window = Window(
            calls=counts,
            energy_mj=reading.energy_mj if whole else None,
            duration_s=(reading.stop_ns - reading.start_ns) / 1e9,
            reason=reading.reason or spoilt or (None if whole else short),
            mixed=len(topologies) > 1,
        )
        self.windows.append(window)
        if self.keep:
            self.keep(window)
        if spoilt:
            self.pacer.sleep(self.settings.settle_s)  # time to cool
        return window

    def idle(self) -> None:
        """Notes the mean power while nothing is asked of the device."""
        self.pacer.sleep(self.settings.settle_s)
        with self.meter.record() as recording:
            start = self.clock()
            self.pacer.sleep(max(self.settings.idle_s, 20 * self.meter.period_s))
            stop = self.clock()
        self.idles_w.append(mean_power_w(recording.trace, start, stop))

    @property
    def gone(self) -> str | None:
        """Why the measuring must end, if the last windows gave nothing."""
        last = self.windows[-MANY_FAILURES:]
        if len(last) == MANY_FAILURES and all(window.energy_mj is None for window in last):
            return last[-1].reason
        return None


def measure_energies(
    wattmeter: Wattmeter,
    topologies: Sequence[str],
    *,
    progress: Progress = silent,
) -> str | None:
    """Windows of each topology in rounds of random order, until their energies are known.

    Windows that the wattmeter has already are counted. Returns why it ended early, `None` if it
    did not: the meter is gone, or the time is up.
    """
    settings = wattmeter.settings
    random = np.random.default_rng(settings.seed)
    start = wattmeter.clock()
    while True:
        single = _by_topology(wattmeter.windows)
        counts = {name: len(single.get(name, ())) for name in topologies}
        fewest = min(counts.values())
        if fewest >= settings.min_windows and (
            _half_width(single) <= settings.precision or fewest >= settings.max_windows
        ):
            return None
        due = [name for name in topologies if counts[name] == fewest]
        for index in random.permutation(len(due)):
            if wattmeter.gone:
                return f"the meter {wattmeter.meter.name} stopped: {wattmeter.gone}"
            if (wattmeter.clock() - start) / 1e9 >= settings.time_cap_s:
                return f"the time cap of {settings.time_cap_s:g} s ended the measuring of energy"
            wattmeter.window([due[index]], [1.0])
            done = sum(map(len, _by_topology(wattmeter.windows).values()))
            progress("energy", done, max(done + 1, settings.min_windows * len(topologies)))


def measure_mixed(
    wattmeter: Wattmeter, topologies: Sequence[str], *, progress: Progress = silent
) -> None:
    """Windows of two topologies each, in random shares."""
    if len(topologies) < 2:
        return
    while (number := sum(w.mixed for w in wattmeter.windows)) < wattmeter.settings.mixed_windows:
        if wattmeter.gone:
            return
        random = np.random.default_rng((wattmeter.settings.seed + 1, number))
        share = float(random.uniform(0.2, 0.8))
        pair = [topologies[index] for index in random.choice(len(topologies), 2, replace=False)]
        wattmeter.window(pair, [share, 1 - share])
        progress("energy of mixtures", number + 1, wattmeter.settings.mixed_windows)


def energies(wattmeter: Wattmeter, terms: Terms, reason: str | None = None) -> Energies:
    """What the windows of a wattmeter say, by both methods."""
    single = _by_topology(wattmeter.windows)
    if all(len(windows) < 2 for windows in single.values()):
        single = {}  # their scatter, and so their error, is unknown
    found = {name: float(np.mean([_per_call(w) for w in ws])) for name, ws in single.items()}
    half_width = _half_width(single) if single else None
    mixed = [w for w in wattmeter.windows if w.mixed and _usable(w)]
    # Behind the semicolon a reason has figures of its own.
    discarded = Counter(w.reason.split(";")[0] for w in wattmeter.windows if w.reason)
    if not found:
        reason = "; ".join(
            [
                reason or "too few windows of the meter could be used",
                *(f"{number} windows were discarded, {why}" for why, number in discarded.items()),
            ]
        )
    difference, error = _compare(found, half_width, mixed, terms)
    if error is not None:
        error = max(error, wattmeter.settings.precision)
    return Energies(
        energies_mj=found,
        durations_ms={
            name: float(np.mean([1e3 * w.duration_s / sum(w.calls.values()) for w in ws]))
            for name, ws in single.items()
        },
        half_width=half_width,
        reason=reason,
        protocol=EnergyProtocol(
            scope=wattmeter.meter.scope,
            period_s=wattmeter.meter.period_s,
            window_s=wattmeter.window_s,
            windows=min(map(len, single.values()), default=0),
            discarded=dict(discarded),
            idle_before_w=wattmeter.idles_w[0] if wattmeter.idles_w else None,
            idle_after_w=wattmeter.idles_w[-1] if wattmeter.idles_w else None,
            precision=half_width if half_width is not None else wattmeter.settings.precision,
            mixed=len(mixed),
            mixed_difference=difference,
            mixed_error=error,
        ),
    )


def _compare(
    found: Mapping[str, float],
    half_width: float | None,
    mixed: Sequence[Window],
    terms: Terms,
) -> tuple[float | None, float | None]:
    """Difference of the two methods, relative, and what their errors explain of it.

    Both are root mean squares over the topologies. How far the totals of mixtures scatter is judged
    without the sum over atoms, from what the windows of one topology each say of them; else a sum
    that does not hold would pass for a noisy meter.
    """
    from scipy.stats import t  # a second to import

    known = [name for name in found if name in terms.topologies]
    mixed = [w for w in mixed if w.calls.keys() <= found.keys()]
    if half_width is None or len(mixed) <= terms.rank_of(known):
        return None, None
    counts = [w.calls for w in mixed]
    totals = np.array([w.energy_mj or 0.0 for w in mixed])
    expected = [sum(number * found[name] for name, number in calls.items()) for calls in counts]
    noise = float(np.std(totals / expected, ddof=1)) * t.ppf(0.975, len(mixed) - 1)
    again, errors = explained(terms, counts, totals, known, noise)
    singly = np.array([found[name] for name in known])
    told = np.isfinite(errors)
    if not told.any():
        return None, None
    return (
        _rms((again / singly - 1)[told]),
        _rms(np.hypot(errors / singly, half_width)[told]),
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _by_topology(windows: Sequence[Window]) -> dict[str, list[Window]]:
    """The usable windows of one topology each."""
    single: dict[str, list[Window]] = {}
    for window in windows:
        if not window.mixed and _usable(window):
            single.setdefault(next(iter(window.calls)), []).append(window)
    return single


def _usable(window: Window) -> bool:
    return window.energy_mj is not None and window.reason is None


def _per_call(window: Window) -> float:
    assert window.energy_mj is not None
    return window.energy_mj / sum(window.calls.values())


def _half_width(single: Mapping[str, Sequence[Window]]) -> float:
    """Relative half-width of the 95 % interval of a mean, from the scatter pooled over topologies.

    Two windows of one topology say little of their scatter; those of all together say enough.
    """
    from scipy.stats import t  # a second to import

    squares, freedom = 0.0, 0
    for windows in single.values():
        values = np.array([_per_call(w) for w in windows])
        squares += float(((values / values.mean() - 1) ** 2).sum())
        freedom += len(values) - 1
    if freedom == 0:
        return float("inf")
    fewest = min(len(windows) for windows in single.values())
    return float(t.ppf(0.975, freedom) * np.sqrt(squares / freedom / fewest))


def _parts(edges: np.ndarray, start: int, stop: int) -> np.ndarray:
    """How much of each call, between two edges, lies in a window."""
    inside = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    parts: np.ndarray = np.clip(inside, 0, None) / np.maximum(np.diff(edges), 1)
    return parts
