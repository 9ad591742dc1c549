"""The timer: settled, interleaved, enough, watched; on a clock that only the subjects move."""

import gc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import ceil

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from edgestitch.errors import DeviceError
from edgestitch.profile import Load
from edgestitch.sensors import State
from edgestitch.testing import FakeTimer
from edgestitch.timer import (
    CLOCK_JUMPED,
    MIN_SAMPLES_P99,
    Pacer,
    Samples,
    Taken,
    TimerSettings,
    interleave,
    interval_ranks,
    summarize,
)
from tests.fakes import FakeClock

# The first three windows settle what is constant: 60 calls of one subject.
QUICK = TimerSettings(min_samples=200, precision=1.0, min_warmup_s=0.0)
WARM_UP = 60


def state(*throttle: str, events: Mapping[str, int] | None = None) -> State:
    return State(clocks_mhz={}, temperatures_c={}, throttle=throttle, events=dict(events or {}))


def throttling(timer: FakeTimer, spans_ms: Sequence[tuple[float, float]]) -> Callable[[], State]:
    """A device that is too hot from one moment of the timer to another."""

    def look() -> State:
        now_ms = timer.now_ns / 1e6
        return state(*(["hot"] if any(a <= now_ms < b for a, b in spans_ms) else []))

    return look


# --- settled, interleaved, enough ------------------------------------------------------------


def test_constant_latencies_are_measured_exactly():
    timer = FakeTimer({"a": 1.5, "b": 3.0})
    samples = interleave(timer.subjects, clock=timer.clock)
    assert summarize(samples.durations_ns["a"]).median == 1.5
    assert summarize(samples.durations_ns["b"]).median == 3.0
    assert samples.steady
    assert not samples.capped


def test_warm_up_is_not_kept():
    timer = FakeTimer({"a": lambda call: 50.0 if call < 30 else 1.0})
    samples = interleave(timer.subjects, clock=timer.clock)
    assert samples.durations_ns["a"].max() == 1_000_000


def test_a_latency_that_never_settles_is_said():
    timer = FakeTimer({"a": lambda call: 1.0 + call * 0.01})
    settings = TimerSettings(time_cap_s=20)
    assert not interleave(timer.subjects, settings, clock=timer.clock).steady


