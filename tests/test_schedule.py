"""Choosing under a budget, Pareto fronts, and plans."""

import itertools
import re
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgestitch.accuracy import Accuracy, TopologyAccuracy
from edgestitch.artifact import digest, load, save
from edgestitch.errors import InfeasibleError, MismatchError
from edgestitch.profile import Cost, EnergyProtocol, Profile
from edgestitch.residency import Memory
from edgestitch.schedule import (
    QUANTITIES,
    Budget,
    Candidate,
    Doubt,
    Plan,
    candidates,
    choose,
    front_along,
    highest_quantile,
    latency_bound_ms,
    membership,
    mixture,
    pareto_front,
    plan,
    questions,
    staircase,
    with_costs,
)
from tests.strategies import accuracy, bounds, cost, few, measured, pools, profile, tight_budgets

SLOW = Candidate(topology="b:0:3", top1=80.0, median_ms=9.0, latency_ms=10.0, energy_mj=30.0)
FAST = Candidate(topology="a:0:3", top1=60.0, median_ms=1.0, latency_ms=2.0, energy_mj=4.0)


def ranked(candidate: Candidate) -> tuple[float, float, float]:
    return candidate.top1, -candidate.latency_ms, -candidate.median_ms


def choose_or_none(pool: Iterable[Candidate], budget: Budget) -> Candidate | None:
    try:
        return choose(pool, budget)
    except InfeasibleError:
        return None


def dominates(a: Candidate, b: Candidate) -> bool:
    """Whether `a` is as good as `b` in everything, by the definition."""
    return a.top1 >= b.top1 and all(
        getattr(b, name) is None
        or (getattr(a, name) is not None and getattr(a, name) <= getattr(b, name))
        for name in (*QUANTITIES, "median_ms")
    )


# --- choosing --------------------------------------------------------------------------------


@given(pools, tight_budgets)
def test_choosing_agrees_with_trying_each(pool, budget):
    best = None
    for candidate in pool:
        fits = True
        for name, bound in budget.bounds.items():
            known = getattr(candidate, name)
            fits = fits and known is not None and known <= bound
        if fits and (best is None or ranked(candidate) > ranked(best)):
            best = candidate
    assert choose_or_none(pool, budget) == best


@given(pools, tight_budgets, st.sampled_from(sorted(QUANTITIES)), few)
def test_a_larger_budget_never_costs_accuracy(pool, budget, name, more):
    bound = getattr(budget, name)
    larger = msgspec.structs.replace(budget, **{name: None if bound is None else bound + more})
    chosen = choose_or_none(pool, budget)
    if chosen is not None:
        assert choose(pool, larger).top1 >= chosen.top1


@given(pools, tight_budgets)
def test_what_is_chosen_keeps_every_bound(pool, budget):
    chosen = choose_or_none(pool, budget)
    if chosen is not None:
        assert all(getattr(chosen, name) <= bound for name, bound in budget.bounds.items())


@given(pools)
def test_without_a_bound_the_most_accurate_is_chosen(pool):
    assert ranked(choose(pool, Budget())) == max(map(ranked, pool))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            Budget(latency_ms=0.5),
            "no topology fits 0.5 ms: the cheapest, a:0:3, takes 2 ms, 1.5 ms too much$",
        ),
        (
            Budget(energy_mj=3.5),
            "no topology fits 3.5 mJ: the cheapest, a:0:3, takes 4 mJ, 0.5 mJ too much$",
        ),
        (
            Budget(latency_ms=1, energy_mj=1),
            "fits 1 ms, 1 mJ: .* 2 ms, 1 ms too much; .* 4 mJ, 3 mJ too much$",
        ),
        (Budget(power_w=15), "no power_w was measured, so 15 W cannot be judged$"),
    ],
)
def test_an_infeasible_budget_names_the_cheapest_and_by_how_much_it_misses(budget, message):
    with pytest.raises(InfeasibleError, match=message):
        choose([SLOW, FAST], budget)


def test_bounds_that_exclude_each_other_are_said_to():
    frugal = msgspec.structs.replace(SLOW, energy_mj=1.0)
    with pytest.raises(InfeasibleError, match="each bound alone can be met, but not all together"):
        choose([frugal, FAST], Budget(latency_ms=3, energy_mj=3))


# --- budgets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(QUANTITIES))
@pytest.mark.parametrize("value", [0, 0.0, -1, -0.5, float("nan"), float("inf"), float("-inf")])
def test_a_budget_must_be_above_zero_and_finite(name, value):
    with pytest.raises(
        ValueError, match=f"budget {name} must be above zero and finite, not {value}"
    ):
        Budget(**{name: value})


