"""Several networks on one device: response times, and a topology for each."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgestitch.artifact import digest, load, save
from edgestitch.coschedule import (
    JointPlan,
    Stream,
    coschedule,
    interference,
    response_times_ms,
)
from edgestitch.errors import InfeasibleError, MismatchError
from edgestitch.profile import Cost, Profile
from edgestitch.schedule import Candidate
from tests.strategies import accuracy, conditions, cost, profile


def candidate(
    name: str, top1: float, latency_ms: float, energy_mj: float | None = None
) -> Candidate:
    power_w = None if energy_mj is None else energy_mj / latency_ms
    return Candidate(
        topology=name,
        top1=top1,
        median_ms=latency_ms,
        latency_ms=latency_ms,
        energy_mj=energy_mj,
        power_w=power_w,
    )


# --- response times --------------------------------------------------------------------------

latencies = st.integers(1, 6)
periods = st.integers(4, 40)
sets = st.lists(st.tuples(latencies, periods), min_size=1, max_size=4)


def simulated(
    latencies_ms: Sequence[int],
    periods_ms: Sequence[int],
    offsets_ms: Sequence[int],
    until_ms: int = 400,
) -> list[int]:
    """The longest response of each network, where the first is run first and none is interrupted."""
    waiting = sorted(
        (offset + number * period, place)
        for place, (period, offset) in enumerate(zip(periods_ms, offsets_ms, strict=True))
        for number in range(until_ms // period)
    )
    longest = [0] * len(latencies_ms)
    now = 0
    while waiting:
        now = max(now, waiting[0][0])
        released = [job for job in waiting if job[0] <= now]
        first = min(released, key=lambda job: (job[1], job[0]))
        waiting.remove(first)
        now += latencies_ms[first[1]]
        longest[first[1]] = max(longest[first[1]], now - first[0])
    return longest


@settings(deadline=None)
@given(sets, st.data())
def test_no_response_takes_longer_than_its_bound(both, data):
    latencies_ms, periods_ms = zip(*both, strict=True)
    offsets = data.draw(st.tuples(*[st.integers(0, 40)] * len(both)))
    bounds = response_times_ms(latencies_ms, periods_ms)
    longest = simulated(latencies_ms, periods_ms, offsets)
    assert all(found <= bound for found, bound in zip(longest, bounds, strict=True))


def test_the_bound_of_the_published_counterexample_is_of_the_second_input():
    """Of Davis et al. 2007, messages of 1 in periods of 2.5, 3.5 and 3.5.

    The first of the lowest waits for 2 and responds after 3, the second only after 3.5.
    """
    assert response_times_ms([1.0, 1.0, 1.0], [2.5, 3.5, 3.5]) == pytest.approx([2.0, 3.0, 3.5])


@given(sets)
def test_the_response_is_no_longer_than_with_interruptions(both):
    """R = C + B + sum of ceil(R / T) C, where that is within the period, is a looser bound."""
    latencies_ms, periods_ms = zip(*both, strict=True)
    assume(sum(c / t for c, t in both) < 0.99)
    for place, bound in enumerate(response_times_ms(latencies_ms, periods_ms)):
        own, blocked = latencies_ms[place], max(latencies_ms[place + 1 :], default=0)
        loose = own + blocked
        while loose <= periods_ms[place]:
            longer = own + blocked
            longer += sum(math.ceil(loose / t) * c for c, t in both[:place])
            if longer == loose:
                assert bound <= loose + 1e-6
                break
            loose = longer


def test_a_device_that_is_asked_for_all_its_time_gives_no_bound():
    assert response_times_ms([5.0, 5.0], [10.0, 10.0]) == [10.0, math.inf]


def test_one_network_alone_responds_when_it_is_done():
    assert response_times_ms([5.0], [10.0]) == [5.0]


# --- the choice ------------------------------------------------------------------------------

pools = st.lists(
    st.tuples(st.integers(50, 60), latencies, st.integers(1, 20)), min_size=1, max_size=4
).map(
    lambda rows: [
        candidate(f"t{i}", float(top1), float(ms), float(mj))
        for i, (top1, ms, mj) in enumerate(rows)
    ]
)


@st.composite
def streams(draw):
    found = []
    for i in range(draw(st.integers(1, 3))):
        period = float(draw(periods))
        found.append(
            Stream(
                name=f"n{i}",
                pool=draw(pools),
                period_ms=period,
                deadline_ms=draw(st.sampled_from([None, 0.75 * period])),
                weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
                interference=draw(st.sampled_from([1.0, 1.5])),
            )
        )
    return found


def best_of_all(streams: Sequence[Stream], power_w: float | None, idle_w: float) -> float | None:
    """The most weighted accuracy of any choice that keeps all, by trying each."""
    ordered = sorted(streams, key=lambda s: s.within_ms)
    best = None
    for chosen in itertools.product(*(stream.pool for stream in ordered)):
        pairs = list(zip(chosen, ordered, strict=True))
        responses = response_times_ms(
            [c.latency_ms * s.interference for c, s in pairs], [s.period_ms for s in ordered]
        )
        used_w = idle_w + sum(
            ((c.energy_mj or 0.0) - idle_w * c.latency_ms) / s.period_ms for c, s in pairs
        )
        late = any(r > s.within_ms + 1e-6 for r, s in zip(responses, ordered, strict=True))
        if late or (power_w is not None and used_w > power_w + 1e-9):
            continue
        worth = sum(s.weight * c.top1 for c, s in pairs) / sum(s.weight for s in ordered)
        best = worth if best is None else max(best, worth)
    return best


@settings(deadline=None)
@given(streams(), st.sampled_from([None, 1.0, 1.5, 2.0]))
def test_no_choice_that_keeps_all_deadlines_is_worth_more(streams, power_w):
    expected = best_of_all(streams, power_w, 0.5)
    if expected is None:
        with pytest.raises(InfeasibleError, match="fit together"):
            coschedule(streams, power_w=power_w, idle_w=0.5)
        return
    found = coschedule(streams, power_w=power_w, idle_w=0.5)
    assert found.top1 == pytest.approx(expected)
    assert found.proven
    assert all(a.response_ms <= a.deadline_ms + 1e-6 for a in found.assignments)
    assert power_w is None or found.power_w <= power_w + 1e-6


large = st.lists(st.tuples(st.floats(50, 90), st.floats(0.5, 30)), min_size=40, max_size=40)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(large, st.sampled_from([16.7, 25.0, 33.3, 50.0])), min_size=4, max_size=4)
)
def test_of_a_proven_choice_of_many_no_network_can_be_changed_for_the_better(drawn):
    streams = [
        Stream(
            name=f"n{i}",
            pool=[candidate(f"t{j}", top1, ms) for j, (top1, ms) in enumerate(rows)],
            period_ms=period_ms,
        )
        for i, (rows, period_ms) in enumerate(drawn)
    ]
    try:
        found = coschedule(streams)
    except InfeasibleError:
        return
    assert found.proven
    periods_ms = [a.period_ms for a in found.assignments]
    for place, own in enumerate(found.assignments):
        pool = next(stream.pool for stream in streams if stream.name == own.name)
        for better in (c for c in pool if c.top1 > own.top1 + 1e-6):
            tried = [a.latency_ms for a in found.assignments]
            tried[place] = better.latency_ms
            responses = response_times_ms(tried, periods_ms)
            assert any(r > t for r, t in zip(responses, periods_ms, strict=True))


def test_periods_that_are_thousands_of_times_as_long_are_decided_as_well():
    policy = Stream(name="policy", pool=[candidate("p", 70.0, 0.2)], period_ms=1.0)
    slow = Stream(
        name="map",
        pool=[candidate("m", 80.0, 0.5), candidate("l", 90.0, 0.9)],
        period_ms=5000.0,
    )
    found = coschedule([policy, slow])
    assert (
        found.by_name["map"].topology == "m"
    )  # the policy waits for 0.9 ms at most, beside its own
    assert found.proven


CAMERA = Stream(
    name="camera",
    pool=[candidate("a", 60.0, 4.0, 40.0), candidate("b", 80.0, 9.0, 90.0)],
    period_ms=33,
)
DEPTH = Stream(
    name="depth",
    pool=[candidate("c", 65.0, 8.0, 80.0), candidate("d", 75.0, 20.0, 200.0)],
    period_ms=50,
)


def test_the_shorter_deadline_goes_first_and_priorities_change_that():
    assert [a.name for a in coschedule([DEPTH, CAMERA]).assignments] == ["camera", "depth"]
    depth = replace(DEPTH, priority=1)
    camera = replace(CAMERA, priority=2)
    assert [a.name for a in coschedule([camera, depth]).assignments] == ["depth", "camera"]
    with pytest.raises(
        ValueError, match="give each of the 2 networks a priority of its own, or none"
    ):
        coschedule([camera, DEPTH])


def test_a_joint_choice_says_what_each_runs_and_when_it_is_done():
    found = coschedule([CAMERA, DEPTH])
    camera, depth = found.assignments
    assert (camera.topology, depth.topology) == ("b", "d")
    assert (camera.response_ms, depth.response_ms) == (29.0, 29.0)
    assert found.utilisation == pytest.approx(9 / 33 + 20 / 50)
    assert found.top1 == 77.5


def test_interference_makes_inferences_longer():
    longer = replace(DEPTH, interference=1.5)
    assert coschedule([CAMERA, longer]).by_name["depth"].topology == "c"


def test_what_misses_is_named_with_its_miss():
    hurried = replace(CAMERA, deadline_ms=10.0)
    message = (
        "no topologies of camera, depth fit together: camera misses its deadline of 10 ms by 2 ms: its "
        "fastest, a, takes 4 ms and waits up to 8 ms for the others"
    )
    with pytest.raises(InfeasibleError, match=message):
        coschedule([hurried, DEPTH])


def test_too_much_of_the_device_is_said_to_be():
    streams = [replace(CAMERA, name=f"camera {i}", period_ms=8.0) for i in range(3)]
    with pytest.raises(
        InfeasibleError, match=r"they ask for 150% of the device's time; .*to be run"
    ):
        coschedule(streams)


def test_power_that_is_too_little_is_named_with_its_miss():
    with pytest.raises(InfeasibleError, match=r"they take 3\.89 W, 0\.89 W too much"):
        coschedule([CAMERA, DEPTH], power_w=3.0, idle_w=1.5)


def test_bounds_that_exclude_each_other_are_said_to():
    pool = [candidate("fast", 60.0, 1.0, 90.0), candidate("frugal", 60.0, 9.0, 10.0)]
    stream = replace(CAMERA, pool=pool, deadline_ms=5.0)
    with pytest.raises(InfeasibleError, match="each bound alone can be met, but not all together"):
        coschedule([stream], power_w=1.0, idle_w=0.5)


def test_without_time_what_is_not_known_is_not_claimed():
    with pytest.raises(InfeasibleError, match="nothing was found in time"):
        coschedule([CAMERA, DEPTH], time_limit_s=0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"period_ms": 0.0}, "period_ms of camera must be above zero"),
        ({"weight": math.nan}, "weight of camera must be above zero"),
        ({"deadline_ms": 40.0}, "at most its period of 33 ms, not 40"),
        ({"interference": 0.5}, "interference of camera must be 1 at least, not 0.5"),
        ({"pool": []}, "camera has no topologies"),
    ],
)
def test_a_network_that_cannot_be_run_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CAMERA, **change)


@pytest.mark.parametrize(
    ("streams", "power", "message"),
    [
        ([], {}, "no networks were given"),
        ([CAMERA, CAMERA], {}, "each network needs a name of its own"),
        ([CAMERA], {"power_w": 0.0, "idle_w": 1.0}, "power_w must be above zero"),
        ([CAMERA], {"power_w": 5.0}, "a mean power of 5 W includes the idle device: give idle_w"),
    ],
)
def test_what_cannot_be_asked_is_refused(streams, power, message):
    with pytest.raises(ValueError, match=message):
        coschedule(streams, **power)


def test_power_without_measured_energy_is_refused():
    stream = Stream(name="camera", pool=[candidate("a", 60.0, 4.0)], period_ms=33)
    with pytest.raises(ValueError, match="no energy of camera was measured"):
        coschedule([stream], power_w=5.0, idle_w=1.0)


# --- artifacts -------------------------------------------------------------------------------

COSTS = profile([cost("a:0:3", latency=2.0, bound=3.0, energy=8.0)])
WORTH = accuracy({"a:0:3": 61.2})


def beside(costs: Iterable[Cost]) -> Profile:
    found = profile(costs)
    return msgspec.structs.replace(found, conditions=conditions(contention="stress"))


def test_a_joint_plan_saves_and_loads_and_says_what_it_was_made_from(tmp_path):
    made = coschedule([Stream.of("camera", COSTS, WORTH, period_ms=33)])
    save(made, tmp_path / "joint.json")
    assert load(JointPlan, tmp_path / "joint.json") == made
    (camera,) = made.assignments
    assert (camera.profile, camera.accuracy) == (digest(COSTS), digest(WORTH))
    assert camera.network == "weights"
    made.check("camera", COSTS, WORTH)
    with pytest.raises(MismatchError, match="joint plan of camera and profile do not belong"):
        made.check("camera", profile([cost("a:0:3")]), WORTH)
    with pytest.raises(MismatchError, match="the joint plan has no depth; it has camera"):
        made.check("depth", COSTS, WORTH)


def test_interference_is_the_most_that_any_topology_suffers():
    alone = profile([cost("a:0:3", bound=2.0), cost("b:0:3", bound=4.0)])
    slower = beside([cost("a:0:3", bound=3.0), cost("b:0:3", bound=5.0)])
    assert interference(alone, slower) == 1.5
    assert interference(alone, beside(alone.costs)) == 1.0
    with pytest.raises(
        MismatchError, match="measure the second with `edgestitch profile --contend"
    ):
        interference(alone, alone)
    with pytest.raises(MismatchError, match="have no topology in common"):
        interference(alone, beside([cost("c:0:3")]))


def test_interference_is_not_counted_twice():
    busy = beside(COSTS.costs)
    assert Stream.of("camera", busy, WORTH, period_ms=33).interference == 1.0
    with pytest.raises(
        MismatchError, match="was measured beside 'stress' and has the interference"
    ):
        Stream.of("camera", busy, WORTH, period_ms=33, interference=1.2)