# Windows of one subject are of 20 rounds, so these latencies change from window to window.
@pytest.mark.parametrize(
    ("latency", "steady"),
    [
        (lambda call: 1.0 + 0.05 * (call // 20 % 2), False),
        (lambda call: 1.0 + 0.01 * (call // 20 % 2), True),
        (lambda call: 1.008 ** (call // 20), False),  # 1.6 % in three windows, but always upward
        (lambda call: 1.003 ** (call // 20), True),
        (lambda call: 50.0 if call % 20 == 7 else 1.0, True),  # a median does not see one of them
    ],
    ids=["spread", "little-spread", "trend", "little-trend", "outliers"],
)
def test_settled_is_what_neither_spreads_nor_drifts(latency, steady):
    timer = FakeTimer({"a": latency})
    settings = TimerSettings(min_samples=20, precision=1.0, time_cap_s=15)
    assert interleave(timer.subjects, settings, clock=timer.clock).steady is steady


@pytest.mark.parametrize("min_warmup_s", [0.0, 1.0, 3.0])
def test_warm_up_takes_the_time_that_it_must_at_least(min_warmup_s):
    timer = FakeTimer({"a": 1.0})
    settings = TimerSettings(min_samples=20, precision=1.0, min_warmup_s=min_warmup_s)
    kept = interleave(timer.subjects, settings, clock=timer.clock).durations_ns["a"]
    assert timer.calls["a"] - len(kept) == max(1000 * min_warmup_s, WARM_UP)


def test_every_subject_has_a_burst_a_round_in_varying_order():
    timer = FakeTimer({"a": 1.0, "b": 1.0, "c": 1.0})
    interleave(timer.subjects, TimerSettings(min_samples=500, burst=4), clock=timer.clock)
    bursts = [timer.order[i : i + 5] for i in range(0, len(timer.order), 5)]
    assert all(len(set(burst)) == 1 for burst in bursts)
    rounds = [tuple(burst[0] for burst in bursts[i : i + 3]) for i in range(0, len(bursts), 3)]
    assert all(set(names) == {"a", "b", "c"} for names in rounds)
    assert len(set(rounds)) == 6


@pytest.mark.parametrize("burst", [1, 4, 7])
def test_the_first_call_after_another_subjects_is_no_sample(burst):
    def latency(name: str) -> Callable[[int], float]:
        return lambda call: 1.0 if timer.order[-1:] == [name] else 9.0

    timer = FakeTimer({name: latency(name) for name in "ab"})
    settings = TimerSettings(min_samples=100, burst=burst)
    samples = interleave(timer.subjects, settings, clock=timer.clock)
    # Two bursts of one subject may meet: the end of a round and the start of the next.
    assert {int(d) for name in "ab" for d in samples.durations_ns[name]} == {1_000_000}


def test_where_there_is_but_one_subject_every_call_is_a_sample():
    timer = FakeTimer({"a": lambda call: 1.0 + call / 1e6})
    samples = interleave(timer.subjects, QUICK, clock=timer.clock)
    gaps = samples.starts_ns["a"][1:] - samples.starts_ns["a"][:-1]
    assert (gaps == samples.durations_ns["a"][:-1]).all()


def test_the_order_follows_from_the_seed():
    orders = []
    for seed in (1, 1, 2):
        timer = FakeTimer({"a": 1.0, "b": 1.0})
        interleave(timer.subjects, TimerSettings(seed=seed), clock=timer.clock)
        orders.append(timer.order)
    assert orders[0] == orders[1] != orders[2]


def test_sampling_goes_on_until_the_median_is_known_to_the_precision():
    random = np.random.default_rng(0)
    timer = FakeTimer({"a": lambda call: max(random.normal(10.0, 2.0), 1.0)})
    settings = TimerSettings(precision=0.005, time_cap_s=1e6)
    summary = summarize(interleave(timer.subjects, settings, clock=timer.clock).durations_ns["a"])
    assert (summary.high - summary.low) / 2 <= 0.005 * summary.median
    assert summary.samples > settings.min_samples


def test_the_time_cap_is_kept_and_said():
    timer = FakeTimer({"a": lambda call: 100.0 + call % 7 * 50})
    samples = interleave(timer.subjects, TimerSettings(time_cap_s=30), clock=timer.clock)
    assert samples.capped
    assert samples.duration_s < 30 + 20 * 0.4  # one window of rounds beyond the cap at most


def test_all_stay_in_the_rounds_until_each_is_known():
    random = np.random.default_rng(0)
    timer = FakeTimer({"calm": 1.0, "noisy": lambda call: float(random.exponential(1.0)) + 0.01})
    settings = TimerSettings(precision=0.05, time_cap_s=1e4, warmup_share=1e-4)
    samples = interleave(timer.subjects, settings, clock=timer.clock)
    counts = {name: len(d) for name, d in samples.durations_ns.items()}
    assert counts["calm"] == counts["noisy"] > settings.min_samples
    assert not samples.capped


def test_a_subject_that_stays_unknown_ends_with_the_most_samples():
    random = np.random.default_rng(0)
    timer = FakeTimer({"a": lambda call: float(random.exponential(1.0)) + 0.01})
    settings = TimerSettings(precision=1e-4, max_samples=1500, time_cap_s=1e4, warmup_share=1e-4)
    samples = interleave(timer.subjects, settings, clock=timer.clock)
    assert len(samples.durations_ns["a"]) == 1500
    assert not samples.capped


@pytest.mark.parametrize(("min_samples", "bounded"), [(460, False), (MIN_SAMPLES_P99, True)])
def test_a_99th_percentile_is_bounded_after_473_samples(min_samples, bounded):
    timer = FakeTimer({"a": lambda call: 2.0 if call % 97 == 0 else 1.0})
    settings = TimerSettings(min_samples=min_samples, precision=1.0)
    samples = interleave(timer.subjects, settings, clock=timer.clock)
    summary = summarize(samples.durations_ns["a"])
    assert (summary.p99 is not None, summary.p99_high is not None) == (bounded, bounded)


def test_no_collection_of_garbage_falls_into_a_sample():
    seen = []
    interleave({"a": lambda: seen.append(gc.isenabled())}, TimerSettings(time_cap_s=0.05))
    assert seen
    assert not any(seen)
    assert gc.isenabled()


def test_garbage_is_collected_again_after_a_failure():
    def fail() -> None:
        raise RuntimeError("subject failed")

    with pytest.raises(RuntimeError, match="subject failed"):
        interleave({"a": fail})
    assert gc.isenabled()


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="no topology was given"):
        interleave({})


def test_a_99th_percentile_needs_473_samples():
    assert summarize(range(1, MIN_SAMPLES_P99)).p99 is None
    assert summarize(range(1, MIN_SAMPLES_P99)).p99_high is None
    assert summarize(range(1, MIN_SAMPLES_P99 + 1)).p99 is not None


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=2000))
def test_a_summary_is_in_order(durations):
    summary = summarize(durations)
    assert summary.low <= summary.median <= summary.high <= summary.max
    if summary.p99 is not None and summary.p99_high is not None:
        assert summary.median <= summary.p99 <= summary.p99_high <= summary.max


@given(st.integers(MIN_SAMPLES_P99, 5000), st.sampled_from([0.5, 0.9, 0.99]))
def test_ranks_cover_their_quantile_with_the_confidence(number, quantile):
    low, high = interval_ranks(number, quantile)
    # The number of samples below the quantile is binomial: it must be low..high-1.
    coverage = binom.cdf(high - 1, number, quantile) - binom.cdf(low - 1, number, quantile)
    assert coverage >= 0.95


def test_intervals_cover_the_true_median_as_often_as_they_say():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        summary = summarize((random.exponential(1e6, 300)).astype(int))
        hits += summary.low <= np.log(2) <= summary.high
    low, high = binom.ppf([0.001, 0.999], 400, 0.95)
    assert low <= hits <= max(high, 400)


def test_counts_of_calls_are_those_of_the_samples_and_the_warm_up():
    timer = FakeTimer({"a": 1.0, "b": 2.0})
    settings = TimerSettings(min_samples=1000, burst=4)
    samples = interleave(timer.subjects, settings, clock=timer.clock)
    assert Counter(timer.order) == timer.calls
    # A round takes 15 ms, a window of the warm-up three of them, and a second is the least.
    warm_up = 3 * ceil(1000 / 45)
    for name, durations in samples.durations_ns.items():
        assert timer.calls[name] == 5 * (warm_up + len(durations) // 4)


# --- when one call follows another -----------------------------------------------------------


def starts_ms(load: Load, durations_ms: Sequence[float]) -> tuple[list[float], int]:
    """When calls that take so long begin, and how many of them late."""
    clock = FakeClock(0)
    pacer = Pacer(load, clock, clock.sleep)
    starts = []
    for duration_ms in durations_ms:
        pacer.wait()
        starts.append(clock() / 1e6)
        clock.sleep(duration_ms / 1e3)
    return starts, pacer.late


AT_100_HZ = Load(kind="paced", rate_hz=100.0)


@pytest.mark.parametrize(
    ("durations_ms", "expected_ms", "late"),
    [
        ([3, 3, 3, 3], [0, 10, 20, 30], 0),
        ([3, 12, 3, 3], [0, 10, 22, 30], 1),  # late, but the next frame is on time
        ([3, 10, 10, 3], [0, 10, 20, 30], 0),
        ([3, 25, 3, 3], [0, 10, 35, 45], 1),  # a frame is lost: slots begin anew
        ([15, 15, 15], [0, 15, 30], 2),
    ],
    ids=["on-time", "late", "just-in-time", "frame-lost", "overloaded"],
)
def test_a_paced_load_begins_each_call_in_its_slot(durations_ms, expected_ms, late):
    assert starts_ms(AT_100_HZ, durations_ms) == (expected_ms, late)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=30))
def test_a_paced_load_never_runs_ahead_of_its_rate(durations_ms):
    starts, late = starts_ms(AT_100_HZ, durations_ms)
    # Slots that are late may be followed by one on time: two calls are a slot apart, less the delay.
    delays = np.maximum(np.asarray(durations_ms) - 10, 0)
    gaps = np.diff(starts)
    assert all(gap >= duration - 1e-5 for gap, duration in zip(gaps, durations_ms, strict=False))
    assert starts[-1] >= 10 * (len(starts) - 1) - 1e-3
    assert late <= len(starts) - 1
    assert (late == 0) == (not delays[:-1].any())


def test_a_clock_that_is_set_back_does_not_stop_a_paced_load():
    clock = FakeClock(3600 * 10**9)
    pacer = Pacer(AT_100_HZ, clock, clock.sleep)
    pacer.wait()
    clock.now_ns = 5_000_000
    pacer.wait()
    pacer.wait()
    assert clock.now_ns == 15_000_000  # at once, and a slot later: not an hour
    assert pacer.late == 0


def test_after_idle_each_call_follows_a_rest():
    assert starts_ms(Load(kind="after-idle", gap_ms=5.0), [1, 2, 3]) == ([5, 11, 18], 0)
    assert starts_ms(Load(), [1, 2, 3]) == ([0, 1, 3], 0)


def test_samples_of_a_paced_load_begin_when_it_says():
    timer = FakeTimer({"a": lambda call: 12.0 if call % 100 == 99 else 3.0})
    samples = interleave(
        timer.subjects, QUICK, load=AT_100_HZ, clock=timer.clock, sleep=timer.sleep
    )
    gaps = Counter(np.diff(samples.starts_ns["a"]))
    assert set(gaps) == {10_000_000, 12_000_000, 8_000_000}
    assert samples.late == gaps[12_000_000] == 2  # of the kept ones: none of the warm-up


# --- what the device does meanwhile ----------------------------------------------------------


def test_the_device_is_looked_at_some_times_a_second():
    timer = FakeTimer({"a": 1.0, "b": 2.0})
    settings = TimerSettings(min_samples=1000, window=1000, look_s=0.1)
    samples = interleave(timer.subjects, settings, look=state, clock=timer.clock)
    gaps_ms = np.diff([look.time_ns for look in samples.looks]) / 1e6
    assert all(100 <= gap <= 104 for gap in gaps_ms[:-1])  # the last one ends the window
    assert gaps_ms.sum() == pytest.approx(3750, abs=1)  # 250 rounds
    assert samples.looks[0].time_ns <= samples.starts_ns["a"].min()
    assert samples.throttled == samples.dropped == {}


@hypothesis.settings(max_examples=10)
@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 300)), max_size=4),
    st.sampled_from([0.02, 0.05, 0.1]),
)
def test_a_sample_is_kept_if_the_looks_before_and_after_it_are_calm(spans, look_s):
    timer = FakeTimer({"a": 1.0, "b": 2.0})
    settings = TimerSettings(min_samples=150, precision=1.0, min_warmup_s=0.0, look_s=look_s)
    samples = interleave(
        timer.subjects,
        settings,
        look=throttling(timer, [(start, start + length) for start, length in spans]),
        clock=timer.clock,
        sleep=timer.sleep,
    )
    times = np.array([look.time_ns for look in samples.looks])
    hot = np.array(["hot" in look.throttle for look in samples.looks])
    for starts in samples.starts_ns.values():
        after = np.searchsorted(times, starts, side="right")
        assert not hot[after].any()
        assert all("hot" not in samples.looks[index - 1].state.throttle for index in after)
    assert sum(samples.dropped.values()) == samples.throttled.get("hot", 0)
    warm_up = 3 * 3
    for name, durations in samples.durations_ns.items():
        rounds = (len(durations) + samples.dropped.get(name, 0)) / 4
        assert timer.calls[name] == 5 * (warm_up + rounds)


