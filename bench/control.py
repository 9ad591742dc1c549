"""How well deadlines and an average power are kept while the device changes, beside other rules.

Frames are simulated: what a topology takes is known, what the device does to it is scripted, drawn at
random or recorded here, and every rule sees the same.
"""

import argparse
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from math import erf, exp, log, sqrt
from pathlib import Path
from typing import Protocol

import numpy as np
import pages

from edgestitch import __version__, load_family
from edgestitch.catalog import require_accuracy
from edgestitch.control import Governor, PowerLoop
from edgestitch.device import detect
from edgestitch.schedule import Candidate, staircase
from edgestitch.simulation import CALL, SimulatedDevice

FAMILY = "deit-ti-s-b"
BUDGET_MS = 11.0
TIGHT_MS = 6.5
"""The budget of every other stretch of ten frames where there are two."""
FRAMES = 4000
TARGET = 0.01
NOISE = 0.02
"""Standard deviation of the logarithm of a latency when the profile was made."""
HOST_MS = 0.6
"""Fixed part of every call."""
Z99 = 2.3263
P99 = exp(Z99 * NOISE)
SOON = 3
"""Frames that a step may cost."""
APART = 8
"""Frames; of steps that are closer it cannot be said which of them a late frame is of."""


@dataclass(frozen=True)
class Table:
    """A network's topologies on the simulated device, fastest first."""

    steps: list[Candidate]
    bounds_ms: list[float]
    medians_ms: np.ndarray
    top1: np.ndarray


def table() -> Table:
    family = load_family(FAMILY)
    device = SimulatedDevice(family, costs_ms={CALL: HOST_MS})
    top1 = {row.topology: row.top1 for row in require_accuracy(FAMILY).rows}
    pool = [
        Candidate(
            topology=name,
            top1=top1[name],
            median_ms=device.latency_ms(name),
            latency_ms=device.latency_ms(name) * P99,
            energy_mj=device.energy_mj(name),
            power_w=device.energy_mj(name) / device.latency_ms(name),
        )
        for name in top1
    ]
    bounds, steps = staircase(pool)
    return Table(
        steps,
        bounds,
        np.array([s.median_ms for s in steps]),
        np.array([s.top1 for s in steps]),
    )


# --- what the device does ----------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """Factors on the host's and the device's part of each frame, and on all of it."""

    host: np.ndarray
    device: np.ndarray
    noise: np.ndarray
    q99: np.ndarray
    """What `noise` stays below in 99 % of frames that are like this one."""
    steps: list[int] = field(default_factory=list)
    """Frames from which on the device is suddenly slower."""
    budget_ms: np.ndarray | None = None
    """Of each frame; `None`: always the same."""
    draws: np.ndarray | None = None
    """Of the noise, sorted, from the whole of its distribution; `None`: it is lognormal."""

    @property
    def budgets_ms(self) -> np.ndarray:
        return np.full(len(self.noise), BUDGET_MS) if self.budget_ms is None else self.budget_ms


def lognormal(random: np.random.Generator, frames: int, sigma: float) -> np.ndarray:
    return np.exp(sigma * random.standard_normal(frames))


def steady(random: np.random.Generator, frames: int) -> Course:
    one = np.ones(frames)
    return Course(one, one, lognormal(random, frames, NOISE), np.full(frames, P99))


def clock_steps(random: np.random.Generator, frames: int) -> Course:
    device, steps, at, level = np.ones(frames), [], 0, 1.0
    while at < frames:
        length = int(random.integers(200, 700))
        device[at : at + length] = level
        if at and level > device[at - 1]:
            steps.append(at)
        at += length
        level = float(random.choice([x for x in (1.0, 1.25, 1.6) if x != level]))
    noise = lognormal(random, frames, NOISE)
    return Course(np.ones(frames), device, noise, np.full(frames, P99), steps)


def on_off(
    random: np.random.Generator, frames: int, on: float, off: float
) -> tuple[np.ndarray, list[int]]:
    active, at, state, steps = np.zeros(frames, bool), 0, False, []
    while at < frames:
        length = 1 + int(random.exponential(on if state else off))
        active[at : at + length] = state
        if state:
            steps.append(at)
        at, state = at + length, not state
    return active, steps


