"""Keeping deadlines and an average power on a device that does not keep its profile."""

import math
from bisect import bisect_right
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestitch import load_family
from edgestitch.control import Event, Governor, PowerLoop, Watch, fixed_ms
from edgestitch.control.governor import LEAST_MS
from edgestitch.control.margin import MOST, Margin
from edgestitch.control.slowdown import Slowdown
from edgestitch.errors import DeviceError
from edgestitch.profile import Attribution
from edgestitch.schedule import Candidate, staircase
from edgestitch.sensors import State
from edgestitch.simulation import SimulatedDevice, Throttling
from tests.boards import board, put
from tests.strategies import candidates as any_candidates
from tests.strategies import cost, profile

LADDER = tuple(
    Candidate(
        topology=f"a:0:{n}",
        top1=70 + n,
        median_ms=n,
        latency_ms=1.05 * n,
        energy_mj=10.0 * n,
        power_w=10.0,
    )
    for n in range(2, 13)
)
BUDGET_MS = 10.0
PLANNED = LADDER[7]
"""What the plan has for that budget: 9 ms, bounded by 9.45 ms."""

latencies = st.floats(0.01, 100)
budgets = st.floats(0.1, 50)
courses = st.lists(st.tuples(st.sampled_from(LADDER), latencies, budgets), max_size=60)


def after(course: list[tuple[Candidate, float, float]]) -> Governor:
    """A governor that has seen these calls."""
    governor = Governor(LADDER, fixed_ms=0.5)
    for candidate, latency_ms, budget_ms in course:
        governor.observe(candidate.topology, latency_ms, budget_ms)
    return governor


def drive(
    governor: Governor, factors: np.ndarray, budget_ms: float = BUDGET_MS
) -> list[tuple[Candidate, bool]]:
    """What ran in each frame of a device that is slower by these factors, and whether in time."""
    ran = []
    for factor in factors.tolist():
        candidate = governor.decide(budget_ms).candidate
        latency_ms = candidate.median_ms * factor
        governor.observe(candidate.topology, latency_ms, budget_ms)
        ran.append((candidate, latency_ms <= budget_ms))
    return ran