def test_throttling_between_two_looks_is_seen_by_its_counter():
    timer = FakeTimer({"a": 1.0})
    samples = interleave(
        timer.subjects,
        QUICK,
        look=lambda: state(events={"oc1": int(timer.now_ns > 100e6), "steal_ticks": timer.now_ns}),
        clock=timer.clock,
        sleep=timer.sleep,
    )
    assert samples.throttled == {"oc1": samples.dropped["a"]}
    assert samples.dropped["a"] == 20
    assert [look.throttle for look in samples.looks].count(("oc1",)) == 1


def test_a_device_that_throttles_gets_more_and_more_time_to_recover():
    timer = FakeTimer({"a": 1.0})
    looks, pauses = [0], []

    def look() -> State:
        looks[0] += 1
        return state(*(["hot"] if 2 <= looks[0] <= 13 or looks[0] == 15 else []))

    def sleep(seconds: float) -> None:
        pauses.append(round(seconds, 3))
        timer.sleep(seconds)

    interleave(timer.subjects, QUICK, look=look, clock=timer.clock, sleep=sleep)
    growing = [0.05 * number for number in range(1, 10)]
    # The look after a hot one still judges what lay between them, so each span has one more.
    assert pauses == pytest.approx([*growing, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])


def test_throttled_samples_are_kept_where_that_was_asked_for():
    timer = FakeTimer({"a": 1.0})
    settings = TimerSettings(min_samples=200, min_warmup_s=0.0, keep_throttled=True)
    samples = interleave(timer.subjects, settings, look=lambda: state("hot"), clock=timer.clock)
    assert len(samples.durations_ns["a"]) == 200
    assert samples.dropped == {}
    assert all(look.throttle == ("hot",) for look in samples.looks)


