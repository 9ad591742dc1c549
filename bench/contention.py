"""Are deadlines kept when something else begins to use the machine?

A camera at a fixed rate, real networks, real inferences: in the middle third of a course other
processes use every core, or the memory. See README.md for definitions.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import pages
from control import SOON, Alert, DynamicOfa, Fixed, Rule, Table
from subjects import chosen, family_of, network_of, random_frames

from edgestitch import Accuracy, Runtime, __version__
from edgestitch.catalog import shipped_accuracy
from edgestitch.deploy import compile_deployment
from edgestitch.deployment import Deployment
from edgestitch.device import detect
from edgestitch.instruments import find_instruments
from edgestitch.measure import MeasureSettings
from edgestitch.network import StitchNetwork
from edgestitch.schedule import Candidate, Plan, staircase
from edgestitch.testing import toy_images, toy_network
from edgestitch.timer import TimerSettings

NETWORKS = {"fashion-vit": (), "deit-ti-s-b": ("ti", "s")}
"""And the anchors of each; none: all."""
TOPOLOGIES = 8
ROOM = 1.1
"""The deadline over the 99th percentile of the most accurate topology on the quiet machine."""
RATE_HZ = 30.0
SHARE = 0.8
"""Of a period that all rules together may have, at their deadlines; else the period is longer."""
CALM = 5
"""Frames in a row that are in time once misses have stopped."""

READY = "print('ready', flush=True)"
CO_RUNNERS = {
    "busy": f"{READY}\nwhile True: pass",
    "memory": (
        f"import numpy; a = numpy.zeros(1 << 24); b = numpy.ones(1 << 24); {READY}\n"
        "while True: a[:] = b; b[:] = a"
    ),
}
"""What runs beside: one computes, the other copies 128 MiB to and fro."""
PARTS = ("before", "during", "after")


@dataclass(frozen=True)
class Settings:
    frames: int
    """Of each third of a course."""
    courses: int
    samples: int
    co_runners: int


# --- what runs beside --------------------------------------------------------------------------


class CoRunners:
    """Processes that wait until they are let go."""

    def __init__(self, code: str, number: int) -> None:
        told = [sys.executable, "-c", code]
        self._processes = [
            subprocess.Popen(told, stdout=subprocess.PIPE, text=True) for _ in range(number)
        ]
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.readline()
        self.stop()

    def go(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@contextmanager
def beside(kind: str, number: int) -> Iterator[CoRunners]:
    found = CoRunners(CO_RUNNERS[kind], number)
    try:
        yield found
    finally:
        found.close()


# --- networks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A deployed network."""

    name: str
    weights: str
    deployment: Deployment
    table: Table


def subject(name: str, folder: Path, samples: int) -> Subject:
    """Compiled by the first backend that works here, and measured; worth what is known of it."""
    if name == "toy":
        network, accuracy, weights = toy_network(), None, "random"
    else:
        family = family_of(name, NETWORKS.get(name, ()))
        network, accuracy = network_of(family), shipped_accuracy(family_of(name))
        trained = accuracy is not None and accuracy.origin == "measured"
        weights = "trained" if trained else "random"
    if accuracy is None:
        from edgestitch.evaluate import evaluate

        accuracy = evaluate(network, toy_images(64))
    deployment = deployed(network, accuracy, folder / name, samples)
    bounds, steps = staircase(deployment.plan.resident)
    medians = np.array([step.median_ms for step in steps])
    return Subject(
        name, weights, deployment, Table(steps, bounds, medians, np.array([s.top1 for s in steps]))
    )