def co_runner(random: np.random.Generator, frames: int) -> Course:
    active, steps = on_off(random, frames, 200, 400)
    sigma = np.where(active, 0.05, NOISE)
    noise = np.exp(sigma * random.standard_normal(frames))
    device, host = np.where(active, 1.4, 1.0), np.where(active, 1.6, 1.0)
    return Course(host, device, noise, np.exp(Z99 * sigma), steps)


def busy_co_runner(random: np.random.Generator, frames: int) -> Course:
    active, steps = on_off(random, frames, 30, 60)
    sigma = np.where(active, 0.04, NOISE)
    noise = np.exp(sigma * random.standard_normal(frames))
    device, host = np.where(active, 1.3, 1.0), np.where(active, 1.4, 1.0)
    return Course(host, device, noise, np.exp(Z99 * sigma), steps)


def host_load(random: np.random.Generator, frames: int) -> Course:
    active, steps = on_off(random, frames, 300, 400)
    noise = lognormal(random, frames, NOISE)
    host = np.where(active, 4.0, 1.0)
    return Course(host, np.ones(frames), noise, np.full(frames, P99), steps)


def two_budgets(random: np.random.Generator, frames: int) -> Course:
    under = host_load(random, frames)
    budget = np.where(np.arange(frames) // 10 % 2, TIGHT_MS, BUDGET_MS)
    return Course(under.host, under.device, under.noise, under.q99, under.steps, budget)


def heat_soak(random: np.random.Generator, frames: int) -> Course:
    device = 1 + 0.5 * np.clip((np.arange(frames) - 500) / (0.6 * frames), 0, 1)
    return Course(np.ones(frames), device, lognormal(random, frames, NOISE), np.full(frames, P99))


def mode_change(random: np.random.Generator, frames: int) -> Course:
    at = int(random.integers(frames // 4, frames // 2))
    device = np.where(np.arange(frames) < at, 1.0, 1.8)
    noise = lognormal(random, frames, NOISE)
    return Course(np.ones(frames), device, noise, np.full(frames, P99), [at])


def heavy_tailed(random: np.random.Generator, frames: int) -> np.ndarray:
    """Student's t with three degrees of freedom, and a hiccup every 250 frames."""
    noise = np.exp(0.03 * random.standard_t(3, frames))
    hiccups = random.random(frames) < 0.004
    return np.where(hiccups, noise * random.uniform(1.5, 4, frames), noise)


HEAVY = np.sort(heavy_tailed(np.random.default_rng(0), 1_000_000))


def heavy_tails(random: np.random.Generator, frames: int) -> Course:
    at = frames // 2
    device = np.where(np.arange(frames) < at, 1.0, 1.25)
    noise = heavy_tailed(random, frames)
    q99 = np.full(frames, np.quantile(HEAVY, 0.99))
    return Course(np.ones(frames), device, noise, q99, [at], draws=HEAVY)


def record(frames: int) -> np.ndarray:
    """Times of a product of matrices on this machine, among whatever else runs, over their median."""
    a = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    times = np.empty(frames + 100)
    for n in range(len(times)):
        start = time.perf_counter_ns()
        a @ a @ a
        times[n] = time.perf_counter_ns() - start
    warm = times[100:]
    return warm / np.median(warm)


def recorded(times: np.ndarray) -> Callable[[np.random.Generator, int], Course]:
    """That recording, begun somewhere else by each seed; its running median is what the oracle knows."""
    level = np.array([np.median(times[max(n - 25, 0) : n + 26]) for n in range(len(times))])
    noise = times / level
    q99 = float(np.quantile(noise, 0.99))

    def make(random: np.random.Generator, frames: int) -> Course:
        order = (np.arange(frames) + int(random.integers(len(times)))) % len(times)
        draws = np.sort(noise)
        return Course(level[order], level[order], noise[order], np.full(frames, q99), draws=draws)

    return make


COURSES: dict[str, Callable[[np.random.Generator, int], Course]] = {
    "steady": steady,
    "clock steps": clock_steps,
    "co-runner": co_runner,
    "busy co-runner": busy_co_runner,
    "host load": host_load,
    "host load, two budgets": two_budgets,
    "heat soak": heat_soak,
    "mode change": mode_change,
    "heavy tails": heavy_tails,
}


# --- rules -------------------------------------------------------------------------------------


class Rule(Protocol):
    def decide(self, budget_ms: float) -> int:
        """The step to run."""

    def observe(self, level: int, latency_ms: float, deadline_ms: float) -> None:
        """What it took."""


class Fixed:
    """One topology for ever."""

    def __init__(self, level: int) -> None:
        self.level = level

    def decide(self, budget_ms: float) -> int:
        return self.level

    def observe(self, level: int, latency_ms: float, deadline_ms: float) -> None:
        pass


class DynamicOfa:
    """Dynamic-OFA's runtime manager (Lou et al., CVPRW 2021): seven levels, mean of 20 samples."""

    def __init__(self, table: Table, budget_ms: float) -> None:
        count = len(table.steps)
        self._levels = sorted({round(i * (count - 1) / 6) for i in range(7)})
        self._medians = table.medians_ms
        fits = [i for i, s in enumerate(self._levels) if table.bounds_ms[s] <= budget_ms]
        self._now = max(fits, default=0)
        self._seen: list[float] = []

    def decide(self, budget_ms: float) -> int:
        return self._levels[self._now]

    def observe(self, level: int, latency_ms: float, deadline_ms: float) -> None:
        self._seen.append(latency_ms)
        if len(self._seen) < 20:
            return
        mean, self._seen = sum(self._seen) / 20, []
        if mean > deadline_ms:
            self._now = max(self._now - 1, 0)
        elif self._now + 1 < len(self._levels):
            ratio = self._medians[self._levels[self._now + 1]] / self._medians[level]
            self._now += mean * ratio <= deadline_ms


class Alert:
    """ALERT (Wan et al., ATC 2020), with its constants; `least_q` is the floor of its process noise.

    Without `sure` it maximises the expected accuracy, a miss being worth a guess; with it, the
    accuracy of those that meet the deadline with that probability.
    """

    def __init__(self, table: Table, *, sure: float | None = None, least_q: float = 0.1) -> None:
        self._medians = [float(x) for x in table.medians_ms]
        self._top1 = [float(x) for x in table.top1]
        self._sure, self._least_q = sure, least_q
        self._mean, self._variance, self._gain, self._q = 1.0, 0.1, 0.5, 0.1
        self._error = 0.0

    def decide(self, budget_ms: float) -> int:
        deviation = sqrt(self._variance)
        best, found = 0, -1.0
        for level in range(len(self._medians) - 1, -1, -1):
            z = (budget_ms / self._medians[level] - self._mean) / deviation
            meets = 0.5 * (1 + erf(z / sqrt(2)))
            if self._sure is not None:
                if meets >= self._sure:
                    return level
                continue
            worth = meets * self._top1[level] + (1 - meets) * 0.1
            if worth > found:
                best, found = level, worth
        return best

    def observe(self, level: int, latency_ms: float, deadline_ms: float) -> None:
        error = latency_ms / self._medians[level] - self._mean
        self._q = max(self._least_q, 0.3 * self._q + 0.7 * (self._gain * self._error) ** 2)
        before = (1 - self._gain) * self._variance + self._q
        self._gain = before / (before + 0.001)
        self._mean += self._gain * error
        self._variance = before
        self._error = error


class Ours:
    def __init__(self, table: Table, fixed_ms: float = HOST_MS) -> None:
        self._names = [s.topology for s in table.steps]
        self._levels = {s.topology: i for i, s in enumerate(table.steps)}
        self.bounds_ms = table.bounds_ms
        self.governor = Governor(table.steps, fixed_ms=fixed_ms, target=TARGET)
        self.above = 0

    def decide(self, budget_ms: float) -> int:
        return self._levels[self.governor.decide(budget_ms).candidate.topology]

    def observe(self, level: int, latency_ms: float, deadline_ms: float) -> None:
        governor = self.governor
        expected_ms = governor.slowdown.predict(self.bounds_ms[level]) * governor.slowdown.caution
        self.above += log(latency_ms / expected_ms) > governor.margin.log
        governor.observe(self._names[level], latency_ms, deadline_ms)


class Informed(Ours):
    """Reads the clock before each call; what the device computes scales with it."""

    def __init__(self, table: Table, course: Course) -> None:
        super().__init__(table)
        self._clocks_mhz = iter((1000 / course.device).tolist())

    def decide(self, budget_ms: float) -> int:
        self.governor.clocks({"gpu": 1000.0}, {"gpu": next(self._clocks_mhz)})
        return super().decide(budget_ms)


@dataclass(frozen=True)
class Played:
    levels: np.ndarray
    late: np.ndarray


def play(course: Course, table: Table, rule: Rule) -> Played:
    medians = table.medians_ms.tolist()
    host = (HOST_MS * course.host * course.noise).tolist()
    device = (course.device * course.noise).tolist()
    levels, late = [], []
    for of_host, of_device, budget in zip(host, device, course.budgets_ms.tolist(), strict=True):
        level = rule.decide(budget)
        latency = of_host + (medians[level] - HOST_MS) * of_device
        rule.observe(level, latency, budget)
        levels.append(level)
        late.append(latency > budget)
    return Played(np.array(levels), np.array(late))


def expected_ms(course: Course, table: Table) -> np.ndarray:
    """Of each frame and step, without the noise."""
    host = HOST_MS * course.host[:, None]
    found: np.ndarray = host + (table.medians_ms - HOST_MS) * course.device[:, None]
    return found


def oracle(course: Course, table: Table) -> Played:
    """What knows the factors and the distribution of the noise, but not the noise itself."""
    expected = expected_ms(course, table)
    fits = expected * course.q99[:, None] <= course.budgets_ms[:, None]
    levels = np.where(fits.any(1), fits.shape[1] - 1 - fits[:, ::-1].argmax(1), 0)
    late = expected[np.arange(len(levels)), levels] * course.noise > course.budgets_ms
    return Played(levels, late)


def lateness(course: Course, table: Table) -> np.ndarray:
    """Probability that each step is late in each frame."""
    room = course.budgets_ms[:, None] / expected_ms(course, table)
    if course.draws is not None:
        return 1 - np.searchsorted(course.draws, room) / len(course.draws)
    scale = np.log(course.q99)[:, None] / Z99
    return 0.5 * (1 - np.vectorize(erf)(np.log(room) / scale / sqrt(2)))


def spent(course: Course, table: Table) -> float:
    """Top-1 of an oracle that is late in `TARGET` of all frames, where that is worth the most.

    Nothing above the plan. By Lagrange's multiplier: a miss costs as much in every frame.
    """
    late = lateness(course, table)
    allowed = np.array(table.bounds_ms) <= course.budgets_ms[:, None]
    allowed[:, 0] = True

    def at(price: float) -> tuple[float, float]:
        levels = np.where(allowed, table.top1 - price * late, -np.inf).argmax(1)
        share = late[np.arange(len(levels)), levels].mean()
        return float(share), float(table.top1[levels].mean())

    low, high = 1e-3, 1e5
    if at(low)[0] <= TARGET:
        return at(low)[1]
    for _ in range(50):
        middle = sqrt(low * high)
        low, high = (middle, high) if at(middle)[0] > TARGET else (low, middle)
    return float(np.interp(TARGET, *zip(at(high), at(low), strict=True)))


@dataclass(frozen=True)
class Recovery:
    """Of a step."""

    frames: int
    """After how many five in a row were in time."""
    by_noise: bool
    """Whether every late frame after the third was one whose noise 99 % of frames stay below."""


def recoveries(course: Course, played: Played) -> list[Recovery]:
    """Of each step that no other one follows within `APART` frames."""
    found = []
    for step, after in pairwise([*course.steps, len(course.noise)]):
        late = played.late[step : step + 40]
        if len(late) < 40 or after - step < APART:
            continue
        calm = [i for i in range(len(late) - 4) if not late[i : i + 5].any()]
        frames = calm[0] if calm else 40
        again = step + 3 + np.flatnonzero(late[3:frames])
        found.append(Recovery(frames, bool((course.noise[again] > course.q99[again]).all())))
    return found


# --- figures -----------------------------------------------------------------------------------


RULES: dict[str, Callable[[Table], Rule]] = {
    "fixed": lambda t: Fixed(bisect_right(t.bounds_ms, BUDGET_MS) - 1),
    "Dynamic-OFA": lambda t: DynamicOfa(t, BUDGET_MS),
    "ALERT": Alert,
    "ALERT, 99 % sure": lambda t: Alert(t, sure=0.99),
    "ALERT, 99 %, lower floor": lambda t: Alert(t, sure=0.99, least_q=LOWER),
    "edgestitch, one factor": lambda t: Ours(t, 0.0),
    "edgestitch": Ours,
}
LOWER = 1e-4
"""Floor of ALERT's process noise with which it knows noise of 2 % from a change."""
SURE = (0.9, 0.99, 0.999, 0.9999, 0.99999, 1 - 1e-7, 1 - 1e-9)


@dataclass
class Figures:
    """Of one rule in one course, a number for each seed."""

    misses: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    rises: list[float] = field(default_factory=list)
    above: list[float] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)

    def add(self, course: Course, played: Played, table: Table) -> None:
        self.misses.append(100 * float(played.late.mean()))
        self.top1.append(float(table.top1[played.levels].mean()))
        self.rises.append(1000 * float((np.diff(played.levels) > 0).mean()))
        self.recoveries += recoveries(course, played)


def deadlines(table: Table, seeds: int, frames: int) -> dict[str, dict[str, Figures]]:
    """By course, then by rule."""
    found: dict[str, dict[str, Figures]] = {}
    for name, make in COURSES.items():
        of = found[name] = {rule: Figures() for rule in (*RULES, "oracle")}
        for seed in range(seeds):
            course = make(np.random.default_rng(seed), frames)
            for rule, build in RULES.items():
                made = build(table)
                of[rule].add(course, play(course, table, made), table)
                if isinstance(made, Ours):
                    of[rule].above.append(100 * made.above / frames)
            if name == "clock steps":
                informed = of.setdefault("edgestitch, clocks read", Figures())
                informed.add(course, play(course, table, Informed(table, course)), table)
            of["oracle"].add(course, oracle(course, table), table)
    return found


def gained(table: Table, course: str, seeds: int, frames: int) -> float:
    """Points that using up the allowed misses is worth to the oracle."""
    points = []
    for seed in range(seeds):
        drawn = COURSES[course](np.random.default_rng(seed), frames)
        points.append(spent(drawn, table) - table.top1[oracle(drawn, table).levels].mean())
    return float(np.mean(points))


def at_equal_misses(table: Table, ours: Figures, course: str, seeds: int, frames: int) -> str:
    """ALERT's accuracy where its threshold is such that it misses as many as ours, less ours."""
    make, points = COURSES[course], []
    for sure in SURE:
        figures = Figures()
        for seed in range(seeds):
            drawn = make(np.random.default_rng(seed), frames)
            played = play(drawn, table, Alert(table, sure=sure, least_q=LOWER))
            figures.add(drawn, played, table)
        points.append((float(np.mean(figures.misses)), float(np.mean(figures.top1))))
    points.sort()
    misses, top1 = np.mean(ours.misses[:seeds]), np.mean(ours.top1[:seeds])
    if misses < points[0][0]:
        return f"never as few: {points[0][0]:.2f} % at least, {points[0][1] - top1:+.2f}"
    return f"{np.interp(misses, *np.transpose(points)) - top1:+.2f}"


@dataclass(frozen=True)
class Powered:
    mean_w: float
    top1: float
    stalled: str


def power_run(
    pool: list[Candidate], off: float, budget_w: float, seed: int, *, freezes: bool, closed: bool
) -> Powered:
    """60 s of a camera at 30 Hz on a device that uses `1 + off` of what the profile says."""
    family = load_family(FAMILY)
    plain = SimulatedDevice(family, costs_ms={CALL: HOST_MS})
    more = {name: (1 + off) * energy for name, energy in plain.energies_mj.items()}
    device = SimulatedDevice(
        family, costs_ms={CALL: HOST_MS}, energies_mj=more, noise=NOISE, seed=seed
    )
    gauge = device.gauge(noise_w=0.3, phase=seed % 10 / 10)
    period_ms = 1000 / 30
    loop = PowerLoop(pool, budget_w, period_ms=period_ms, idle_w=device.idle_w)
    top1, frame, read, value, stalled = [], 0, 0.0, 0.0, ""
    while device.seconds < 60:
        step = loop.decide()
        device.call(step.topology)
        top1.append(step.top1)
        frame += 1
        left_s = frame * period_ms / 1000 - device.seconds
        device.sleep(max(left_s, 0.0))
        if closed and device.seconds - read >= 0.1:
            read = device.seconds
            if not (freezes and 20 <= read < 40):
                value = float(gauge.values(np.array([device.clock()]))[0])
            loop.reading(read, value)
            stalled = loop.state if freezes and 35 < read < 36 else stalled
    used_mj = float(device.used_mj(np.array([device.clock()]))[0])
    return Powered(used_mj / device.seconds / 1000, float(np.mean(top1)), stalled)


def powers(table: Table, seeds: int) -> list[list[str]]:
    rows = []
    for name, low, high, closed, freezes in (
        ("profile right", 0.0, 0.0, True, False),
        ("profile off by up to 15 %", -0.15, 0.15, True, False),
        ("the same, open loop", -0.15, 0.15, False, False),
        ("the same, closed, meter freezes from 20 s to 40 s", -0.15, 0.15, True, True),
    ):
        errors, states = [], set()
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            budget_w = float(random.uniform(8.0, 10.0))
            off = float(random.uniform(low, high))
            run = power_run(table.steps, off, budget_w, seed, freezes=freezes, closed=closed)
            errors.append(100 * (run.mean_w / budget_w - 1))
            states.add(run.stalled)
        said = ", ".join(sorted(states - {""})) or "-"
        sizes = np.abs(errors)
        rows.append(
            [
                name,
                f"{np.mean(errors):+.2f}",
                f"**{np.max(sizes):.2f}**",
                f"{np.median(sizes):.2f}",
                said,
            ]
        )
    return rows


def decision_times(table: Table, frames: int = 50_000) -> dict[str, list[float]]:
    """Microseconds of each call, the clock's own time taken off."""
    course = co_runner(np.random.default_rng(0), frames)
    governor = Governor(table.steps, fixed_ms=HOST_MS)
    clock = time.perf_counter_ns
    empty = float(np.median([-(clock() - clock()) for _ in range(10_000)]))
    spans: dict[str, list[float]] = {"decide": [], "observe": []}
    for host, device, noise in zip(course.host, course.device, course.noise, strict=True):
        start = clock()
        decision = governor.decide(BUDGET_MS)
        spans["decide"].append(clock() - start - empty)
        of_host = HOST_MS * float(host)
        latency = (of_host + (decision.candidate.median_ms - HOST_MS) * float(device)) * float(
            noise
        )
        name = decision.candidate.topology
        start = clock()
        governor.observe(name, latency, BUDGET_MS)
        spans["observe"].append(clock() - start - empty)
    return {name: [x / 1000 for x in values] for name, values in spans.items()}


# --- page --------------------------------------------------------------------------------------


def row(name: str, figures: Figures, best: float) -> list[str]:
    mean, top1 = np.mean(figures.misses), np.mean(figures.top1)
    steps = [recovery.frames for recovery in figures.recoveries]
    recovered = f"{np.mean(np.array(steps) <= SOON):.1%}, {max(steps)}" if steps else "-"
    return [
        name,
        f"**{mean:.2f}**",
        f"{max(figures.misses):.2f}",
        f"{np.mean(figures.above):.2f}" if figures.above else "",
        f"{top1:.2f}",
        f"{top1 - best:+.2f}",
        f"{np.mean(figures.rises):.1f}",
        recovered,
    ]


def reading(
    found: dict[str, dict[str, Figures]], gains: dict[str, float], times: dict[str, list[float]]
) -> list[str]:
    recorded = found["recorded"]
    found = {name: of for name, of in found.items() if name != "recorded"}
    ours = {name: of["edgestitch"] for name, of in found.items()}
    misses = {name: float(np.mean(f.misses)) for name, f in ours.items()}
    below = {
        name: float(np.mean(of["oracle"].top1) - np.mean(of["edgestitch"].top1))
        for name, of in found.items()
    }
    kept = sum(share <= 100 * TARGET for share in misses.values())
    most, worst = max(misses, key=misses.__getitem__), max(below, key=below.__getitem__)
    second = sorted(below.values())[-2]
    richest = max(gains, key=gains.__getitem__)
    near = (
        ", ".join(f"{n} {x:.2f} %" for n, x in misses.items() if x > 100 * TARGET - 0.3) or "none"
    )
    recovered = [r for f in ours.values() for r in f.recoveries]
    late = {n: [r for r in f.recoveries if r.frames > SOON] for n, f in ours.items()}
    noisy = sum(r.by_noise for of in late.values() for r in of)
    others = ", ".join(
        f"{sum(not r.by_noise for r in of)} in {n}"
        for n, of in late.items()
        if not all(r.by_noise for r in of)
    )
    oracles = sum(r.frames > SOON for of in found.values() for r in of["oracle"].recoveries)
    decide = np.quantile(times["decide"], 0.99)
    observe = np.quantile(times["observe"], 0.99)
    return [
        f"Of a target of {TARGET:.0%} missed deadlines {min(misses.values()):.2f} % to {misses[most]:.2f} % "
        f"({most}) are missed in {len(found)} scripted courses, in {kept} of them no more than the target. It "
        "is a bound, which the margin keeps in the long run: where the margin is what chooses, the figures "
        f"come near it ({near}). Elsewhere fewer are missed: at the plan's own choice, and where the steps of "
        "the staircase are further apart than the noise is wide, by the oracle as well. To miss as many as "
        f"are allowed would be worth {min(gains.values()):.2f} to {gains[richest]:.2f} points ({richest}) to "
        "an oracle that knows how probable each miss is.",
        f"In what was recorded here, among others, {np.mean(recorded['edgestitch'].misses):.2f} % are "
        f"missed, by the oracle {np.mean(recorded['oracle'].misses):.2f} %.",
        f"Top-1 is {below[worst]:.2f} points below the oracle's at most ({worst}), then {second:.2f}.",
        f"{sum(r.frames <= SOON for r in recovered)} of {len(recovered)} steps are over within {SOON} frames "
        f"(median {int(np.median([r.frames for r in recovered]))}). Of the others {noisy} are late again "
        "through noise alone, of the kind that one frame in a hundred has whatever came before it; the oracle, "
        f"which knows each step beforehand, has {oracles} of these. The rest: {others or 'none'}.",
        f"A decision takes {decide:.2f} us at the 99th percentile, taking in a latency {observe:.2f} us.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    steps = table()
    with pages.observed() as span:
        times = record(options.frames // 2)
        COURSES["recorded"] = recorded(times)
        hopeless = 100 * float(np.mean(times * steps.medians_ms[0] > BUDGET_MS))
        found = deadlines(steps, options.seeds, options.frames)
        few = max(options.seeds // 5, 1)
        gains = {name: gained(steps, name, few, options.frames) for name in found}
        equal = {
            name: at_equal_misses(steps, of["edgestitch"], name, few, options.frames)
            for name, of in found.items()
        }
        power_rows = powers(steps, few)
        spans = decision_times(steps)
    columns = (
        "rule",
        "missed, %",
        "most of a seed, %",
        "scores above the margin, %",
        "top-1",
        "less the oracle's",
        "rises in 1000 frames",
        "steps over within 3 frames, longest",
    )
    sections: dict[str, list[str]] = {}
    for name, of in found.items():
        best = float(np.mean(of["oracle"].top1))
        sections[f"Deadlines: {name}"] = pages.table(
            columns, [row(rule, figures, best) for rule, figures in of.items()]
        )
    sections["Deadlines: recorded"][:0] = [
        "Times of a product of matrices on this machine while others used it, over their median "
        f"({np.quantile(times, 0.01):.2f} to {np.quantile(times, 0.99):.2f} are 98 % of them, "
        f"{times.max():.1f} the largest), as the factor on all of a call. Each seed begins elsewhere in it.",
        f"{hopeless:.2f} % of the deadlines nothing could have kept, the fastest topology neither.",
        "",
    ]
    sections["What the allowed misses are worth"] = [
        f"An oracle that knows how probable a miss is, and misses {TARGET:.0%} where that gains the most, beside "
        f"the one above, which keeps each deadline with 99 %; neither goes beyond the plan; {few} seeds.",
        "",
        *pages.table(
            (
                "course",
                "missed, %",
                "by the oracle, %",
                "top-1 less the oracle's",
                "worth to the oracle",
            ),
            [
                [
                    name,
                    f"{np.mean(of['edgestitch'].misses):.2f}",
                    f"{np.mean(of['oracle'].misses):.2f}",
                    f"{np.mean(of['edgestitch'].top1) - np.mean(of['oracle'].top1):+.2f}",
                    f"{gains[name]:+.2f}",
                ]
                for name, of in found.items()
            ],
        ),
    ]
    sections["At equal misses"] = [
        "Top-1 of ALERT with the lower floor, its threshold set so that it misses as many as edgestitch "
        f"does, less edgestitch's; {few} seeds. In use nobody knows that threshold beforehand.",
        "",
        *pages.table(("course", "ALERT, points"), [[n, found_] for n, found_ in equal.items()]),
    ]
    sections["Average power over 60 s"] = [
        f"A camera at 30 Hz, budgets of 8 to 10 W, a gauge of 10 Hz with 0.3 W of noise; {few} seeds.",
        "",
        *pages.table(
            ("course", "mean error, %", "largest, %", "median size, %", "state while frozen"),
            power_rows,
        ),
    ]
    sections["Time of a decision"] = pages.table(
        ("call", "median, us", "99th percentile, us", "largest, us"),
        [
            [n, f"{np.median(v):.2f}", f"**{np.quantile(v, 0.99):.2f}**", f"{max(v):.1f}"]
            for n, v in spans.items()
        ],
    )
    hardware = detect().hardware
    text = pages.page(
        "Are deadlines kept when the device slows down?",
        f"{options.seeds} seeds of {options.frames} frames a course, budget {BUDGET_MS:g} ms (where there "
        f"are two, {TIGHT_MS:g} ms every other ten frames), target {TARGET:.0%}. Simulated: the "
        f"{len(steps.steps)} steps of {FAMILY} by published top-1 and the simulated device's costs, noise "
        f"of {NOISE:.0%} in the profile.",
        reading=[
            pages.noise(span.others)
            + " Of the figures only the time of a decision depends on that.",
            *reading(found, {n: x for n, x in gains.items() if n != "recorded"}, spans),
        ],
        machine=f"{hardware}, {detect().memory_mib} MiB; one thread. Others use it as well.",
        versions={"edgestitch": __version__, "numpy": version("numpy")},
        command=f"python bench/control.py --seeds {options.seeds} --frames {options.frames}",
        sections=sections,
        missing=[
            "A device. Latencies, disturbances and energies are simulated; on a device the noise is "
            "another, and calls are not independent.",
            "Dynamic-OFA's and ALERT's own code. Both follow descriptions of their papers: seven levels and the "
            "mean of 20 samples; gain 0.5, R 0.001, Q 0.1 (floor), forgetting 0.3. ALERT's constants could "
            "be checked neither against its text nor its code here; others' reimplementations have the same "
            "floor and forgetting.",
            "What reading a clock costs, and clocks that only part of the work scales with.",
        ],
    )
    path = options.out or pages.result_path("control", hardware)
    path.write_text(text)
    print(path)


if __name__ == "__main__":
    main()