def test_a_device_that_always_throttles_gives_no_profile_and_says_what_to_do():
    timer = FakeTimer({"a": 1.0})
    with pytest.raises(
        DeviceError, match=r"throttled whenever a was .*\(hot; \d+ .*cool or choose"
    ):
        interleave(
            timer.subjects,
            TimerSettings(time_cap_s=5),
            look=lambda: state("hot"),
            clock=timer.clock,
            sleep=timer.sleep,
        )


# --- interrupted, and taken up again ---------------------------------------------------------


def known(durations: int) -> dict[str, Taken]:
    return {"a": Taken([1_000_000 * index for index in range(durations)], [1_000_000] * durations)}


def test_what_is_known_well_enough_is_not_measured_again():
    timer = FakeTimer({"a": 5.0})
    samples = interleave(timer.subjects, QUICK, known=known(200), clock=timer.clock)
    assert timer.calls == {"a": 0}
    assert set(samples.durations_ns["a"]) == {1_000_000}
    assert samples.steady
    assert not samples.capped


def test_what_is_known_in_part_is_taken_over_and_gone_on_with():
    timer = FakeTimer({"a": 5.0, "b": 5.0})
    samples = interleave(timer.subjects, QUICK, known=known(150), clock=timer.clock)
    assert samples.durations_ns["a"].tolist() == [1_000_000] * 150 + [5_000_000] * 200
    assert samples.durations_ns["b"].tolist() == [5_000_000] * 200
    assert all(np.diff(samples.starts_ns["a"]) > 0)
    assert samples.starts_ns["b"].min() > samples.starts_ns["a"][149]


