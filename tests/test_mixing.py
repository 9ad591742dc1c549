"""Shares of several topologies that are best in the mean, and the order that keeps them."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestitch import load_family
from edgestitch.catalog import shipped_accuracy, shipped_complexity
from edgestitch.errors import InfeasibleError
from edgestitch.mixing import MeanBound, Mix, Share, best_shares, diffuse, mean

values = st.integers(1, 20).map(float)
points = st.lists(st.tuples(values, values, values), min_size=1, max_size=6)


def named(numbers: Iterable[float]) -> dict[str, float]:
    return {f"t{i}": number for i, number in enumerate(numbers)}


def best_of_pairs(
    worth: Mapping[str, float], costs: Mapping[str, float], bound: float
) -> float | None:
    """The most mean worth of any two, or of one: the definition, for one bound."""
    alone = [worth[name] for name in worth if costs[name] <= bound]
    mixed = []
    for a, b in itertools.permutations(worth, 2):
        if costs[a] <= bound < costs[b]:
            share = (bound - costs[a]) / (costs[b] - costs[a])
            mixed.append((1 - share) * worth[a] + share * worth[b])
    return max([*alone, *mixed], default=None)


# --- shares ----------------------------------------------------------------------------------


@given(points, values)
def test_under_one_bound_no_two_topologies_are_better(points, bound):
    worth, costs = named(p[0] for p in points), named(p[1] for p in points)
    expected = best_of_pairs(worth, costs, bound)
    limit = MeanBound(name="energy_mj", costs=costs, bound=bound)
    if expected is None:
        with pytest.raises(InfeasibleError, match=r"energy_mj: the cheapest, t\d, is .* above"):
            best_shares(worth, [limit])
    else:
        assert mean(best_shares(worth, [limit]), worth) == pytest.approx(expected, abs=1e-6)


@given(points, st.lists(values, max_size=2))
def test_a_mix_keeps_its_bounds_and_has_one_topology_more_than_those_at_most(points, limits):
    worth = named(p[0] for p in points)
    bounds = [
        MeanBound(name=f"cost {i}", costs=named(p[1 + i] for p in points), bound=limit)
        for i, limit in enumerate(limits)
    ]
    try:
        shares = best_shares(worth, bounds)
    except InfeasibleError:
        return
    assert len(shares) <= len(bounds) + 1
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())
    for bound in bounds:
        assert mean(shares, bound.costs) <= bound.bound + 1e-5


def test_bounds_that_exclude_each_other_are_said_to():
    worth, there, back = named([1.0, 2.0]), named([1.0, 9.0]), named([9.0, 1.0])
    bounds = [
        MeanBound(name="energy_mj", costs=there, bound=2.0),
        MeanBound(name="median_ms", costs=back, bound=2.0),
    ]
    with pytest.raises(InfeasibleError, match="each bound alone can be kept, but not all together"):
        best_shares(worth, bounds)


def test_a_cost_that_is_missing_is_named():
    with pytest.raises(ValueError, match="energy_mj lacks 1 costs: t1"):
        best_shares(named([1.0, 2.0]), [MeanBound(name="energy_mj", costs={"t0": 1.0}, bound=2.0)])
    with pytest.raises(ValueError, match="no topologies were given"):
        best_shares({}, [])


def test_on_the_published_deit_family_a_mix_gains_a_point_and_a_half():
    """Pan et al.'s released table, by multiply-adds; nothing is measured on a device."""
    family = load_family("deit-ti-s-b").in_mode("reference")
    accuracy, complexity = shipped_accuracy(family), shipped_complexity(family)
    assert accuracy is not None
    assert complexity is not None
    top1 = {row.topology: row.top1 for row in accuracy.rows}
    gmacs = {name: complexity.gmacs(family, name) for name in top1}
    bound = 2.3798
    shares = best_shares(top1, [MeanBound(name="gmacs", costs=gmacs, bound=bound)])
    single = max(top1[name] for name in top1 if gmacs[name] <= bound)
    assert set(shares) == {"ti:0:12", "ti:0:5+s:5:12"}
    assert mean(shares, top1) - single == pytest.approx(1.50, abs=0.01)


# --- the order -------------------------------------------------------------------------------

weights = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def shares_of(weights: Sequence[int]) -> dict[str, float]:
    return named(weight / sum(weights) for weight in weights)


@given(weights, st.integers(1, 5))
def test_every_prefix_has_its_shares_within_a_dwell(weights, dwell):
    shares = shares_of(weights)
    counts: Counter[str] = Counter()
    for number, name in enumerate(itertools.islice(diffuse(shares, dwell), 400), start=1):
        counts[name] += 1
        assert all(abs(counts[n] - number * share) < dwell + 1e-6 for n, share in shares.items())


@given(st.integers(1, 99))
def test_of_two_topologies_every_prefix_is_within_half_a_frame(percent):
    shares = named([percent / 100, 1 - percent / 100])
    counts: Counter[str] = Counter()
    for number, name in enumerate(itertools.islice(diffuse(shares), 300), start=1):
        counts[name] += 1
        assert abs(counts["t0"] - number * shares["t0"]) <= 0.5 + 1e-9


@given(weights, st.integers(1, 5))
def test_a_topology_keeps_running_for_its_dwell(weights, dwell):
    frames = list(itertools.islice(diffuse(shares_of(weights), dwell), 60 * dwell))
    runs = [len(list(run)) for _, run in itertools.groupby(frames)]
    assert all(run >= dwell for run in runs)


def test_a_mix_tells_the_topology_of_each_frame():
    mix = Mix(
        shares=(Share(topology="a:0:3", share=0.75), Share(topology="b:0:3", share=0.25)),
        top1=70.0,
        means={"energy_mj": 5.0},
        single="a:0:3",
        gain=1.0,
    )
    frames = list(itertools.islice(mix.sequence(), 8))
    assert Counter(frames) == {"a:0:3": 6, "b:0:3": 2}
    assert frames[:4] == frames[4:]


@pytest.mark.parametrize(
    ("shares", "dwell", "message"),
    [
        ([], 1, "shares must be above zero"),
        ([1.5, -0.5], 1, "shares must be above zero"),
        ([0.5, 0.4], 1, "shares must add up to 1, not to 0.9"),
        ([1.0], 0, "must run for 1 frame at least, not for 0"),
    ],
)
def test_shares_that_are_none_are_refused(shares, dwell, message):
    with pytest.raises(ValueError, match=message):
        diffuse(named(shares), dwell)
