"""What it costs to switch: the call alone, setting a budget, and the first result afterwards."""

import time
from itertools import cycle, permutations
from typing import Any

import numpy as np

from edgestitch import Runtime

ROUNDS = 60


def test_switching_to_another_topology(
    benchmark: Any, described: Any, runtime: Runtime, subject: str
) -> None:
    pairs = list(permutations(runtime.topologies, 2))
    path = [name for pair in pairs for name in pair]
    described("switch to a topology and to another", subject, "us", per=len(path))

    def through_all_pairs() -> None:
        for name in path:
            runtime.switch(name)

    benchmark(through_all_pairs)


def test_setting_a_budget(benchmark: Any, described: Any, runtime: Runtime, subject: str) -> None:
    bounds = [candidate.latency_ms for candidate in runtime.deployment.plan.resident]
    described("set a budget of latency", subject, "us", per=len(bounds))

    def each_in_turn() -> None:
        for bound in bounds:
            runtime.budget_ms = bound

    benchmark(each_in_turn)


def test_the_first_result_after_a_switch(
    benchmark: Any,
    described: Any,
    runtime: Runtime,
    subject: str,
    frames: list[np.ndarray],
) -> None:
    turns = cycle(permutations(runtime.topologies, 2))
    images = cycle(frames)
    steady: dict[str, list[float]] = {name: [] for name in runtime.topologies}
    first: dict[str, list[float]] = {name: [] for name in runtime.topologies}

    def before_it() -> tuple[tuple[str, np.ndarray], dict[str, Any]]:
        before, after = next(turns)
        image = next(images)
        # The same topology long after a switch to it, in the same round: what it is compared with.
        steady[after].append(_last(runtime, after, image))
        _last(runtime, before, image)
        return (after, image), {}

    def switch_and_run(name: str, image: np.ndarray) -> None:
        start = time.perf_counter()
        runtime.switch(name)
        runtime(image)
        first[name].append(time.perf_counter() - start)

    benchmark.pedantic(switch_and_run, setup=before_it, rounds=ROUNDS)
    ratios = [np.median(first[name]) / np.median(steady[name]) for name in first if first[name]]
    shown = f"{np.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f} by topology"
    described(
        "switch and first result",
        subject,
        "ms",
        values={"first result / steady": (shown, "the same topology, four calls later")},
    )


def _last(runtime: Runtime, name: str, image: np.ndarray) -> float:
    runtime.switch(name)
    for _ in range(4):
        start = time.perf_counter()
        runtime(image)
        took = time.perf_counter() - start
    return took
