"""Which topologies stay in a budget of memory, when parts are shared and budgets vary."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestitch import load_family
from edgestitch.catalog import shipped_complexity
from edgestitch.errors import InfeasibleError, MismatchError
from edgestitch.residency import Memory, Scenario, keep, memory_of_weights

NAMES = [f"t{i}" for i in range(6)]
PARTS = [f"p{i}" for i in range(5)]


@dataclass(frozen=True)
class Question:
    top1: dict[str, float]
    scenarios: list[Scenario]
    memory: Memory

    def worth(self, kept: frozenset[str]) -> float:
        """Expected top-1, by the definition."""
        total = sum(scenario.weight for scenario in self.scenarios)
        best = (
            scenario.weight * max((self.top1[n] for n in scenario.admitted & kept), default=0.0)
            for scenario in self.scenarios
        )
        return sum(best) / total


@st.composite
def questions(draw):
    """Small enough to try every set."""
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    some = st.sets(st.sampled_from(PARTS), min_size=1)
    admitted = st.frozensets(st.sampled_from(names))
    return Question(
        top1={name: float(draw(st.integers(50, 60))) for name in names},
        scenarios=draw(
            st.lists(
                st.builds(Scenario, admitted=admitted, weight=st.sampled_from([0.5, 1.0, 2.0])),
                min_size=1,
                max_size=4,
            )
        ),
        memory=Memory(
            budget_mib=float(draw(st.integers(1, 20))),
            chains={name: sorted(draw(some)) for name in names},
            sizes_mib={part: float(draw(st.integers(0, 6))) for part in PARTS},
            topology_mib=draw(st.sampled_from([0.0, 1.0])),
            fixed_mib=draw(st.sampled_from([0.0, 0.5])),
        ),
    )


def every_set(question: Question) -> Iterator[frozenset[str]]:
    """Every set that fits, with the safety topology in it."""
    others = [name for name in question.top1 if name != "t0"]
    for number in range(len(others) + 1):
        for chosen in itertools.combinations(others, number):
            kept = frozenset({"t0", *chosen})
            if question.memory.fits(kept):
                yield kept


@settings(deadline=None)
@given(questions())
def test_nothing_that_fits_is_worth_more(question):
    sets = list(every_set(question))
    if not sets:
        with pytest.raises(InfeasibleError, match="t0, the safety topology, alone takes"):
            keep(question.top1, question.scenarios, question.memory, safety="t0")
        return
    found = keep(question.top1, question.scenarios, question.memory, safety="t0")
    kept = frozenset(found.topologies)
    assert kept in sets
    assert found.expected_top1 == pytest.approx(question.worth(kept))
    assert found.expected_top1 == pytest.approx(max(map(question.worth, sets)), abs=1e-4)
    assert found.proven
    assert found.memory_mib == pytest.approx(question.memory.of(kept))
    assert max(found.greedy_top1, found.front_top1) <= found.expected_top1 + 1e-4
    assert found.unmet == sum(not s.admitted & kept for s in question.scenarios)


def shared() -> Question:
    """Two that share a part are worth more together than the one that is best for its size."""
    return Question(
        top1={"t0": 50.0, "t1": 60.0, "t2": 70.0, "t3": 72.0},
        scenarios=[
            Scenario(admitted=frozenset({"t0", "t1"})),
            Scenario(admitted=frozenset({"t0", "t1", "t2"})),
            Scenario(admitted=frozenset({"t0", "t1", "t2", "t3"})),
        ],
        memory=Memory(
            budget_mib=10.0,
            chains={"t0": ["s"], "t1": ["p", "q"], "t2": ["p", "r"], "t3": ["v"]},
            sizes_mib={"s": 1.0, "p": 7.0, "q": 1.0, "r": 1.0, "v": 6.0},
        ),
    )


def test_what_is_shared_is_counted_once():
    question = shared()
    found = keep(question.top1, question.scenarios, question.memory, safety="t0")
    assert found.topologies == ("t0", "t1", "t2")
    assert found.memory_mib == 10.0
    assert found.expected_top1 == pytest.approx((60 + 70 + 70) / 3)
    assert found.front_top1 < found.expected_top1


def test_with_room_for_all_only_what_is_used_is_kept():
    question = shared()
    roomy = replace(question.memory, budget_mib=math.inf)
    scenarios = [Scenario(admitted=frozenset({"t0", "t1"}))]
    found = keep(question.top1, scenarios, roomy, safety="t0")
    assert (found.topologies, found.proven) == (("t0", "t1"), True)


def test_without_time_the_best_guess_comes_with_a_gap():
    question = shared()
    hurried = replace(question.memory, time_limit_s=0.0)
    found = keep(question.top1, question.scenarios, hurried, safety="t0")
    best = keep(question.top1, question.scenarios, question.memory, safety="t0").expected_top1
    assert not found.proven
    assert found.expected_top1 + found.gap >= best
    assert found.expected_top1 == max(found.greedy_top1, found.front_top1)


def test_a_budget_that_nothing_kept_meets_counts_as_nothing():
    question = shared()
    scenarios = [Scenario(admitted=frozenset({"t0"})), Scenario(admitted=frozenset())]
    found = keep(question.top1, scenarios, question.memory, safety="t0")
    assert (found.expected_top1, found.unmet) == (25.0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"safety": "t9"}, "safety t9 is not among the 4 topologies"),
        ({"scenarios": []}, "the weights of 0 scenarios add up to 0, not above 0"),
        (
            {"scenarios": [Scenario(admitted=frozenset(), weight=-1)]},
            "a weight must be finite and not below zero, not -1",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(change, message):
    question = shared()
    asked = {"scenarios": question.scenarios, "safety": "t0", **change}
    with pytest.raises(ValueError, match=message):
        keep(question.top1, asked["scenarios"], question.memory, safety=asked["safety"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget_mib": 0.0}, "a budget of memory must be above zero, not 0.0 MiB"),
        ({"budget_mib": math.nan}, "a budget of memory must be above zero, not nan MiB"),
        ({"topology_mib": -1.0}, "the size of topology_mib must be finite and not below zero"),
        (
            {"sizes_mib": {"s": math.nan}},
            "the size of s must be finite and not below zero, not nan",
        ),
    ],
)
def test_memory_that_is_none_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(shared().memory, **change)


def test_a_part_without_a_size_is_named():
    memory = Memory(budget_mib=1.0, chains={"t0": ["a", "b"]}, sizes_mib={"a": 1.0})
    with pytest.raises(ValueError, match="sizes_mib lacks 1 parts: b"):
        keep({"t0": 50.0}, [Scenario(admitted=frozenset({"t0"}))], memory, safety="t0")
    with pytest.raises(ValueError, match="chains lacks 1 topologies: t1"):
        keep({"t0": 50.0, "t1": 51.0}, [], memory, safety="t0")


def test_the_weights_of_the_published_deit_family_are_counted_once():
    family = load_family("deit-ti-s-b").in_mode("reference")
    complexity = shipped_complexity(family)
    assert complexity is not None
    memory = memory_of_weights(family, complexity, budget_mib=100.0, bytes_per_weight=2)
    everything = [topology.name for topology in family.topologies]
    assert memory.of(everything) == pytest.approx(118.4e6 * 2 / 2**20, rel=0.01)
    alone = sum(memory.of([name]) for name in everything)
    assert alone / memory.of(everything) == pytest.approx(22.2, abs=0.1)


def test_weights_of_another_family_are_refused():
    family = load_family("deit-ti-s-b")
    complexity = shipped_complexity(family)
    assert complexity is not None
    with pytest.raises(MismatchError, match="count it again"):
        memory_of_weights(load_family("swin-ti-s-b"), complexity, budget_mib=100.0)