@pytest.mark.parametrize("name", sorted(QUANTITIES))
@pytest.mark.parametrize("value", ["10", True, [10], 10j])
def test_a_budget_must_be_a_number(name, value):
    with pytest.raises(TypeError, match=f"budget {name} must be a number, not "):
        Budget(**{name: value})


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget(), "no bound"),
        (Budget(latency_ms=10), "10 ms"),
        (Budget(latency_ms=2.5, energy_mj=7, power_w=15), "2.5 ms, 7 mJ, 15 W"),
    ],
)
def test_a_budget_reads_as_its_bounds(budget, text):
    assert str(budget) == text


# --- the front -------------------------------------------------------------------------------


@given(pools, tight_budgets)
def test_choosing_from_the_front_loses_nothing(pool, budget):
    chosen = choose_or_none(pool, budget)
    from_front = choose_or_none(pareto_front(pool), budget)
    if chosen is None:
        assert from_front is None
    else:
        assert from_front is not None
        assert ranked(from_front) == ranked(chosen)


@given(pools)
def test_nobody_on_the_front_is_dominated(pool):
    front = pareto_front(pool)
    assert not any(dominates(a, b) for a, b in itertools.permutations(front, 2))


@given(pools)
def test_whoever_is_not_on_the_front_is_dominated_by_one_who_is(pool):
    front = pareto_front(pool)
    assert all(any(dominates(kept, candidate) for kept in front) for candidate in pool)


@given(pools.flatmap(lambda pool: st.tuples(st.just(pool), st.permutations(pool))))
def test_the_front_does_not_depend_on_the_order(orders):
    first, second = map(pareto_front, orders)
    assert sorted(map(str, first)) == sorted(map(str, second))


@given(pools)
def test_the_front_goes_from_fast_to_slow(pool):
    latencies = [candidate.latency_ms for candidate in pareto_front(pool)]
    assert latencies == sorted(latencies)


@given(pools)
def test_the_staircase_rises_in_latency_and_accuracy(pool):
    latencies, steps = staircase(pool)
    assert latencies == sorted(set(latencies)) == [step.latency_ms for step in steps]
    accuracies = [step.top1 for step in steps]
    assert accuracies == sorted(set(accuracies))


# --- profile and accuracy --------------------------------------------------------------------


def test_candidates_have_cost_and_worth():
    joined = candidates(
        profile([cost("a:0:3", latency=2.0, bound=3.0, energy=8.0)]), accuracy({"a:0:3": 61.2})
    )
    expected = Candidate(
        topology="a:0:3", top1=61.2, median_ms=2.0, latency_ms=3.0, energy_mj=8.0, power_w=4.0
    )
    assert joined == (expected,)


def test_candidates_are_the_topologies_that_both_have():
    costs = [cost("a:0:3"), cost("b:0:3")]
    joined = candidates(profile(costs), accuracy({"b:0:3": 70.0, "c:0:3": 75.0}))
    assert [candidate.topology for candidate in joined] == ["b:0:3"]


def test_with_few_samples_the_largest_is_the_deadlines_bound():
    (candidate,) = candidates(
        profile([cost("a:0:3", bound=7.0, samples=10)]), accuracy({"a:0:3": 61.2})
    )
    assert candidate.latency_ms == 7.0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"family": "deit"}, "profile and accuracy do not belong together: family is toy and deit"),
        ({"network": "others"}, "do not belong together: network is weights and others"),
    ],
)
def test_accuracy_of_another_network_is_refused_naming_both(other, message):
    with pytest.raises(MismatchError, match=message):
        plan(profile([cost("a:0:3")]), accuracy({"a:0:3": 61.2}, **other))


def published(top1: dict[str, float], **changes: object) -> Accuracy:
    """The same accuracies as `accuracy`, of weights and images that are not here."""
    return msgspec.structs.replace(
        accuracy(top1), origin="published", source="a paper", network=None, data=None, **changes
    )


def test_published_accuracies_are_joined_with_a_profile_of_any_weights():
    costs, worth = profile([cost("a:0:3")], network="somebody's own"), published({"a:0:3": 61.2})
    made = plan(costs, worth)
    assert (made.network, made.origin) == ("somebody's own", "published")
    assert with_costs(made, costs, worth).origin == "published"
    assert plan(profile([cost("a:0:3")]), accuracy({"a:0:3": 61.2})).origin == "measured"


def test_published_accuracies_of_another_family_are_refused():
    with pytest.raises(MismatchError, match="family is toy and deit"):
        plan(profile([cost("a:0:3")]), published({"a:0:3": 61.2}, family="deit"))