def test_what_is_known_of_others_is_left_out():
    timer = FakeTimer({"b": 1.0})
    samples = interleave(timer.subjects, QUICK, known=known(200), clock=timer.clock)
    assert set(samples.durations_ns) == {"b"}


spans_of_heat = st.lists(st.tuples(st.integers(0, 900), st.integers(901, 1200)), max_size=2)


@hypothesis.settings(max_examples=10)
@given(st.integers(0, 60), spans_of_heat)
def test_every_kept_sample_is_told_once_in_its_order(before, spans):
    timer = FakeTimer({"a": lambda call: 1.0 + 0.001 * call, "b": 2.0})
    told = {"a": Taken(), "b": Taken()}

    def keep(fresh: Mapping[str, Taken]) -> None:
        for name, taken in fresh.items():
            told[name].extend(taken)

    taken_over = known(before)
    samples = interleave(
        timer.subjects,
        TimerSettings(min_samples=100, precision=1.0, min_warmup_s=0.0, look_s=0.02),
        known=taken_over,
        keep=keep,
        look=throttling(timer, spans),
        clock=timer.clock,
        sleep=timer.sleep,
    )
    for name, durations in samples.durations_ns.items():
        old = taken_over.get(name, Taken())
        assert old.durations_ns + told[name].durations_ns == durations.tolist()
        assert old.starts_ns + told[name].starts_ns == samples.starts_ns[name].tolist()
        assert all(np.diff(samples.starts_ns[name]) > 0)


