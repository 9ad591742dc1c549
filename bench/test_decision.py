"""What it costs to decide, for each frame, which topology runs."""

from itertools import cycle
from typing import Any

import numpy as np
import pytest

from edgestitch import Runtime
from edgestitch.control import Governor
from edgestitch.testing import fake_deployment

CALLS = 1000
COSTS_MS = {"a:0:3": 1.0, "a:0:2+b:0:3": 2.0, "a:0:1+b:0:3": 3.0, "b:0:3": 4.0}


def test_deciding_and_learning_from_what_a_call_took(benchmark: Any, described: Any) -> None:
    candidates = fake_deployment(COSTS_MS).plan.resident
    governor = Governor(candidates)
    draw = np.random.default_rng(0)
    budgets = draw.uniform(1.0, 5.0, CALLS).tolist()
    noises = draw.lognormal(0.0, 0.05, CALLS).tolist()
    described("decide, and observe", f"{len(candidates)} topologies", "us", per=CALLS)

    def frames() -> None:
        for budget_ms, noise in zip(budgets, noises, strict=True):
            candidate, _ = governor.decide(budget_ms)
            governor.observe(candidate.topology, candidate.median_ms * noise, budget_ms)

    benchmark(frames)


def test_choosing_from_a_plan(benchmark: Any, described: Any) -> None:
    from edgestitch.schedule import Budget

    plan = fake_deployment(COSTS_MS).plan
    budgets = [Budget(latency_ms=ms) for ms in np.linspace(1.0, 5.0, 100)]
    described("choose from a plan", f"{len(plan.resident)} topologies", "us", per=len(budgets))
    benchmark(lambda: [plan.choose(budget) for budget in budgets])


@pytest.mark.parametrize("miss_rate", [0.01, None], ids=["followed", "not followed"])
def test_a_call_around_a_network_that_computes_nothing(
    benchmark: Any, described: Any, miss_rate: float | None
) -> None:
    budgets = cycle([1.0, 2.5, 3.5, 5.0])
    word = "what calls take is followed" if miss_rate else "nothing is followed"
    described("a call around a network that computes nothing", word, "us", per=100)
    with Runtime(fake_deployment(COSTS_MS), miss_rate=miss_rate) as runtime:
        image = np.zeros(runtime.input_shape, np.float32)

        def frames() -> None:
            for _ in range(100):
                runtime.infer(image, budget_ms=next(budgets))

        benchmark(frames)