def test_the_front_along_a_cost_is_what_nothing_as_cheap_equals():
    points = [("d", 4.0, 3.0), ("a", 1.0, 1.0), ("b", 2.0, 3.0), ("c", 2.0, 2.0)]
    assert front_along(points) == ["a", "b"]
    assert front_along([]) == []


def test_profile_and_accuracy_of_other_topologies_are_refused():
    message = r"profile \(2 topologies\) and accuracy \(1\) of toy have no topology in common"
    with pytest.raises(MismatchError, match=message):
        plan(profile([cost("a:0:3"), cost("b:0:3")]), accuracy({"c:0:3": 61.2}))


def test_a_profile_predicts_what_it_measured():
    measured_cost = cost("a:0:3", latency=2.0)
    assert profile([measured_cost]).predict("a:0:3") == measured_cost


def test_a_profile_refuses_to_predict_what_it_has_not_measured():
    with pytest.raises(MismatchError, match=r"has not measured b:0:3; it has 1 topologies, a:0:3"):
        profile([cost("a:0:3")]).predict("b:0:3")


# --- plans -----------------------------------------------------------------------------------


# Under a latency alone a plan searches; the other budgets take the way of `choose`.
@given(measured(), st.one_of(st.builds(Budget, latency_ms=bounds), tight_budgets))
def test_a_plan_chooses_as_the_schedule_does(both, budget):
    made = plan(*both)
    expected = choose_or_none(made.resident, budget)
    if expected is None:
        with pytest.raises(InfeasibleError, match="no topology fits"):
            made.choose(budget)
    else:
        assert made.choose(budget) == expected


@given(measured(), tight_budgets)
def test_a_plan_without_budgets_is_as_good_as_everything_measured(both, budget):
    chosen = choose_or_none(candidates(*both), budget)
    if chosen is not None:
        assert ranked(plan(*both).choose(budget)) == ranked(chosen)


@given(measured())
def test_a_plan_without_budgets_keeps_the_front(both):
    made = plan(*both)
    assert made.resident == pareto_front(candidates(*both))
    assert made.choices == ()


@given(measured(), st.lists(tight_budgets, min_size=1, max_size=3))
def test_a_plan_with_budgets_keeps_their_topologies_and_the_fastest(both, budgets):
    costs, worth = both
    pool = candidates(costs, worth)
    assume(all(choose_or_none(pool, budget) for budget in budgets))
    made = plan(costs, worth, budgets)
    assert [choice.budget for choice in made.choices] == budgets
    assert {candidate.topology for candidate in made.resident} == {
        pareto_front(pool)[0].topology,
        *(choice.topology for choice in made.choices),
    }
    for choice in made.choices:
        assert made.choose(choice.budget).topology == choice.topology


def test_no_plan_is_made_for_a_budget_that_nothing_fits():
    costs, worth = profile([cost("a:0:3", bound=2.0)]), accuracy({"a:0:3": 61.2})
    with pytest.raises(InfeasibleError, match="no topology fits 1 ms: the cheapest, a:0:3"):
        plan(costs, worth, [Budget(latency_ms=2), Budget(latency_ms=1)])


@given(measured())
def test_the_safety_topology_is_the_fastest(both):
    made = plan(*both)
    assert made.safety.latency_ms == min(c.latency_ms for c in candidates(*both))


def test_a_plan_takes_one_budget_or_several():
    both = profile([cost("a:0:3")]), accuracy({"a:0:3": 61.2})
    assert plan(*both, Budget(latency_ms=2)) == plan(*both, [Budget(latency_ms=2)])


def test_a_plan_says_what_it_was_made_from():
    both = profile([cost("a:0:3")]), accuracy({"a:0:3": 61.2})
    made = plan(*both)
    assert (made.family, made.network) == ("toy", "weights")
    assert (made.profile, made.accuracy) == tuple(map(digest, both))


def estimated(topology: str, low: float, high: float) -> Cost:
    """A cost from a device's descriptor: the middle of an interval, and nothing else."""
    return msgspec.structs.replace(
        cost(topology, latency=(low + high) / 2),
        latency_low_ms=low,
        latency_high_ms=high,
        p99_ms=None,
        p99_high_ms=None,
        max_ms=None,
        samples=0,
        origin="estimated",
    )