def deployed(network: StitchNetwork, accuracy: Accuracy, out: Path, samples: int) -> Deployment:
    names = chosen(network.family, TOPOLOGIES)
    # Costs that only say the order: what is deployed is measured when it is.
    resident = tuple(
        Candidate(
            topology=name,
            top1=accuracy.by_topology[name].top1,
            median_ms=place + 1.0,
            latency_ms=place + 1.0,
        )
        for place, name in enumerate(names)
    )
    plan = Plan(
        family=network.family.name,
        network=network.digest,
        profile="none",
        accuracy="none",
        resident=resident,
        choices=(),
    )
    timer = TimerSettings(min_samples=samples, max_samples=samples, time_cap_s=60)
    return compile_deployment(
        network,
        plan,
        accuracy,
        out,
        find_instruments(detect(), energy=False),
        MeasureSettings(timer=timer, energy=None, compose=False),
    )


# --- rules -------------------------------------------------------------------------------------


class Player(Protocol):
    """One rule at work on real inferences."""

    def frame(self, image: np.ndarray) -> tuple[int, float]:
        """The step that ran, and the milliseconds of the call."""


class Own:
    """`Runtime` as it is."""

    def __init__(self, subject: Subject, deadline_ms: float, stack: ExitStack) -> None:
        self._runtime = stack.enter_context(Runtime(subject.deployment, budget_ms=deadline_ms))
        self._levels = {step.topology: n for n, step in enumerate(subject.table.steps)}

    def frame(self, image: np.ndarray) -> tuple[int, float]:
        result = self._runtime.infer(image)
        return self._levels[result.topology], result.latency_ms


class Pinned:
    """Another's rule, which pins what a runtime runs that follows nothing by itself."""

    def __init__(self, subject: Subject, deadline_ms: float, rule: Rule, runtime: Runtime) -> None:
        self._rule, self._runtime, self._deadline_ms = rule, runtime, deadline_ms
        self._names = [step.topology for step in subject.table.steps]

    def frame(self, image: np.ndarray) -> tuple[int, float]:
        level = self._rule.decide(self._deadline_ms)
        self._runtime.switch(self._names[level])
        latency_ms = self._runtime.infer(image).latency_ms
        self._rule.observe(level, latency_ms, self._deadline_ms)
        return level, latency_ms


@contextmanager
def players(subject: Subject, deadline_ms: float) -> Iterator[dict[str, Player]]:
    """Each rule anew; the others share one runtime, and edgestitch is there twice."""
    table = subject.table
    rules: dict[str, Rule] = {
        "fixed": Fixed(max(bisect_right(table.bounds_ms, deadline_ms) - 1, 0)),
        "Dynamic-OFA": DynamicOfa(table, deadline_ms),
        "ALERT": Alert(table),
    }
    with ExitStack() as stack:
        plain = stack.enter_context(
            Runtime(subject.deployment, budget_ms=deadline_ms, miss_rate=None)
        )
        found: dict[str, Player] = {
            name: Pinned(subject, deadline_ms, rule, plain) for name, rule in rules.items()
        }
        for name in ("edgestitch", "edgestitch, again"):
            found[name] = Own(subject, deadline_ms, stack)
        yield found


# --- courses -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Played:
    """What a rule ran in each frame of a course."""

    levels: np.ndarray
    latencies_ms: np.ndarray
    deadline_ms: float

    @property
    def late(self) -> np.ndarray:
        found: np.ndarray = self.latencies_ms > self.deadline_ms
        return found

    @property
    def part(self) -> int:
        """Frames of each of the three parts."""
        return len(self.late) // 3

    def of(self, part: int) -> slice:
        return slice(part * self.part, (part + 1) * self.part)

    def calm(self) -> int | None:
        """After how many frames of the co-runner misses stop; `None`: never."""
        late = self.late[self.of(1)]
        found = [n for n in range(len(late) - CALM + 1) if not late[n : n + CALM].any()]
        return found[0] if found else None

    def back(self) -> int | None:
        """Frames after the co-runner until what mostly ran before runs again; `None`: never."""
        usual = np.bincount(self.levels[self.of(0)]).argmax()
        found = np.flatnonzero(self.levels[self.of(2)] >= usual)
        return int(found[0]) if len(found) else None


