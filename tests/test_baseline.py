"""The honest baseline: what individually trained networks do beside the topology of each budget."""

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgestitch.accuracy import Accuracy, accuracy_row
from edgestitch.baseline import SAME, Beside, Individual, honest, individuals
from edgestitch.catalog import require_accuracy, shipped_complexity
from edgestitch.errors import MismatchError
from edgestitch.family import Family
from edgestitch.profile import Profile, Protocol
from edgestitch.recipe import load_family
from edgestitch.schedule import Budget, candidates, plan
from edgestitch.zoo import ANCHORS, Zoo, ZooRow
from tests.strategies import conditions, cost
from tests.strategies import profile as make_profile

PROTOCOL = Protocol(
    precision=0.01,
    min_samples=473,
    time_cap_s=600.0,
    seed=0,
    duration_s=1.0,
    steady=True,
    capped=False,
)


def zoo(networks: dict[str, tuple[float, float]], **changes: object) -> Zoo:
    """A zoo of networks with these median latencies and accuracies; bounds are a tenth higher."""
    rows = tuple(
        ZooRow(
            name=name,
            model=name,
            gmacs=1.0,
            params=1,
            top1=top1,
            cost=cost(name, latency=latency_ms, bound=1.1 * latency_ms),
        )
        for name, (latency_ms, top1) in networks.items()
    )
    plain = Zoo(
        dataset="made up",
        num_classes=4,
        source="somebody",
        timm="1",
        conditions=conditions(),
        protocol=PROTOCOL,
        meter="none",
        energy_reason="none",
        date="2026-01-01",
        rows=rows,
    )
    return msgspec.structs.replace(plain, **changes)


def toy(latencies_ms: list[float], top1s: list[float]) -> tuple[Profile, Accuracy, Family]:
    """Profile, accuracy and family of the toy topologies; medians, bounds a tenth higher."""
    family = load_family("toy")
    names = [t.name for t in family.topologies][: len(latencies_ms)]
    found = [cost(n, latency=v, bound=1.1 * v) for n, v in zip(names, latencies_ms, strict=True)]
    accuracy = Accuracy(
        family=family.name,
        network="made up",
        data="made up",
        num_images=1000,
        rows=tuple(accuracy_row(n, round(10 * v), 1000) for n, v in zip(names, top1s, strict=True)),
    )
    profile = make_profile(found)
    profile = msgspec.structs.replace(profile, family=family.name, network="made up")
    return profile, accuracy, family


def row(budget_ms: float = 10.0, others: dict[str, tuple[float, float]] | None = None) -> Beside:
    """What is beside a topology of 5 ms and 80 %, its anchors left out."""
    profile, accuracy, family = toy([50.0, 60.0, 5.0], [1.0, 2.0, 80.0])
    found = zoo(others or {}, num_classes=family.num_classes)
    (beside,) = honest(profile, accuracy, [Budget(latency_ms=budget_ms)], zoo=found)
    return beside


# --- what stands beside ----------------------------------------------------------------------


def test_the_best_is_the_most_accurate_individual_one_within_the_same_bound():
    found = row(5.6, {"fits": (5.0, 79.0), "bound is over": (5.2, 90.0), "weaker": (1.0, 70.0)})
    assert found.best is not None
    assert found.best.name == "fits"
    assert found.best_points == pytest.approx(1.0)
    assert found.best_ms == pytest.approx(0.0)


def test_the_nearest_is_the_most_accurate_of_those_with_the_same_latency():
    found = row(10, {"weak and equal": (5.0, 60.0), "strong": (5.2, 78.0), "slow": (9.0, 95.0)})
    assert found.nearest is not None
    assert found.nearest.name == "strong"
    assert found.nearest_ms == pytest.approx(-0.2)
    assert found.nearest_points == pytest.approx(2.0)


def test_where_none_takes_the_same_time_the_nearest_by_ratio_is_shown():
    found = row(10, {"half": (2.5, 60.0), "triple": (15.0, 90.0)})
    assert found.nearest is not None
    assert found.nearest.name == "half"


def test_a_topology_that_is_worse_is_called_worse():
    found = row(10, {"rival": (5.0, 82.5)})
    assert found.worse
    assert found.says.startswith("WORSE: 2.50 points below rival")


def test_a_topology_that_is_better_is_called_better():
    found = row(10, {"rival": (5.0, 78.25)})
    assert not found.worse
    assert found.says.startswith("1.75 points better than rival")


def test_an_individual_network_that_fits_where_no_topology_does_is_a_loss():
    found = row(3, {"small": (2.0, 60.0)})
    assert found.ours is None
    assert found.worse
    assert found.says == "WORSE: no topology fits, and small does, with 60.00 %"


def test_more_accuracy_for_more_time_is_no_loss():
    found = row(10, {"slower": (9.5, 90.0)})
    assert found.nearest is not None
    assert found.nearest.name == "slower"
    assert not found.worse
    assert found.says == (
        "no individually trained network fits; 10.00 points below slower, which takes 9.5 ms to our "
        "5 ms"
    )