def test_a_plan_from_estimates_says_so_and_holds_deadlines_against_their_upper_ends():
    worth = accuracy({"a:0:3": 61.2, "b:0:3": 70.0})
    made = plan(profile([estimated("a:0:3", 1.0, 4.0), estimated("b:0:3", 2.0, 9.0)]), worth)
    assert made.estimated
    assert [candidate.latency_ms for candidate in made.resident] == [4.0, 9.0]
    assert made.choose(Budget(latency_ms=8)).topology == "a:0:3"
    measured_costs = profile([cost("a:0:3"), cost("b:0:3")])
    assert not with_costs(made, measured_costs, worth).estimated


def test_one_estimate_makes_a_plan_an_estimated_one():
    costs = profile([cost("a:0:3"), estimated("b:0:3", 2.0, 9.0)])
    assert plan(costs, accuracy({"a:0:3": 61.2, "b:0:3": 70.0})).estimated
    assert not plan(profile([cost("a:0:3")]), accuracy({"a:0:3": 61.2})).estimated


def test_a_profile_of_random_weights_goes_with_any_network():
    random_weights = profile([cost("a:0:3")], network=None)
    worth = accuracy({"a:0:3": 61.2}, network="mine")
    made = plan(random_weights, worth)
    assert made.network == "mine"
    assert plan(random_weights, published({"a:0:3": 61.2})).network is None
    assert with_costs(made, profile([cost("a:0:3")], network="mine"), worth).network == "mine"
    with pytest.raises(MismatchError, match=r"plan and profile .*: network is mine and others"):
        with_costs(made, profile([cost("a:0:3")], network="others"), worth)


def test_an_estimated_plan_of_no_network_saves_and_loads_equal(tmp_path):
    costs = profile([estimated("a:0:3", 1.0, 4.0)], network=None)
    made = plan(costs, published({"a:0:3": 61.2}))
    save(made, tmp_path / "plan.json")
    assert load(Plan, tmp_path / "plan.json") == made


# --- quantiles -------------------------------------------------------------------------------


def test_deadlines_are_held_at_the_quantile_that_was_asked_for():
    fast = msgspec.structs.replace(
        cost("a:0:3", latency=1.0, bound=3.0, samples=4000), latency_high_ms=1.2, max_ms=7.0
    )
    for quantile, bound_ms in [(0.5, 1.2), (0.9, 3.0), (0.99, 3.0), (0.999, 7.0)]:
        assert latency_bound_ms(fast, quantile) == bound_ms
    assert latency_bound_ms(fast, 0.9999) is None
    assert highest_quantile(fast) == pytest.approx(0.99908, abs=1e-5)


@given(st.lists(st.floats(1e5, 1e9), min_size=1, max_size=400), st.floats(0.1, 0.98))
def test_samples_bound_a_quantile_by_one_of_them_or_not_at_all(samples_ns, quantile):
    bound_ms = latency_bound_ms(cost("a:0:3"), quantile, samples_ns)
    if bound_ms is not None:
        within = sum(sample <= bound_ms * 1e6 * (1 + 1e-12) for sample in samples_ns)
        assert within >= quantile * len(samples_ns)
    else:
        assert quantile ** len(samples_ns) > 0.024


def test_a_plan_keeps_to_its_quantile_when_it_gets_other_costs():
    worth = accuracy({"a:0:3": 60.0})
    made = plan(profile([cost("a:0:3", samples=5000, bound=2.0)]), worth, quantile=0.999)
    assert made.quantile == 0.999
    assert (
        with_costs(made, profile([cost("a:0:3", samples=4000, bound=4.0)]), worth).quantile == 0.999
    )
    message = r"no latency is known at quantile 0\.999: .* profile with 3688 or more of each"
    with pytest.raises(InfeasibleError, match=message):
        with_costs(made, profile([cost("a:0:3", samples=500)]), worth)


def test_what_is_not_known_at_a_quantile_is_left_out_and_said_to_be():
    costs = profile([cost("a:0:3", samples=5000), cost("b:0:3", samples=500)])
    made = plan(costs, accuracy({"a:0:3": 60.0, "b:0:3": 70.0}), quantile=0.999)
    assert [candidate.topology for candidate in made.resident] == ["a:0:3"]
    assert made.notes == ("1 topologies are left out: no latency at quantile 0.999",)
    two = plan(
        profile([cost("a:0:3", samples=5000), cost("b:0:3", samples=5000)]),
        accuracy({"a:0:3": 60.0, "b:0:3": 70.0}),
        [Budget(latency_ms=2)],
        quantile=0.999,
    )
    with pytest.raises(InfeasibleError, match=r"does not know 1 topologies: b:0:3"):
        with_costs(
            msgspec.structs.replace(two, resident=(*two.resident, *made.resident)),
            costs,
            accuracy({"a:0:3": 60.0, "b:0:3": 70.0}),
        )