@pytest.mark.parametrize("windows", [1, 5, 9])
def test_a_measurement_that_was_killed_goes_on_with_all_that_was_told(windows):
    told = {"a": Taken()}
    left = [windows]

    def keep(fresh: Mapping[str, Taken]) -> None:
        told["a"].extend(fresh["a"])
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleave((first := FakeTimer({"a": 1.0})).subjects, QUICK, keep=keep, clock=first.clock)
    again = FakeTimer({"a": 2.0})
    samples = interleave(again.subjects, QUICK, known=told, clock=again.clock)
    assert samples.durations_ns["a"][: 20 * windows].tolist() == told["a"].durations_ns
    assert len(samples.durations_ns["a"]) == 200


def test_what_was_measured_later_begins_later():
    earlier = Samples(
        durations_ns={"a": np.array([3, 4])}, starts_ns={"a": np.array([0, 10])}, late=1
    )
    later = Samples(durations_ns={"b": np.array([5])}, starts_ns={"b": np.array([2])}, late=2)
    both = earlier.joined(later)
    assert {name: starts.tolist() for name, starts in both.starts_ns.items()} == {
        "a": [0, 10],
        "b": [14 + 2],
    }
    assert both.late == 3
    assert Samples().joined(later).starts_ns["b"].tolist() == [2]


# --- clocks that jump ------------------------------------------------------------------------


def jumping(timer: FakeTimer, jumps_ms: Mapping[int, int]) -> dict[str, Callable[[], object]]:
    """The timer's subject `a`; the clock jumps while it is called for those times."""
    subject = timer.subjects["a"]

    def call() -> None:
        subject()
        timer.now_ns += jumps_ms.get(timer.calls["a"], 0) * 1_000_000

    return {"a": call}


def test_a_sample_over_which_the_clock_was_set_back_is_dropped_and_counted():
    timer = FakeTimer({"a": 1.0})
    samples = interleave(jumping(timer, {100: -50, 150: -50}), QUICK, clock=timer.clock)
    assert samples.dropped == {"a": 2}
    assert samples.throttled == {CLOCK_JUMPED: 2}
    assert set(samples.durations_ns["a"]) == {1_000_000}


def test_a_clock_that_is_set_back_by_an_hour_costs_no_time():
    timer = FakeTimer({"a": 1.0})
    # While it warms up: what is left of that is taken from where the clock was.
    samples = interleave(jumping(timer, {30: -3_600_000}), clock=timer.clock)
    assert samples.steady
    assert samples.duration_s == pytest.approx(2.0, abs=0.1)


def test_a_clock_that_leaps_ahead_cannot_be_told_from_a_stall_so_the_sample_stays():
    timer = FakeTimer({"a": 1.0})
    samples = interleave(jumping(timer, {100: 700}), QUICK, clock=timer.clock)
    assert summarize(samples.durations_ns["a"]).max == 701.0
    assert samples.dropped == {}


def test_a_clock_that_leaps_over_the_time_cap_ends_the_sampling_and_says_so():
    timer = FakeTimer({"a": 1.0})
    samples = interleave(jumping(timer, {100: 3_600_000}), QUICK, clock=timer.clock)
    assert samples.capped
    assert len(samples.durations_ns["a"]) < QUICK.min_samples


@hypothesis.settings(max_examples=10)
@given(st.dictionaries(st.integers(1, 300), st.integers(-5000, 5000), max_size=8))
def test_whatever_the_clock_does_no_sample_is_negative_and_their_order_stays(jumps_ms):
    timer = FakeTimer({"a": 1.0})
    samples = interleave(jumping(timer, jumps_ms), QUICK, clock=timer.clock)
    assert samples.durations_ns["a"].min() >= 0
    assert all(np.diff(samples.starts_ns["a"]) >= 0)
    back = [call for call, jump in jumps_ms.items() if jump < -1]
    assert samples.throttled.get(CLOCK_JUMPED, 0) <= len(back)