def test_a_budget_that_nothing_keeps_says_so():
    assert row(0.1, {"small": (2.0, 60.0)}).says == (
        "neither a topology nor an individually trained network fits"
    )


def test_an_energy_budget_admits_none_whose_energy_is_not_known():
    profile, accuracy, _ = toy([50.0, 60.0, 5.0], [1.0, 2.0, 80.0])
    (found,) = honest(profile, accuracy, [Budget(energy_mj=10)])
    assert (found.ours, found.best, found.nearest) == (None, None, None)


def test_few_samples_are_told_of():
    few = msgspec.structs.replace(zoo({"x": (5.0, 79.0)}).rows[0], cost=cost("x", samples=60))
    profile, accuracy, family = toy([50.0, 60.0, 5.0], [1.0, 2.0, 80.0])
    found = individuals(profile, accuracy, zoo=zoo({}, rows=(few,), num_classes=family.num_classes))
    assert "bounded by the largest of 60 samples" in found[-1].source


# --- laws ------------------------------------------------------------------------------------

points = st.tuples(
    st.sampled_from([1.0, 2.0, 2.05, 3.0, 5.0, 8.0]), st.sampled_from([50.0, 60.0, 70.0, 80.0])
)
zoos = st.lists(points, max_size=6).map(
    lambda found: {f"net{index}": point for index, point in enumerate(found)}
)


@given(st.lists(points, min_size=3, max_size=6), zoos, st.floats(0.5, 12))
def test_no_individual_network_that_fits_is_better_than_the_best(ours, others, budget_ms):
    latencies_ms, top1s = (list(column) for column in zip(*ours, strict=True))
    profile, accuracy, family = toy(latencies_ms, top1s)
    found_zoo = zoo(others, num_classes=family.num_classes)
    budget = Budget(latency_ms=budget_ms)
    (found,) = honest(profile, accuracy, [budget], zoo=found_zoo)
    rivals = individuals(profile, accuracy, zoo=found_zoo)
    fitting = [rival for rival in rivals if rival.bound_ms <= budget_ms]
    assert (found.best is None) == (not fitting)
    if found.best:
        assert found.best.top1 == max(rival.top1 for rival in fitting)
    assert ("WORSE" in found.says) or not found.worse


@given(st.lists(points, min_size=3, max_size=6), zoos)
def test_the_nearest_has_the_same_latency_where_any_has(ours, others):
    latencies_ms, top1s = (list(column) for column in zip(*ours, strict=True))
    profile, accuracy, family = toy(latencies_ms, top1s)
    found_zoo = zoo(others, num_classes=family.num_classes)
    (found,) = honest(profile, accuracy, [Budget(latency_ms=20.0)], zoo=found_zoo)
    assume(found.ours is not None)
    assert found.ours is not None
    assert found.nearest is not None
    rivals = individuals(profile, accuracy, zoo=found_zoo)

    def apart(network: Individual) -> float:
        assert found.ours is not None
        return abs(network.latency_ms / found.ours.median_ms - 1)

    same = [rival for rival in rivals if apart(rival) <= SAME]
    if same:
        assert apart(found.nearest) <= SAME
        assert found.nearest.top1 == max(rival.top1 for rival in same)


@given(st.lists(points, min_size=3, max_size=6), zoos)
def test_differences_are_ours_less_theirs(ours, others):
    latencies_ms, top1s = (list(column) for column in zip(*ours, strict=True))
    profile, accuracy, family = toy(latencies_ms, top1s)
    found_zoo = zoo(others, num_classes=family.num_classes)
    budgets = [Budget(latency_ms=value) for value in (1.5, 4.0, 20.0)]
    for found in honest(profile, accuracy, budgets, zoo=found_zoo):
        if found.ours and found.best:
            assert found.best_points == pytest.approx(found.ours.top1 - found.best.top1)
            assert found.best_ms == pytest.approx(found.ours.median_ms - found.best.latency_ms)
        else:
            assert (found.best_points, found.best_ms) == (None, None)


# --- the family's own anchors ----------------------------------------------------------------


def of_family(name: str) -> tuple[Profile, Accuracy]:
    """A made-up profile of a family, a millisecond a GMAC, and the accuracies that ship."""
    family, accuracy = load_family(name), require_accuracy(name)
    complexity = shipped_complexity(family)
    assert complexity is not None
    found = [
        cost(t.name, latency=complexity.gmacs(family, t), bound=complexity.gmacs(family, t))
        for t in family.topologies
    ]
    changed = {"family": family.name, "network": accuracy.network}
    return msgspec.structs.replace(make_profile(found), **changed), accuracy