@pytest.mark.parametrize("quantile", [0.0, 1.0, 99.0, float("nan")])
def test_a_quantile_is_between_0_and_1(quantile):
    with pytest.raises(ValueError, match=r"a quantile is above 0 and below 1, such as 0\.99"):
        latency_bound_ms(cost("a:0:3"), quantile)


# --- periods, batteries, floors --------------------------------------------------------------

# 10 W for 2 ms, 5 W for 8 ms.
HOT = Candidate(
    topology="hot:0:3", top1=80.0, median_ms=2.0, latency_ms=3.0, energy_mj=20.0, power_w=10.0
)
COOL = Candidate(
    topology="cool:0:3", top1=70.0, median_ms=8.0, latency_ms=9.0, energy_mj=40.0, power_w=5.0
)


def test_at_a_rate_the_idle_device_counts_for_what_an_inference_leaves_of_a_period():
    # 20 mJ in 2 ms, then 98 ms of 1 W.
    assert HOT.frame_mj(rate_hz=10, idle_w=1.0) == pytest.approx(20 + 98)
    budget = Budget(power_w=1.2, rate_hz=10, idle_w=1.0)
    assert HOT.admitted(budget)  # 118 mJ in 100 ms
    assert not COOL.admitted(budget)  # 40 + 92 mJ


def test_a_battery_is_a_budget_of_average_power():
    budget = Budget(battery_wh=5, duration_h=4, rate_hz=10, idle_w=1.0)
    assert budget.battery_w == 1.25
    assert budget.frame_mj == pytest.approx(125)
    assert choose([HOT, COOL], budget) == HOT
    message = (
        r"no topology fits 4 Wh for 4 h, 10 Hz: the cheapest, hot:0:3, takes 1\.18 W at 10 Hz of "
        r"battery, 0\.18 W too much$"
    )
    with pytest.raises(InfeasibleError, match=message):
        choose([HOT, COOL], Budget(battery_wh=4, duration_h=4, rate_hz=10, idle_w=1.0))


def test_an_idle_device_that_takes_too_much_alone_is_said_to():
    with pytest.raises(InfeasibleError, match="the idle device alone takes 2 W, which is 200 mJ a"):
        choose([HOT], Budget(power_w=1.5, rate_hz=10, idle_w=2.0))


def test_an_inference_ends_within_its_period():
    with pytest.raises(InfeasibleError, match=r"takes 2 ms at 1000 Hz, 1 ms too much"):
        choose([HOT, COOL], Budget(rate_hz=1000))
    assert choose([HOT, COOL], Budget(rate_hz=200)) == HOT


def test_bounds_of_periods_need_the_power_of_the_idle_device():
    with pytest.raises(
        ValueError, match=r"needs the power of the idle device: profile with a meter"
    ):
        choose([HOT], Budget(power_w=5, rate_hz=10))


def test_with_an_accuracy_that_is_enough_the_cheapest_is_chosen():
    frugal = msgspec.structs.replace(COOL, topology="frugal:0:3", energy_mj=4.0, power_w=0.5)
    assert choose([HOT, frugal], Budget(min_top1=65)) == HOT
    assert choose([HOT, frugal], Budget(min_top1=65, minimise="energy")) == frugal
    assert choose([HOT, frugal], Budget(min_top1=75, minimise="energy")) == HOT
    message = r"the most accurate, hot:0:3, has 80 %, 5 points too few"
    with pytest.raises(InfeasibleError, match=message):
        choose([HOT, frugal], Budget(min_top1=85))


def test_the_least_energy_is_not_guessed():
    unknown = msgspec.structs.replace(HOT, energy_mj=None, power_w=None)
    with pytest.raises(InfeasibleError, match="no energy_mj was measured, so none is known to be"):
        choose([unknown], Budget(min_top1=65, minimise="energy"))


@given(pools, st.sampled_from([1.0, 1.5, 2.0]), st.sampled_from(["latency", "energy"]))
def test_nothing_that_is_accurate_enough_is_cheaper(pool, floor, least):
    name = "latency_ms" if least == "latency" else "energy_mj"
    enough = [c for c in pool if c.top1 >= floor and getattr(c, name) is not None]
    chosen = choose_or_none(pool, Budget(min_top1=floor, minimise=least))
    if not enough:
        assert chosen is None
    else:
        assert chosen is not None
        assert chosen.top1 >= floor
        assert getattr(chosen, name) == min(getattr(c, name) for c in enough)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"battery_wh": 5}, "give battery_wh and duration_h together"),
        ({"duration_h": 5}, "give battery_wh and duration_h together"),
        ({"min_top1": 101}, "min_top1 is in percent, at most 100, not 101"),
        ({"minimise": "energy"}, "to minimise energy alone gives the cheapest topology"),
        ({"rate_hz": 0}, "budget rate_hz must be above zero"),
        ({"idle_w": -1}, "budget idle_w must be above zero"),
        ({"battery_wh": float("nan"), "duration_h": 1}, "budget battery_wh must be above zero"),
    ],
)
def test_a_budget_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Budget(**fields)


