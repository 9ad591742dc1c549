"""How long it takes to plan, on the 71 topologies of DeiT with published accuracies."""

import random
from typing import Any

import pytest
from scheduling import Published, pool

from edgestitch.coschedule import Stream, coschedule
from edgestitch.residency import Scenario, keep, memory_of_weights
from edgestitch.schedule import Budget, choose, mixture, pareto_front

FAMILY = "deit-ti-s-b"
SUBJECT = f"{FAMILY}, costs by multiply-adds"
BUDGET = Budget(latency_ms=10, power_w=5, rate_hz=30, idle_w=3)


@pytest.fixture(scope="module")
def published() -> Published:
    return Published(FAMILY)


def test_one_choice(benchmark: Any, described: Any, published: Published) -> None:
    candidates = pool(published)
    described(f"one choice of {len(candidates)}", SUBJECT, "ms")
    benchmark(choose, candidates, BUDGET)


def test_the_front(benchmark: Any, described: Any, published: Published) -> None:
    candidates = pool(published)
    described(f"the front of {len(candidates)}", SUBJECT, "ms")
    benchmark(pareto_front, candidates)


def test_the_best_mix(benchmark: Any, described: Any, published: Published) -> None:
    candidates = pool(published)
    described(f"the best mix of {len(candidates)}", SUBJECT, "ms")
    benchmark(mixture, candidates, BUDGET)


def test_what_to_keep_in_half_of_the_memory(
    benchmark: Any, described: Any, published: Published
) -> None:
    gmacs = published.gmacs
    low, high = min(gmacs.values()), max(gmacs.values())
    bounds = [low + (high - low) * i / 19 for i in range(20)]
    scenarios = [Scenario(admitted=frozenset(n for n in gmacs if gmacs[n] <= b)) for b in bounds]

    def memory(budget_mib: float) -> Any:
        return memory_of_weights(
            published.family, published.complexity, budget_mib=budget_mib, bytes_per_weight=2
        )

    half = memory(memory(1e6).of(gmacs) / 2)
    safety = min(gmacs, key=gmacs.__getitem__)
    described(f"what to keep of {len(gmacs)} in half of the memory", SUBJECT, "ms")
    found = benchmark.pedantic(
        keep, (published.top1, scenarios, half), {"safety": safety}, rounds=3
    )
    assert found.proven


def test_several_networks(benchmark: Any, described: Any, published: Published) -> None:
    draw = random.Random(0)
    streams = [
        Stream(
            name=f"network {i}",
            pool=pool(published),
            period_ms=draw.choice([50.0, 100.0]),
            weight=draw.uniform(0.5, 2),
        )
        for i in range(3)
    ]
    described("topologies for three networks", SUBJECT, "ms")
    benchmark.pedantic(coschedule, (streams,), rounds=5)
