"""Choosing under a budget, Pareto fronts, and plans."""

import itertools
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgestitch.accuracy import Accuracy
from edgestitch.artifact import digest, load, save
from edgestitch.errors import InfeasibleError, MismatchError
from edgestitch.profile import Cost
from edgestitch.schedule import (
    QUANTITIES,
    Budget,
    Candidate,
    Plan,
    candidates,
    choose,
    front_along,
    pareto_front,
    plan,
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