def test_the_shipped_anchors_stand_with_what_they_were_before_stitching():
    found = individuals(*of_family("fashion-vit"))
    assert [(n.name, n.top1) for n in found] == [
        ("s:0:6 alone", 85.76),
        ("m:0:6 alone", 87.66),
        ("l:0:6 alone", 88.35),
    ]
    assert all(network.alone for network in found)
    assert "as it was trained, before stitching" in found[0].source


@pytest.mark.parametrize("name", ["deit-ti-s-b", "swin-ti-s-b", "resnet18-50", "levit-192-256"])
def test_pretrained_anchors_stand_with_the_published_accuracy_of_their_weights(name):
    published = {peer.name: peer.top1 for peer in ANCHORS.rows}
    found = individuals(*of_family(name))
    models = [anchor.model for anchor in load_family(name).anchors]
    assert [network.top1 for network in found] == [published[model] for model in models]
    assert all(network.alone and "results-imagenet.csv" in network.source for network in found)


def test_the_stitched_deit_is_worse_than_its_smallest_anchor_alone_and_it_is_said():
    profile, accuracy = of_family("deit-ti-s-b")
    (found,) = honest(profile, accuracy, [Budget(latency_ms=1.3)])
    assert found.ours is not None
    assert found.ours.topology == "ti:0:12"
    assert found.best_points == pytest.approx(70.564 - 72.190)
    assert found.says.startswith("WORSE: 1.63 points below ti:0:12 alone")


def test_an_anchor_that_is_not_known_alone_stands_with_what_it_has_inside():
    profile, accuracy, _ = toy([1.0, 2.0], [60.0, 70.0])
    found = individuals(profile, accuracy)
    assert [network.top1 for network in found] == [60.0, 70.0]
    assert not any(network.alone for network in found)
    assert "inside of the stitched network" in found[0].source


def test_what_the_caller_knows_of_an_anchor_alone_counts():
    profile, accuracy, _ = toy([1.0, 2.0], [60.0, 70.0])
    found = individuals(profile, accuracy, alone={"a:0:3": 66.0})
    assert [(network.top1, network.alone) for network in found] == [(66.0, True), (70.0, False)]


def test_a_network_calibrated_anew_does_not_have_the_accuracies_of_the_shipped_one():
    profile, accuracy = of_family("fashion-vit")
    accuracy = msgspec.structs.replace(accuracy, network="another")
    profile = msgspec.structs.replace(profile, network="another")
    assert not any(network.alone for network in individuals(profile, accuracy))


def test_an_anchor_that_was_not_measured_is_left_out():
    profile, accuracy = of_family("fashion-vit")
    profile = msgspec.structs.replace(profile, costs=profile.costs[1:])
    assert [n.name for n in individuals(profile, accuracy)] == ["m:0:6 alone", "l:0:6 alone"]


# --- plans, and what does not belong together ------------------------------------------------


def test_a_plan_gives_its_own_budgets_and_what_is_resident():
    profile, accuracy = of_family("deit-ti-s-b")
    budgets = [Budget(latency_ms=value) for value in (2.0, 6.0)]
    chosen = plan(profile, accuracy, budgets)
    found = honest(profile, accuracy, chosen)
    assert [one.budget for one in found] == budgets
    assert [one.ours and one.ours.topology for one in found] == [c.topology for c in chosen.choices]


def test_a_plan_without_budgets_is_asked_for_what_each_resident_just_keeps():
    profile, accuracy = of_family("fashion-vit")
    chosen = plan(profile, accuracy)
    found = honest(profile, accuracy, chosen)
    assert [one.ours for one in found] == list(chosen.resident)


def test_budgets_alone_are_answered_by_all_topologies():
    profile, accuracy = of_family("fashion-vit")
    pool = {c.topology: c for c in candidates(profile, accuracy)}
    for found in honest(profile, accuracy, [Budget(latency_ms=0.006), Budget(latency_ms=1.0)]):
        assert found.ours is not None
        assert found.ours == pool[found.ours.topology]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "openvino"}, "backend is eager and openvino"),
        ({"precision": "bf16"}, "precision is fp32 and bf16"),
        ({"batch": 8}, "batch is 1 and 8"),
        ({"hardware": "another CPU"}, "hardware is a CPU of 2 cores and another CPU"),
    ],
)
def test_a_zoo_of_other_conditions_is_refused_with_both(changes, message):
    profile, accuracy, family = toy([1.0, 2.0], [60.0, 70.0])
    other = zoo({}, conditions=conditions(**changes), num_classes=family.num_classes)
    with pytest.raises(MismatchError, match=message):
        honest(profile, accuracy, [Budget(latency_ms=5.0)], zoo=other)


def test_a_zoo_of_another_data_set_is_refused():
    profile, accuracy, _ = toy([1.0, 2.0], [60.0, 70.0])
    with pytest.raises(MismatchError, match="number of classes is 4 and 1000"):
        honest(profile, accuracy, [Budget(latency_ms=5.0)], zoo=zoo({}, num_classes=1000))
