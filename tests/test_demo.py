"""The main job, end to end, on the shipped network and real images."""

import numpy as np
import pytest

from edgestitch import Budget, InfeasibleError, Runtime, load_accuracy, load_plan, load_profile
from edgestitch.data import preprocess, shipped_images
from edgestitch.default import load_shipped, shipped_deployment
from edgestitch.demo import demonstrate, spread_budgets
from edgestitch.deployment import MANIFEST
from edgestitch.measure import MeasureSettings
from edgestitch.schedule import candidates, choose
from edgestitch.timer import TimerSettings

FEW = MeasureSettings(
    timer=TimerSettings(min_samples=30, precision=1.0, time_cap_s=10.0, min_warmup_s=0.1),
    energy=None,
    compose=False,
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return demonstrate(tmp_path_factory.mktemp("demo"), FEW)


def test_every_stage_leaves_its_artifact(seen):
    folder = seen.report.parent
    assert load_profile(folder / "profile.json") == seen.profile
    assert load_accuracy(folder / "accuracy.json") == seen.accuracy
    assert load_plan(folder / "plan.json") == seen.plan
    assert (folder / "deployment" / MANIFEST).is_file()
    assert seen.report.read_text().lower().startswith("<!doctype html>")


def test_the_profile_has_every_topology_and_no_invented_energy(seen):
    network, _ = load_shipped()
    assert {c.topology for c in seen.profile.costs} == {t.name for t in network.family.topologies}
    assert all(cost.energy_mj is None for cost in seen.profile.costs)
    assert seen.profile.energy_reason


def test_the_budgets_fit_what_was_measured(seen):
    pool = candidates(seen.profile, seen.accuracy)
    budgets = spread_budgets(seen.profile, seen.accuracy)
    tightest = budgets[0].latency_ms
    assert tightest is not None
    picks = [choose(pool, budget).topology for budget in budgets]
    assert picks == [choice.topology for choice in seen.plan.choices]
    assert len(set(picks)) == len(picks) > 1
    with pytest.raises(InfeasibleError):
        choose(pool, Budget(latency_ms=tightest / 3))


def test_the_runtime_follows_the_budget_up_and_down(seen):
    budgets = [row.budget for row in seen.rows]
    assert budgets == budgets[::-1]
    assert all(row.frames == 1000 for row in seen.rows)
    # The same network on the same images: what a budget reaches does not depend on what ran before.
    by_topology: dict[str, float] = {}
    for row in seen.rows:
        assert by_topology.setdefault(row.topology, row.top1) == row.top1


def test_real_accuracy_is_within_its_interval_of_the_evaluated_one(seen):
    # 1,000 of the 10,000 images: four of their standard errors cover every row.
    for row in seen.rows:
        expected = seen.accuracy.by_topology[row.topology].top1
        assert abs(row.top1 - expected) < 4 * np.sqrt(expected * (100 - expected) / 1000)


def test_the_runtime_finds_the_shipped_network_by_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGESTITCH_DEPLOYMENT", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = shipped_deployment(FEW)
    stamp = (made.folder / MANIFEST).stat().st_mtime_ns
    image = preprocess(shipped_images().images[:1])
    with Runtime(budget_ms=1000) as runtime:
        assert runtime(image).shape == (1, 10)
        assert runtime.deployment.folder == made.folder
    assert (made.folder / MANIFEST).stat().st_mtime_ns == stamp  # opened, not made again

    (made.folder / "plan.json").write_text("{}")  # a damaged cache is made anew
    assert shipped_deployment(FEW).folder == made.folder
    assert (made.folder / MANIFEST).stat().st_mtime_ns != stamp