def noisy(factors: np.ndarray, sigma: float = 0.02, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    made: np.ndarray = factors * np.exp(sigma * random.standard_normal(len(factors)))
    return made


# --- decisions -------------------------------------------------------------------------------


@given(st.lists(any_candidates(), min_size=1, max_size=8), st.floats(0.1, 5))
def test_a_governor_that_has_seen_nothing_follows_the_plan(pool, budget_ms):
    bounds, steps = staircase(pool)
    planned = bisect_right(bounds, budget_ms)
    decision = Governor(pool).decide(budget_ms)
    assert decision.feasible == (planned > 0)
    assert decision.candidate == steps[max(planned - 1, 0)]


@given(courses, budgets)
def test_nothing_above_the_plan_is_ever_chosen(course, budget_ms):
    decision = after(course).decide(budget_ms)
    assert not decision.feasible or decision.candidate.latency_ms <= budget_ms
    assert decision.feasible or decision.candidate == LADDER[0]


@given(courses, budgets, budgets)
def test_a_larger_budget_never_costs_accuracy(course, one, other):
    governor = after(course)
    less, more = (governor.decide(budget) for budget in sorted((one, other)))
    assert less.candidate.top1 <= more.candidate.top1
    assert less.feasible <= more.feasible


@given(st.lists(st.tuples(st.sampled_from(LADDER), latencies), min_size=1, max_size=60))
def test_what_is_chosen_is_expected_to_keep_the_deadline_right_after_each_call(calls):
    governor = Governor(LADDER, fixed_ms=0.5)
    for candidate, latency_ms in calls:
        governor.observe(candidate.topology, latency_ms, BUDGET_MS)
        chosen, feasible = governor.decide(BUDGET_MS)
        expected_ms = governor.slowdown.predict(chosen.latency_ms) * governor.slowdown.caution
        assert not feasible or expected_ms * governor.margin.factor <= BUDGET_MS * (1 + 1e-9)


@given(st.lists(latencies, max_size=120), st.integers(1, 9))
def test_a_more_accurate_topology_is_tried_once_in_a_dwell_at_most(spans, dwell):
    governor = Governor(LADDER, dwell=dwell)
    before, rises = governor.decide(BUDGET_MS).candidate, 0
    for latency_ms in spans:
        governor.observe("a:0:6", latency_ms, BUDGET_MS)
        if governor.slowdown.alarm:
            continue  # the one after the next call goes on where this was
        now = governor.decide(BUDGET_MS).candidate
        rises += now.top1 > before.top1
        before = now
    assert rises <= len(spans) // dwell


def test_a_call_without_a_deadline_runs_the_most_accurate():
    governor = after([(LADDER[0], 50.0, 10.0)] * 10)
    assert governor.decide(None) == (LADDER[-1], True)


@pytest.mark.parametrize("budget_ms", [0.0, -3.0, math.nan, -math.inf])
def test_a_call_that_is_late_already_runs_the_fastest(budget_ms):
    assert Governor(LADDER).decide(budget_ms) == (LADDER[0], False)


def test_one_that_was_left_out_is_not_chosen_and_its_last_latencies_still_count():
    governor = Governor(LADDER)
    governor.admit(c for c in LADDER if c != PLANNED)
    assert governor.decide(BUDGET_MS).candidate == LADDER[6]
    drive(governor, np.full(30, 1.0))
    governor.observe(PLANNED.topology, 9.0, BUDGET_MS)
    assert governor.status().ignored == 0
    with pytest.raises(ValueError, match="a candidate or more"):
        governor.admit(())


numbers = st.one_of(st.floats(), st.sampled_from([0.0, -1.0, math.nan, math.inf, 1e-300, 1e300]))


@given(
    st.lists(
        st.tuples(st.sampled_from(["a:0:2", "a:0:12", "unknown"]), numbers, st.none() | numbers),
        max_size=40,
    )
)
def test_no_latency_and_no_deadline_upsets_it(calls):
    governor = Governor(LADDER, fixed_ms=0.5)
    for topology, latency_ms, deadline_ms in calls:
        governor.observe(topology, latency_ms, deadline_ms)
    status = governor.status()
    figures = (status.slowdown, status.host_slowdown, status.noise, status.margin)
    assert all(math.isfinite(x) and x > 0 for x in figures)
    assert governor.decide(BUDGET_MS).candidate in LADDER
    counted = sum(name != "unknown" and LEAST_MS <= ms < math.inf for name, ms, _ in calls)
    assert status.ignored == len(calls) - counted


# --- scripted courses ------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.2, 1.6, 3.0])
def test_a_step_costs_two_deadlines(factor):
    governor = Governor(LADDER)
    drive(governor, noisy(np.ones(400)))
    ran = drive(governor, noisy(np.full(300, factor), seed=1))
    in_time = [kept for _, kept in ran]
    assert not any(in_time[:1])
    assert all(in_time[3:40])
    assert sum(in_time) >= 297
    best = max(n for n in range(2, 13) if 1.05 * n * factor <= BUDGET_MS)
    assert ran[-1][0].median_ms >= best - 1
    assert governor.status().state == "slowed"


def test_the_call_after_the_first_slow_one_is_in_time_already():
    governor = Governor(LADDER)
    drive(governor, noisy(np.ones(400)))
    (_, first), (_, second), *_ = drive(governor, noisy(np.full(3, 1.6), seed=1))
    assert not first
    assert second


def test_when_the_device_recovers_so_does_the_choice():
    governor = Governor(LADDER)
    drive(governor, noisy(np.ones(200)))
    drive(governor, noisy(np.full(200, 1.6), seed=1))
    ran = drive(governor, noisy(np.ones(60), seed=2))
    assert ran[3][0].top1 < PLANNED.top1
    assert ran[-1][0] == PLANNED


def test_one_outlier_costs_the_accuracy_of_one_call():
    governor = Governor(LADDER)
    drive(governor, noisy(np.ones(300)))
    before, level = governor.decide(BUDGET_MS).candidate, governor.slowdown.device
    drive(governor, np.array([8.0]))
    assert governor.slowdown.device == pytest.approx(level, rel=0.01)
    assert governor.decide(BUDGET_MS) == (LADDER[0], True)
    drive(governor, np.array([1.0]))
    assert governor.decide(BUDGET_MS).candidate.median_ms >= before.median_ms - 1


def test_where_outliers_are_no_steps_they_soon_cost_nothing():
    governor = Governor(LADDER)
    factors = noisy(np.ones(6000))
    factors[250::250] = 3.0
    ran = drive(governor, factors)
    next_ones = [ran[n + 1][0] for n in range(250, 5999, 250)]
    assert next_ones[0].top1 < PLANNED.top1 - 3
    assert all(candidate.top1 >= PLANNED.top1 - 1 for candidate in next_ones[12:])


@pytest.mark.parametrize("which", ["host", "device", "both"])
@pytest.mark.parametrize("factor", [1.5, 4.0])
def test_after_a_step_another_budget_is_kept_at_once_whatever_became_slower(which, factor):
    """Of a host and a device that have become slower, one budget sees the sum alone."""
    late = []
    for seed in range(20):
        governor = Governor(LADDER, fixed_ms=0.5)
        random = np.random.default_rng(seed)
        for frame in range(320):
            slow = factor if frame >= 300 else 1.0
            host = 1.0 if which == "device" else slow
            device = 1.0 if which == "host" else min(slow, 1.5)
            budget_ms = 6.0 if frame >= 306 else BUDGET_MS
            candidate = governor.decide(budget_ms).candidate
            latency_ms = 0.5 * host + (candidate.median_ms - 0.5) * device
            latency_ms *= math.exp(0.02 * random.standard_normal())
            governor.observe(candidate.topology, latency_ms, budget_ms)
            late.append(frame >= 303 and latency_ms > budget_ms)
    assert sum(late) <= 2


def test_it_says_when_nothing_can_keep_the_deadline_and_is_back_when_something_can():
    governor = Governor(LADDER)
    ran = drive(governor, noisy(np.full(50, 8.0)))
    assert ran[-1][0] == LADDER[0]
    assert not governor.decide(BUDGET_MS).feasible
    assert governor.status().state == "infeasible"
    drive(governor, noisy(np.ones(50)))
    assert governor.decide(BUDGET_MS).feasible
    assert governor.status().state != "infeasible"


def test_a_burst_of_late_calls_is_not_held_against_the_margin_for_long():
    governor = Governor(LADDER)
    drive(governor, noisy(np.ones(500)))
    drive(governor, noisy(np.ones(30), seed=1), budget_ms=-1.0)
    assert governor.status().infeasible == 30
    ran = drive(governor, noisy(np.ones(30), seed=2))
    assert ran[-1][0] == PLANNED


def courses_of_a_device() -> dict[str, np.ndarray]:
    frames = np.arange(6000)
    busy = np.random.default_rng(3).random(20) < 0.4
    return {
        "steady": np.ones(6000),
        "steps": np.where(frames // 700 % 2, 1.5, 1.0),
        "heat": 1 + 0.6 * frames / 6000,
        "co-runner": np.where(busy[frames // 300], 1.35, 1.0),
    }


@pytest.mark.parametrize("name", courses_of_a_device())
@pytest.mark.parametrize("tails", [False, True])
def test_no_more_deadlines_are_missed_than_asked_for(name, tails):
    factors = courses_of_a_device()[name]
    random = np.random.default_rng(0)
    spread = random.standard_t(3, 6000) if tails else random.standard_normal(6000)
    governor = Governor(LADDER)
    ran = drive(governor, factors * np.exp(0.02 * spread))
    missed = 1 - np.mean([kept for _, kept in ran])
    assert missed <= 0.013
    assert governor.status().miss_rate == pytest.approx(missed)


def test_on_the_simulated_device_throttling_costs_few_deadlines():
    family = load_family("deit-ti-s-b")
    device = SimulatedDevice(family, throttling=(Throttling(start_s=2.0, stop_s=5.0, slower=1.6),))
    pool = [
        Candidate(topology=n, top1=ms, median_ms=ms, latency_ms=1.03 * ms)
        for n in device.cut.chains
        for ms in [device.latency_ms(n)]
    ]
    governor, late = Governor(pool), []
    while device.seconds < 8:
        topology = governor.decide(9.0).candidate.topology
        start_ns = device.clock()
        device.call(topology)
        latency_ms = (device.clock() - start_ns) / 1e6
        governor.observe(topology, latency_ms, 9.0)
        late.append(latency_ms > 9.0)
    assert np.mean(late) <= 0.01
    assert governor.status().steps == 2


# --- slowdown --------------------------------------------------------------------------------


def settled(fixed: float = 0.0) -> Slowdown:
    """A filter that knows noise of 2 % and a device as profiled."""
    slowdown = Slowdown(fixed)
    for factor in noisy(np.ones(300)):
        slowdown.observe(10.0, 10.0 * factor)
    return slowdown


@given(st.floats(1.25, 20), st.booleans(), st.integers(0, 30))
def test_a_step_is_followed_within_three_frames(factor, slower, seed):
    slowdown, factor = settled(), factor if slower else 1 / factor
    for noise in noisy(np.ones(3), seed=seed):
        slowdown.observe(10.0, 10.0 * factor * noise)
    assert slowdown.device == pytest.approx(factor, rel=0.08)


@given(st.floats(1e-3, 1e3), st.floats(0.0, 0.05))
def test_a_single_outlier_is_not_followed(factor, noise):
    slowdown = settled()
    level = slowdown.device
    slowdown.observe(10.0, 10.0 * factor)
    slowdown.observe(10.0, 10.0 * (1 + noise))
    assert slowdown.device == pytest.approx(level, rel=0.02)
    assert slowdown.steps == 0


@given(st.lists(st.floats(0.2, 5), max_size=30), st.floats(1e-3, 1e3))
def test_factors_do_not_depend_on_the_unit_of_time(factors, unit):
    one, other = Slowdown(0.5), Slowdown(0.5 * unit)
    for factor in factors:
        one.observe(4.0, 4.0 * factor)
        other.observe(4.0 * unit, 4.0 * unit * factor)
    assert (other.host, other.device) == pytest.approx((one.host, one.device), rel=1e-6)


def test_a_slow_ramp_is_followed_closely():
    slowdown = Slowdown()
    factors = 1 + 0.6 * np.arange(3000) / 3000
    errors = []
    for factor, noise in zip(factors, noisy(np.ones(3000)), strict=True):
        errors.append(slowdown.predict(10.0) / (10.0 * factor) - 1)
        slowdown.observe(10.0, 10.0 * factor * noise)
    assert np.sqrt(np.mean(np.square(errors[50:]))) < 0.01


def test_cheap_and_dear_topologies_tell_the_host_from_the_device():
    slowdown = Slowdown(1.0)
    for n, noise in enumerate(noisy(np.ones(400))):
        cost_ms = (2.0, 10.0)[n // 5 % 2]
        slowdown.observe(cost_ms, (3.0 * 1.0 + 1.2 * (cost_ms - 1.0)) * noise)
    assert slowdown.host == pytest.approx(3.0, rel=0.1)
    assert slowdown.device == pytest.approx(1.2, rel=0.05)
    assert slowdown.predict(5.0) == pytest.approx(3.0 + 1.2 * 4.0, rel=0.03)


def test_as_profiled_again_is_recognised_and_so_is_the_part_of_each():
    slowdown = settled(1.0)
    for factor, cost_ms in ((1.6, 10.0), (1.6, 6.0), (1.0, 6.0), (1.0, 6.0)):
        slowdown.observe(cost_ms, factor * cost_ms)
    assert slowdown.steps == 2
    assert (slowdown.host, slowdown.device) == pytest.approx((1.0, 1.0), rel=0.03)


@given(st.lists(st.tuples(st.floats(2, 12), st.floats(0.5, 4), st.floats(0.5, 40)), max_size=60))
def test_after_each_step_the_prediction_is_near_what_the_last_call_took(calls):
    """However the bounds of the factors cut in: a filter that runs away answers nothing."""
    slowdown = Slowdown(0.5)
    for cost_ms, device, host in calls:
        latency_ms = 0.5 * host + (cost_ms - 0.5) * device
        steps = slowdown.steps
        for _ in range(12):
            slowdown.observe(cost_ms, latency_ms)
        assert slowdown.steps <= steps + 3
        assert slowdown.predict(cost_ms) == pytest.approx(latency_ms, rel=0.2)


def test_without_a_fixed_part_there_is_one_factor():
    slowdown = Slowdown()
    for _ in range(50):
        slowdown.observe(5.0, 7.0)
    assert slowdown.host == 1.0
    assert slowdown.device == pytest.approx(1.4, rel=0.01)


def test_a_slower_clock_counts_before_the_next_call():
    slowdown = settled()
    slowdown.clocks({"gpu": 1000.0}, {"gpu": 1000.0})
    level = slowdown.device
    slowdown.clocks({"gpu": 1000.0}, {"gpu": 625.0})
    assert slowdown.device == pytest.approx(1.6 * level)


def test_calls_since_the_last_look_know_better_than_a_clock():
    slowdown = settled()
    slowdown.clocks({"gpu": 1000.0}, {"gpu": 1000.0})
    for _ in range(20):
        slowdown.observe(10.0, 11.0)  # most of it waits for memory, which keeps its clock
    level = slowdown.device
    slowdown.clocks({"gpu": 1000.0}, {"gpu": 625.0})
    assert slowdown.device == level


def test_a_faster_clock_is_believed_when_calls_show_it():
    slowdown = settled()
    slowdown.clocks({"cpu": 2000.0}, {"cpu": 2000.0})
    slowdown.clocks({"cpu": 2000.0}, {"cpu": 1000.0})
    assert slowdown.device > 1.9
    slowdown.clocks({"cpu": 2000.0}, {"cpu": 2000.0})
    assert slowdown.device > 1.9
    for _ in range(3):
        slowdown.observe(10.0, 10.0)
    assert slowdown.device == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(
    "now", [{}, {"gpu": 0.0}, {"cpu": 800.0}, {"gpu": math.nan}, {"gpu": math.inf}]
)
def test_clocks_that_cannot_be_compared_say_nothing(now):
    slowdown = settled()
    level = slowdown.device
    slowdown.clocks({"gpu": 1000.0}, now)
    assert slowdown.device == level


def test_the_fixed_part_is_what_marks_have_measured_or_a_fit_has_found():
    plain = profile([cost("a:0:3", latency=4.0)])
    rest = Attribution(segments_ms={}, rest_ms=0.7, overhead=0.01)
    assert fixed_ms(plain) == 0.0
    assert fixed_ms(msgspec.structs.replace(plain, attribution=rest)) == 0.7
    much = msgspec.structs.replace(rest, rest_ms=9.0)
    assert fixed_ms(msgspec.structs.replace(plain, attribution=much)) == pytest.approx(3.6)


# --- margin ----------------------------------------------------------------------------------


@given(st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=400), st.floats(0.05, 0.3))
def test_any_scores_are_above_the_margin_as_often_as_the_bound_says(scores, target):
    margin, gain, missed = Margin(target, window=50, gain=0.2), 0.2, 0
    for score in scores:
        above = score > margin.log
        missed += above
        margin.observe(score, above)
    assert missed / len(scores) <= target + MOST / (gain * len(scores)) + 1e-9


def test_scores_that_always_outdo_the_margin_cannot():
    margin, missed = Margin(0.05, gain=0.05), 0
    for _ in range(2000):
        score = min(margin.log + 0.01, 1.0)
        missed += score > margin.log
        margin.observe(score, score > margin.log)
    assert missed / 2000 <= 0.05 + MOST / (0.05 * 2000)


def drifting(name: str) -> Callable[[int], float]:
    def scale(n: int) -> float:
        wave = math.sin(n / 1500)
        return {"still": 0.03, "wider": 0.01 + 0.0000015 * n, "waves": 0.03 * (1.5 + wave)}[name]

    return scale


@pytest.mark.parametrize("name", ["still", "wider", "waves"])
def test_the_target_is_met_from_both_sides_in_the_long_run(name):
    random, scale = np.random.default_rng(1), drifting(name)
    margin, missed = Margin(0.01), 0
    for n, draw in enumerate(random.standard_normal(30_000).tolist()):
        score = draw * scale(n)
        missed += score > margin.log
        margin.observe(score, score > margin.log)
    assert missed / 30_000 == pytest.approx(0.01, abs=0.0025)


def test_scores_of_a_step_leave_no_trace_in_the_quantile_but_their_misses_count():
    random = np.random.default_rng(2)
    margin, plain = Margin(0.01, window=400), Margin(0.01, window=400)
    for draw in random.standard_normal(400).tolist():
        for one in (margin, plain):
            one.observe(0.02 * draw, False)
    before = margin.log
    for _ in range(3):
        margin.observe(0.5, True)
        margin.observe(0.5, True, stepped=True)
        plain.observe(0.5, True)
        plain.observe(0.5, True)
    assert margin.log == pytest.approx(before + 6 * 0.01, abs=0.005)
    assert plain.log > 0.4


def test_no_deadline_is_missed_on_purpose():
    margin = Margin(0.01)
    for _ in range(5000):
        margin.observe(0.1, False)  # a device without noise, whose calls are all in time
    assert margin.log == pytest.approx(0.1)


@pytest.mark.parametrize("target", [0.0, 0.5, -1.0, 1.0])
def test_a_target_that_is_no_small_share_is_an_error(target):
    with pytest.raises(ValueError, match="target must be between"):
        Governor(LADDER, target=target)


def test_a_window_that_is_too_short_for_the_target_is_an_error():
    with pytest.raises(ValueError, match="at least 200 are needed"):
        Margin(0.01, window=100)


# --- power -----------------------------------------------------------------------------------

PERIOD_MS = 20.0
"""Of frames: the ladder then takes 1 W to 6 W."""


def powered(loop: PowerLoop, scale: float, seconds: float, *, seed: int = 0) -> float:
    """Mean power of a device that uses so many times what the profile says."""
    random = np.random.default_rng(seed)
    used, since, frames = 0.0, 0.0, round(seconds * 1000 / PERIOD_MS)
    for frame in range(1, frames + 1):
        energy = loop.decide().energy_mj
        assert energy is not None
        used += scale * energy
        since += scale * energy
        if frame % 5 == 0:
            mean_w = since / (5 * PERIOD_MS) + 0.1 * float(random.standard_normal())
            loop.reading(frame * PERIOD_MS / 1000, max(mean_w, 0.0))
            since = 0.0
    return used / (frames * PERIOD_MS)


@given(st.floats(1.05, 5.95))
def test_a_mixture_stays_within_one_frame_of_what_is_allowed(budget_w):
    loop = PowerLoop(LADDER, budget_w, period_ms=PERIOD_MS)
    used = 0.0
    for frame in range(1, 200):
        used += loop.decide().energy_mj or math.nan
        assert abs(used - budget_w * PERIOD_MS * frame) <= 120.0


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("budget_w", [2.0, 3.3, 4.5])
def test_the_mean_power_over_a_minute_is_the_budget_whatever_the_profile_is_wrong_by(
    scale, budget_w
):
    loop = PowerLoop(LADDER, budget_w, period_ms=PERIOD_MS)
    assert powered(loop, scale, 60) == pytest.approx(budget_w, rel=0.01)
    assert loop.state == "measured"
    assert loop.scale == pytest.approx(scale, rel=0.05)


def test_a_meter_that_falls_silent_is_waited_for_and_then_given_up():
    loop = PowerLoop(LADDER, 3.0, period_ms=PERIOD_MS)
    powered(loop, 0.8, 20)
    scale = loop.scale
    loop.reading(20.5, None)
    assert loop.state == "measured"
    loop.reading(21.5, math.nan)
    assert (loop.state, loop.scale) == ("holding", scale)
    loop.reading(23.5, None)
    assert (loop.state, loop.scale) == ("profile", 1.0)
    assert "does not answer" in loop.reason
    loop.reading(24.0, 2.9)
    assert (loop.state, loop.reason) == ("measured", "")


def test_a_meter_that_says_the_same_for_ever_is_not_believed():
    loop = PowerLoop(LADDER, 3.0, period_ms=PERIOD_MS)
    powered(loop, 1.25, 20)
    for n in range(50):
        loop.decide()
        loop.reading(20 + n / 10, 0.5)
    assert loop.state == "profile"
    assert "0.5 W" in loop.reason
    assert loop.scale >= 1.0
    assert loop.allowed_w <= 3.0


def test_a_clock_that_goes_back_is_ignored():
    loop = PowerLoop(LADDER, 3.0, period_ms=PERIOD_MS)
    powered(loop, 1.25, 20)
    before = (loop.scale, loop.debt_j)
    loop.decide()
    loop.reading(3.0, 99.0)
    loop.reading(math.nan, 99.0)
    assert (loop.scale, loop.debt_j) == before


def test_what_was_saved_in_a_rest_is_soon_spent():
    loop = PowerLoop(LADDER, 3.0, period_ms=PERIOD_MS)
    for second in range(100):
        loop.decide()
        loop.reading(float(second), 0.1 + second / 1000)
    assert loop.debt_j == pytest.approx(-9.0)


def test_a_power_that_nothing_keeps_to_runs_the_most_frugal_and_says_so():
    loop = PowerLoop(LADDER, 0.5, period_ms=PERIOD_MS)
    assert loop.decide() == LADDER[0]
    assert not loop.feasible


def test_a_deadline_comes_before_a_power_that_is_left():
    loop = PowerLoop(LADDER, 6.0, period_ms=PERIOD_MS)
    assert loop.decide(at_most=LADDER[3]) == LADDER[3]
    assert loop.decide(at_most=LADDER[-1]) == LADDER[-1]
    unknown = msgspec.structs.replace(LADDER[0], topology="b:0:1", energy_mj=None)
    assert loop.decide(at_most=unknown) == unknown


def test_idle_power_between_frames_counts():
    lazy = PowerLoop(LADDER, 3.0, period_ms=PERIOD_MS)
    awake = PowerLoop(LADDER, 3.0, period_ms=PERIOD_MS, idle_w=2.0)
    mean_ms = [sum(loop.decide().median_ms for _ in range(200)) / 200 for loop in (lazy, awake)]
    # 10 W while it works; waiting costs nothing, or 2 W that the work does not cost again.
    assert mean_ms == pytest.approx([6.0, (60 - 40) / 8], rel=0.03)


def test_a_power_budget_without_measured_energy_is_an_error():
    with pytest.raises(DeviceError, match="measured energy"):
        PowerLoop([msgspec.structs.replace(c, energy_mj=None) for c in LADDER], 3.0)
    with pytest.raises(ValueError, match="budget_w must be above zero"):
        PowerLoop(LADDER, 0.0)


# --- watch -----------------------------------------------------------------------------------


class Sensors:
    """Sensors that say what they are told to."""

    locked: bool | None = None

    def __init__(self) -> None:
        self.throttle: tuple[str, ...] = ()
        self.events = {"oc3": 7}
        self.broken = False

    def read(self) -> State:
        if self.broken:
            raise OSError("the bus does not answer")
        return State(
            clocks_mhz={"gpu": 900.0},
            temperatures_c={},
            throttle=self.throttle,
            events=dict(self.events),
        )


def told(watch: Watch) -> list[tuple[str, str]]:
    return [(event.level, event.what) for event in watch.look()]


def test_throttling_is_told_when_it_begins_and_when_it_ends(tmp_path):
    sensors = Sensors()
    watch = Watch(sensors, root=tmp_path)
    assert told(watch) == []  # what was counted before is no news
    sensors.throttle = ("gpu-throttle-alert",)
    assert told(watch) == [("WARN", "throttling")]
    assert told(watch) == []
    assert watch.warnings == ("throttling: gpu-throttle-alert",)
    sensors.throttle = ()
    assert told(watch) == [("OK", "throttling")]
    assert not watch.warnings


def test_throttling_between_two_looks_is_told_from_its_counter(tmp_path):
    sensors = Sensors()
    watch = Watch(sensors, root=tmp_path)
    watch.look()
    sensors.events["oc3"] = 8
    assert told(watch) == [("WARN", "throttling")]
    assert told(watch) == [("OK", "throttling")]


def test_a_power_mode_that_is_not_the_profiles_is_told(tmp_path):
    root = board(tmp_path, "jetson-xavier")
    watch = Watch(Sensors(), profiled_mode="MODE_30W_ALL", root=root)
    assert told(watch) == []
    put(root / "var/lib/nvpmodel/status", "pmode:0001 fmode:fanNull")
    (event,) = watch.look()
    assert event.level == "WARN"
    assert "from MODE_30W_ALL to MODE_10W" in event.message
    assert watch.warnings == ("power mode MODE_10W, profiled in MODE_30W_ALL",)
    put(root / "var/lib/nvpmodel/status", "pmode:0003 fmode:fanNull")
    assert told(watch) == [("OK", "power mode")]


def test_a_power_mode_that_differs_from_the_start_is_told_at_the_first_look(tmp_path):
    watch = Watch(Sensors(), profiled_mode="MAXN", root=board(tmp_path, "jetson-xavier"))
    assert told(watch) == [("WARN", "power mode")]


def test_sensors_that_fail_are_told_once(tmp_path):
    sensors = Sensors()
    watch = Watch(sensors, root=tmp_path)
    sensors.broken = True
    assert told(watch) == [("WARN", "sensors")]
    assert told(watch) == []
    assert "the bus does not answer" in watch.warnings[0]
    sensors.broken = False
    assert told(watch) == [("OK", "sensors")]


def test_the_watch_looks_in_a_thread_of_its_own_until_it_is_left(tmp_path):
    import threading

    before = set(threading.enumerate())
    looked = threading.Semaphore(0)
    states: list[State | None] = []
    sensors = Sensors()
    sensors.throttle = ("thermal",)
    events: list[Event] = []

    def then(state: State | None) -> None:
        states.append(state)
        looked.release()

    with Watch(sensors, root=tmp_path).running(events.append, then=then, period_s=0.001):
        for _ in range(3):
            assert looked.acquire(timeout=10)
    assert [event.what for event in events] == ["throttling"]
    assert all(state is not None and state.clocks_mhz == {"gpu": 900.0} for state in states)
    assert set(threading.enumerate()) <= before
