"""The timer: settled, interleaved, enough; on a clock that only the subjects move."""

import gc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from edgestitch.testing import FakeTimer
from edgestitch.timer import (
    MIN_SAMPLES_P99,
    TimerSettings,
    interleave,
    interval_ranks,
    summarize,
)


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


def test_every_subject_is_called_once_a_round_in_varying_order():
    timer = FakeTimer({"a": 1.0, "b": 1.0, "c": 1.0})
    interleave(timer.subjects, TimerSettings(min_samples=500), clock=timer.clock)
    rounds = [tuple(timer.order[i : i + 3]) for i in range(0, len(timer.order) - 2, 3)]
    assert all(set(names) == {"a", "b", "c"} for names in rounds)
    assert len(set(rounds)) == 6


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


def test_a_finished_subject_leaves_the_rounds_to_the_others():
    random = np.random.default_rng(0)
    timer = FakeTimer({"calm": 1.0, "noisy": lambda call: float(random.exponential(1.0)) + 0.01})
    samples = interleave(timer.subjects, TimerSettings(time_cap_s=1e6), clock=timer.clock)
    counts = {name: len(d) for name, d in samples.durations_ns.items()}
    assert counts["calm"] == 1000 < counts["noisy"]


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
    samples = interleave(timer.subjects, clock=timer.clock)
    kept = {name: len(d) for name, d in samples.durations_ns.items()}
    assert Counter(timer.order) == timer.calls
    assert all(timer.calls[name] - kept[name] == 3 * 20 for name in kept)
