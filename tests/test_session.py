"""A session: images under one budget after the other, and what it says of each."""

import dataclasses

import msgspec
import numpy as np

from edgestitch import Budget, Runtime
from edgestitch.data import toy_images
from edgestitch.report import format_budget, format_ran
from edgestitch.schedule import Choice, mixture
from edgestitch.session import budgets_of, run_session
from edgestitch.testing import fake_deployment

COSTS = {"a:0:3": 1.0, "a:0:1+b:1:3": 2.0, "b:0:3": 4.0}
ENERGIES = {"a:0:3": 5.0, "a:0:1+b:1:3": 20.0, "b:0:3": 80.0}


def test_a_mix_of_the_plan_is_one_row_with_its_shares():
    deployment = fake_deployment(COSTS, energies_mj=ENERGIES)
    budget = Budget(energy_mj=30.0)
    mix = mixture(deployment.plan.resident, budget)
    choice = Choice(budget=budget, topology="a:0:1+b:1:3", mix=mix)
    plan = msgspec.structs.replace(deployment.plan, choices=(choice,))
    assert budgets_of(plan) == (budget,)
    with Runtime(dataclasses.replace(deployment, plan=plan)) as runtime:
        (row,) = run_session(runtime, toy_images(60), budgets_of(plan))
    assert row.topologies == {"a:0:1+b:1:3": 50, "b:0:3": 10}
    assert row.hit_rate is None
    assert format_ran(row.topologies) == "a:0:1+b:1:3 83 %, b:0:3 17 %"
    assert format_budget(row.budget) == "30 mJ"


def test_a_plan_for_whatever_may_come_runs_what_each_resident_just_keeps():
    deployment = fake_deployment(COSTS)
    budgets = budgets_of(deployment.plan)
    with Runtime(deployment, miss_rate=None) as runtime:
        rows = run_session(runtime, toy_images(20), budgets)
    assert [row.topology for row in rows] == list(COSTS)
    assert all(row.hit_rate is not None and 0 <= row.hit_rate <= 1 for row in rows)
    assert [format_budget(row.budget) for row in rows] == ["1.00 ms", "2.00 ms", "4.00 ms"]


def test_a_stand_in_of_a_few_frames_is_not_called_a_mix():
    assert format_ran({"b:0:3": 99, "a:0:3": 1}) == "b:0:3"


def test_labels_count_what_was_right():
    images = toy_images(40)
    always_two = fake_deployment(
        COSTS, run=lambda name, x: np.eye(4, dtype=np.float32)[[2] * len(x)]
    )
    with Runtime(always_two) as runtime:
        (row,) = run_session(runtime, images, [Budget()])
    assert row.top1 == 100 * np.mean(images.labels == 2)
    assert row.top1_low <= row.top1 <= row.top1_high