def play(
    subject: Subject,
    kind: str,
    deadline_ms: float,
    period_ms: float,
    settings: Settings,
    seed: int,
) -> dict[str, Played]:
    """One course; in each period every rule has one inference, in random order."""
    images = random_frames(subject.deployment.manifest.family, 16)
    shuffle = random.Random(seed)
    with players(subject, deadline_ms) as rules, beside(kind, settings.co_runners) as others:
        order = list(rules)
        seen: dict[str, list[tuple[int, float]]] = {name: [] for name in order}
        for player in rules.values():
            for image in images:  # what is warm before a camera starts
                player.frame(image)
        frames, start = settings.frames, time.perf_counter()
        for frame in range(3 * frames):
            time.sleep(max(start + frame * period_ms / 1e3 - time.perf_counter(), 0.0))
            if frame == frames:
                others.go()
            if frame == 2 * frames:
                others.stop()
            shuffle.shuffle(order)
            for name in order:
                seen[name].append(rules[name].frame(images[frame % len(images)]))
    return {
        name: Played(
            np.array([level for level, _ in ran]), np.array([ms for _, ms in ran]), deadline_ms
        )
        for name, ran in seen.items()
    }


def quiet_p99_ms(subject: Subject, frames: int) -> float:
    """Of the most accurate topology, at the camera's rate and alone."""
    image = random_frames(subject.deployment.manifest.family, 1)[0]
    found = []
    with Runtime(subject.deployment, miss_rate=None) as runtime:
        runtime.switch(subject.table.steps[-1].topology)
        for _ in range(frames):
            time.sleep(1 / RATE_HZ)
            found.append(runtime.infer(image).latency_ms)
    return float(np.quantile(found[frames // 5 :], 0.99))


# --- page --------------------------------------------------------------------------------------


@dataclass
class Figures:
    """Of one rule with one kind of co-runner, an entry for each course."""

    courses: list[Played] = field(default_factory=list)

    def missed(self, part: int) -> float:
        return 100 * float(np.mean([c.late[c.of(part)].mean() for c in self.courses]))

    def top1(self, part: int, table: Table) -> float:
        return float(np.mean([table.top1[c.levels[c.of(part)]].mean() for c in self.courses]))

    def slower(self) -> float:
        """The median latency beside the co-runner over that before it; of one topology only."""
        during, before = (
            np.median(np.concatenate([c.latencies_ms[c.of(part)] for c in self.courses]))
            for part in (1, 0)
        )
        return float(during / before)


def spread(found: Sequence[int | None]) -> str:
    """Median and longest, where it came to an end in each course."""
    ended = [frames for frames in found if frames is not None]
    if len(ended) < len(found):
        return f"never in {len(found) - len(ended)} of {len(found)}"
    return f"{int(np.median(ended))}, {max(ended)}"


COLUMNS = (
    "rule",
    *(f"missed {part}, %" for part in PARTS),
    "frames until misses stop",
    *(f"top-1 {part}" for part in PARTS),
    "frames until back",
)


def rows(found: Mapping[str, Figures], table: Table) -> list[list[str]]:
    return [
        [
            name,
            *(f"**{figures.missed(part):.1f}**" for part in range(3)),
            spread([c.calm() for c in figures.courses]),
            *(f"{figures.top1(part, table):.2f}" for part in range(3)),
            spread([c.back() for c in figures.courses]),
        ]
        for name, figures in found.items()
    ]


def reading(name: str, kind: str, found: Mapping[str, Figures]) -> str:
    ours, others = found["edgestitch"], {n: f for n, f in found.items() if "edgestitch" not in n}
    soon = sum(n is not None and n <= SOON for n in (c.calm() for c in ours.courses))
    missed = ", ".join(f"{n} {f.missed(1):.1f} %" for n, f in others.items())
    return (
        f"`{name}`, {kind} co-runner ({found['fixed'].slower():.2f} times as slow): edgestitch misses "
        f"{ours.missed(1):.1f} % of the deadlines beside it ({found['edgestitch, again'].missed(1):.1f} % as the "
        f"second entry), {missed}. Misses stop within {SOON} frames in {soon} of {len(ours.courses)} courses. "
        "Frames after it until the topology of before runs again (median, longest): "
        f"{spread([c.back() for c in ours.courses])}."
    )


def measured(
    subject: Subject, settings: Settings
) -> tuple[float, float, dict[str, dict[str, Figures]]]:
    """Deadline, period, and by co-runner and rule the figures; kinds take turns."""
    quiet_ms = quiet_p99_ms(subject, 100)
    deadline_ms = ROOM * max(quiet_ms, subject.table.bounds_ms[-1])
    found: dict[str, dict[str, Figures]] = {kind: {} for kind in CO_RUNNERS}
    with players(subject, deadline_ms) as rules:
        period_ms = max(1e3 / RATE_HZ, len(rules) * deadline_ms / SHARE)
    for seed in range(settings.courses):
        for kind, figures in found.items():
            played = play(subject, kind, deadline_ms, period_ms, settings, seed)
            for rule, course in played.items():
                figures.setdefault(rule, Figures()).courses.append(course)
            print(
                f"{subject.name}, {kind}, course {seed + 1} of {settings.courses}", file=sys.stderr
            )
    return deadline_ms, period_ms, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=list(NETWORKS))
    parser.add_argument("--frames", type=int, default=60, help="Of each third of a course.")
    parser.add_argument("--courses", type=int, default=2, help="With each co-runner.")
    parser.add_argument("--co-runners", type=int, default=1, help="Processes beside.")
    parser.add_argument("--samples", type=int, default=500, help="Of each topology's latency.")
    parser.add_argument(
        "--out", type=Path, help="Where the page goes; by default beside the others."
    )
    given = parser.parse_args()
    settings = Settings(given.frames, given.courses, given.samples, given.co_runners)
    sections: dict[str, list[str]] = {}
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder, pages.observed() as span:
        for name in given.families:
            one = subject(name, Path(folder), settings.samples)
            deadline_ms, period_ms, found = measured(one, settings)
            conditions = one.deployment.manifest.conditions
            for kind, figures in found.items():
                said.append(reading(name, kind, figures))
                sections[f"{name}, {kind} co-runner"] = [
                    f"{conditions.backend} {conditions.precision}, {one.weights} weights, "
                    f"{len(one.table.steps)} steps of {one.table.medians_ms[0]:.2f} to "
                    f"{one.table.medians_ms[-1]:.2f} ms; deadline {deadline_ms:.2f} ms, a frame every "
                    f"{period_ms:.0f} ms, {settings.courses} x 3 x {settings.frames} frames, "
                    f"{settings.co_runners} of the co-runner. One topology takes {figures['fixed'].slower():.2f} times as long beside it.",
                    "",
                    *pages.table(COLUMNS, rows(figures, one.table)),
                ]
    device = detect()
    told = " ".join(given.families)
    text = pages.page(
        "Are deadlines kept when something else begins to use the machine?",
        "Real inferences at a camera's rate; other processes run beside in the middle third of each course.",
        reading=[pages.noise(span.others), *said],
        machine=f"{device.hardware}, {device.memory_mib} MiB.",
        versions={
            **{name: version(name) for name in ("numpy", "openvino", "torch")},
            "edgestitch": __version__,
        },
        command=f"python bench/contention.py --families {told} --frames {given.frames} "
        f"--courses {given.courses} --samples {given.samples} --co-runners {given.co_runners}",
        sections=sections,
        missing=[
            "Accuracy on images: top-1 is the mean of what is known of the topologies that ran, measured for "
            "trained weights, published for random ones.",
            "A GPU, and co-runners on it.",
            "Rules one at a time: in each period all have an inference, one after the other in random order, "
            "so that all see the same; each finds the caches as another topology left them.",
        ],
    )
    path = given.out or pages.result_path("contention", device.hardware)
    path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