def test_a_budget_of_periods_reads_as_its_bounds():
    budget = Budget(latency_ms=20, battery_wh=5, duration_h=4, rate_hz=10, min_top1=75)
    assert str(budget) == "20 ms, 5 Wh for 4 h, 10 Hz, top-1 of 75 % or more"


def test_a_plan_takes_the_idle_power_from_its_profile():
    costs = metered([cost("a:0:3", latency=2.0, bound=3.0, energy=20.0)])
    made = plan(costs, accuracy({"a:0:3": 60.0}), Budget(power_w=2, rate_hz=10))
    assert made.choices[0].budget.idle_w == 1.5
    assert made.choose(made.choices[0].budget).topology == "a:0:3"


def metered(costs: Iterable[Cost]) -> Profile:
    """A profile of a device that takes 1 W before and 2 W after while it waits."""
    energy = EnergyProtocol(
        scope="board",
        period_s=0.1,
        window_s=2.0,
        windows=3,
        idle_before_w=1.0,
        idle_after_w=2.0,
        precision=0.02,
    )
    return msgspec.structs.replace(profile(costs), energy=energy)


# --- units -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "asked"),
    [
        (Budget(latency_ms=10), ()),
        (Budget(latency_ms=900), ()),
        (
            Budget(latency_ms=10_000),
            "10000 ms is far beyond all .* did you mean 10000 us, which is 10 ms?",
        ),
        (Budget(latency_ms=0.01), "far below all .* did you mean 0.01 s, which is 10 ms?"),
        (Budget(energy_mj=0.02), "did you mean 0.02 J, which is 20 mJ?"),
        (Budget(power_w=15_000), "did you mean 15000 mW, which is 15 W?"),
    ],
)
def test_a_budget_far_from_everything_is_asked_about(budget, asked):
    found = questions([HOT, COOL], budget)
    assert len(found) == (1 if asked else 0)
    assert not asked or re.search(asked.replace("?", r"\?"), found[0])


def test_a_budget_far_below_everything_is_an_error_with_the_question():
    with pytest.raises(
        InfeasibleError, match=r"takes 3 ms, .* too much; 0\.01 ms is far below all"
    ):
        choose([HOT, COOL], Budget(latency_ms=0.01))


def test_a_budget_far_beyond_everything_is_met_and_noted():
    made = plan(profile([cost("a:0:3")]), accuracy({"a:0:3": 60.0}), Budget(latency_ms=1000))
    assert made.choices[0].feasible
    (note,) = made.notes
    assert "did you mean 1000 us, which is 1 ms?" in note


# --- mixes -----------------------------------------------------------------------------------


@given(pools, tight_budgets)
def test_a_mix_is_as_good_as_the_best_single_and_keeps_deadlines_in_every_frame(pool, budget):
    single = choose_or_none(pool, budget)
    try:
        found = mixture(pool, budget)
    except InfeasibleError:
        # Alone it may do without an energy that its power was measured with.
        known = [c for c in pool if c.energy_mj is not None or budget.power_w is None]
        assert choose_or_none(known, budget) is None
        return
    by_name = {c.topology: c for c in pool}
    for share in found.shares:
        assert by_name[share.topology].admitted(Budget(latency_ms=budget.latency_ms))
    assert len(found.shares) <= 1 + len(budget.bounds.keys() - {"latency_ms"})
    if budget.energy_mj is not None:
        assert found.means["energy_mj"] <= budget.energy_mj + 1e-5
    if single is not None and (budget.power_w is None or single.energy_mj is not None):
        assert found.single == single.topology
        assert found.gain == pytest.approx(max(0.0, found.top1 - single.top1), abs=1e-6)


def test_a_mix_keeps_an_average_power_at_a_rate():
    budget = Budget(power_w=1.25, rate_hz=10, idle_w=1.0)
    lean = msgspec.structs.replace(HOT, topology="lean:0:3", top1=60.0, energy_mj=6.0, power_w=3.0)
    rich = msgspec.structs.replace(
        HOT, topology="rich:0:3", top1=90.0, energy_mj=42.0, power_w=21.0
    )
    found = mixture([lean, rich], budget)  # 104 and 140 mJ a frame, of 125
    assert [share.topology for share in found.shares] == ["lean:0:3", "rich:0:3"]
    assert found.shares[1].share == pytest.approx(21 / 36)
    assert found.means["power_w"] == pytest.approx(1.25)
    assert found.single == "lean:0:3"
    assert found.gain == pytest.approx(30 * 21 / 36)


def test_a_mix_may_be_accurate_enough_in_the_mean_and_take_less():
    found = mixture([SLOW, FAST], Budget(min_top1=70, minimise="energy"))
    assert found.single == "b:0:3"
    assert found.means["energy_mj"] == pytest.approx(17)
    assert found.gain == pytest.approx(13)


def test_a_mix_over_time_keeps_an_average_power():
    # Half of the frames is 2 ms of 10 W, half 8 ms of 5 W: in the mean 6 W.
    found = mixture([HOT, COOL], Budget(power_w=6))
    assert [share.share for share in found.shares] == pytest.approx([0.5, 0.5])
    assert found.means["power_w"] == pytest.approx(6)


def test_no_mix_is_made_of_what_misses_a_deadline():
    with pytest.raises(InfeasibleError, match="no mix of topologies fits 1 ms, 5 mJ: the cheapest"):
        mixture([SLOW, FAST], Budget(latency_ms=1, energy_mj=5))


def test_a_plan_with_mixes_keeps_what_they_run(tmp_path):
    costs = profile([cost("a:0:3", energy=4.0), cost("b:0:3", latency=2.0, energy=30.0)])
    worth = accuracy({"a:0:3": 60.0, "b:0:3": 80.0})
    made = plan(costs, worth, Budget(energy_mj=17), mix=True, dwell=3)
    (choice,) = made.choices
    assert choice.topology == "a:0:3"
    assert choice.mix is not None
    assert choice.mix.top1 == pytest.approx(70)
    assert choice.mix.gain == pytest.approx(10)
    assert list(itertools.islice(choice.mix.sequence(), 6)) == ["a:0:3"] * 3 + ["b:0:3"] * 3
    assert {candidate.topology for candidate in made.resident} == {"a:0:3", "b:0:3"}
    save(made, tmp_path / "plan.json")
    assert load(Plan, tmp_path / "plan.json") == made
    dearer = profile([cost("a:0:3", energy=4.0), cost("b:0:3", latency=2.0, energy=56.0)])
    anew = with_costs(made, dearer, worth).choices[0].mix
    assert anew is not None
    assert anew.top1 == pytest.approx(65)
    assert anew.dwell == 3


def test_a_mix_that_gains_nothing_is_none():
    costs = profile([cost("a:0:3", energy=4.0), cost("b:0:3", latency=2.0, energy=30.0)])
    made = plan(costs, accuracy({"a:0:3": 60.0, "b:0:3": 80.0}), Budget(energy_mj=40), mix=True)
    assert (made.choices[0].topology, made.choices[0].mix) == ("b:0:3", None)


# --- memory ----------------------------------------------------------------------------------

THREE = (
    profile([cost("a:0:3", bound=1.0), cost("b:0:3", bound=2.0), cost("c:0:3", bound=3.0)]),
    accuracy({"a:0:3": 60.0, "b:0:3": 70.0, "c:0:3": 72.0}),
)


def room(budget_mib: float) -> Memory:
    return Memory(
        budget_mib=budget_mib,
        chains={"a:0:3": ["a"], "b:0:3": ["b"], "c:0:3": ["c"]},
        sizes_mib={"a": 1.0, "b": 4.0, "c": 6.0},
    )


def test_within_a_memory_what_is_worth_most_over_the_budgets_is_kept(tmp_path):
    budgets = [Budget(latency_ms=2), Budget(latency_ms=3)]
    made = plan(*THREE, budgets, memory=room(7))
    assert [candidate.topology for candidate in made.resident] == ["a:0:3", "b:0:3"]
    assert [choice.topology for choice in made.choices] == ["b:0:3", "b:0:3"]
    assert made.residency is not None
    assert (made.residency.expected_top1, made.residency.memory_mib) == (70.0, 5.0)
    late = plan(*THREE, budgets, memory=room(7), weights=[1, 9])
    assert [candidate.topology for candidate in late.resident] == ["a:0:3", "c:0:3"]
    save(made, tmp_path / "plan.json")
    assert load(Plan, tmp_path / "plan.json") == made


def test_without_budgets_memory_is_kept_for_the_latencies_of_the_front():
    made = plan(*THREE, memory=room(7))
    assert [candidate.topology for candidate in made.resident] == ["a:0:3", "b:0:3"]
    assert made.choices == ()
    assert len(plan(*THREE, memory=room(20)).resident) == 3


def test_a_budget_that_only_what_does_not_fit_would_meet_is_infeasible():
    message = (
        r"1 of 1 budgets are met by nothing that fits in 5 MiB beside a:0:3, the safety topology; "
        r"top-1 of 71 % or more: the most accurate, a:0:3, has 60 %, 11 points too few$"
    )
    with pytest.raises(InfeasibleError, match=message):
        plan(*THREE, Budget(min_top1=71), memory=room(5))


def test_weights_are_one_for_each_budget():
    with pytest.raises(ValueError, match="3 weights for 1 budgets: give one for each"):
        plan(*THREE, Budget(latency_ms=2), memory=room(7), weights=[1, 2, 3])
    with pytest.raises(ValueError, match="give memory with them"):
        plan(*THREE, Budget(latency_ms=2), weights=[1])


# --- doubt -----------------------------------------------------------------------------------


def uncertain(top1: float, half: float, topology: str) -> TopologyAccuracy:
    return TopologyAccuracy(
        topology=topology, top1=top1, low=top1 - half, high=top1 + half, correct=int(10 * top1)
    )


def test_a_choice_between_equals_is_a_toss_up_and_names_the_other():
    worth = msgspec.structs.replace(
        accuracy({}), rows=(uncertain(70.0, 2.5, "a:0:3"), uncertain(70.1, 2.5, "b:0:3"))
    )
    costs = profile([cost("a:0:3", bound=1.0), cost("b:0:3", bound=1.0)])
    doubt = plan(costs, worth, Budget(latency_ms=2)).choices[0].doubt
    assert doubt is not None
    assert doubt.runner_up == "a:0:3"
    # The difference is 0.1 within a standard error of sqrt(2) 2.5 / 1.96.
    assert doubt.sure == pytest.approx(0.522, abs=0.05)
    assert doubt.sure + doubt.runner_up_share == pytest.approx(1)


def test_a_choice_that_no_error_changes_is_sure():
    made = plan(*THREE, Budget(latency_ms=2))
    assert made.choices[0].doubt == Doubt(sure=1.0)


def test_a_topology_that_may_fit_is_a_doubt():
    near = msgspec.structs.replace(cost("b:0:3", bound=2.1), p99_ms=1.9)
    costs = profile([cost("a:0:3", bound=1.0), near])
    made = plan(costs, accuracy({"a:0:3": 60.0, "b:0:3": 70.0}), Budget(latency_ms=2.0))
    doubt = made.choices[0].doubt
    assert made.choices[0].topology == "a:0:3"
    assert doubt is not None
    # 2.0 is 0.98 standard errors above 1.9.
    assert doubt.runner_up == "b:0:3"
    assert doubt.runner_up_share == pytest.approx(0.836, abs=0.04)


@given(measured(), tight_budgets)
def test_without_errors_every_choice_is_sure(both, budget):
    costs, worth = both
    if choose_or_none(candidates(costs, worth), budget) is not None:
        (choice,) = plan(costs, worth, budget).choices
        assert choice.doubt is not None
        assert choice.doubt.sure == 1.0


@given(measured())
def test_without_errors_the_front_is_sure(both):
    front = {(c.top1, c.latency_ms) for c in pareto_front(candidates(*both))}
    sure = {name for name, probability in membership(*both).items() if probability == 1}
    points = {c.topology: (c.top1, c.latency_ms) for c in candidates(*both)}
    assert {points[name] for name in sure} <= front


def test_who_is_on_the_front_is_known_within_the_errors():
    worth = msgspec.structs.replace(
        accuracy({}), rows=(uncertain(60.0, 2.5, "a:0:3"), uncertain(60.0, 2.5, "b:0:3"))
    )
    found = membership(profile([cost("a:0:3", bound=1.0), cost("b:0:3", bound=2.0)]), worth)
    assert found["a:0:3"] == 1.0
    assert found["b:0:3"] == pytest.approx(0.5, abs=0.06)


def test_a_plan_is_checked_against_what_it_was_made_from():
    made = plan(*THREE)
    made.check(*THREE)
    with pytest.raises(MismatchError, match="plan and profile do not belong together"):
        made.check(profile([cost("a:0:3")]), THREE[1])
    with pytest.raises(MismatchError, match="plan and accuracy do not belong together"):
        made.check(THREE[0], accuracy({"a:0:3": 60.0}))
