"""Verdicts on latencies: how often they err is simulated, on seeds that stay; the rest are laws."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import exp, log, sqrt
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy.signal import lfilter

from edgestitch.artifact import sha256
from edgestitch.errors import ArtifactError, MismatchError
from edgestitch.regression import (
    COLD,
    EFFECT,
    FIRST_PAIRS,
    MAX_RUNS,
    MIN_RUNS,
    PRECISION,
    Baseline,
    Bounded,
    DeviceKey,
    Limits,
    Run,
    bounded,
    clustering,
    compare,
    compare_stored,
    contract,
    fewest,
    fingerprint,
    gather,
    judge,
    load_baseline,
    looks,
    measure_comparison,
    measure_contract,
    measure_run,
    sequence_ranks,
    store,
    summed,
    synchronised,
)
from edgestitch.sensors import State
from edgestitch.testing import FakeTimer
from edgestitch.timer import interval_ranks

quantiles = st.floats(0.01, 0.99)
confidences = st.floats(0.5, 0.999)
positive_ms = st.floats(0.01, 1e4)


# --- intervals that hold whenever one looks --------------------------------------------------


@pytest.mark.parametrize("confidence", [0.8, 0.99])
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_the_true_quantile_is_in_the_interval_at_all_looks_at_once(quantile, confidence):
    sequences, longest = 1000, 4000
    random = np.random.default_rng([round(100 * quantile), round(100 * confidence)])
    below = np.cumsum(random.random((sequences, longest)) < quantile, axis=1)
    left = np.zeros(sequences, bool)
    # At every number at first, where most of the looks could go wrong, then as one looks.
    for number in {*range(1, 300), *looks(300, longest)}:
        low, high = sequence_ranks(number, quantile, confidence)
        found = below[:, number - 1]
        left |= (found < low) | (found >= high)
    error = 1 - confidence
    assert left.mean() <= error + 2.6 * sqrt(error * confidence / sequences)
    assert left.any() or confidence > 0.9  # the bound is not met by saying nothing


def test_an_interval_for_one_number_does_not_hold_at_all_looks():
    random = np.random.default_rng(1)
    below = np.cumsum(random.random((1000, 4000)) < 0.5, axis=1)
    left = np.zeros(1000, bool)
    for number in looks(20, 4000):
        low, high = interval_ranks(number, 0.5, 0.99)
        left |= (below[:, number - 1] < low) | (below[:, number - 1] >= high)
    assert left.mean() > 0.03  # which is why the other one is needed


@given(st.integers(1, 3000), quantiles, confidences)
def test_more_samples_move_both_ranks_up_and_never_past_each_other(number, quantile, confidence):
    low, high = sequence_ranks(number, quantile, confidence)
    next_low, next_high = sequence_ranks(number + 1, quantile, confidence)
    assert 0 <= low < high <= number + 1
    assert low <= next_low <= low + 1
    assert high <= next_high <= high + 1


@given(st.integers(1, 3000), quantiles, confidences, st.floats(1.0, 20.0))
def test_confidence_and_clustering_widen_an_interval(number, quantile, confidence, worth):
    low, high = sequence_ranks(number, quantile, confidence)
    for wider in (
        sequence_ranks(number, quantile, (1 + confidence) / 2),
        sequence_ranks(number, quantile, confidence, worth),
    ):
        assert wider[0] <= low
        assert wider[1] >= high


@given(st.integers(1, 3000), st.sampled_from([0.5, 0.75, 0.875, 0.9375]), confidences)
def test_the_ranks_of_the_opposite_quantile_are_mirrored(number, quantile, confidence):
    low, high = sequence_ranks(number, quantile, confidence)
    assert sequence_ranks(number, 1 - quantile, confidence) == (number + 1 - high, number + 1 - low)


@given(st.integers(10, 3000), st.sampled_from([0.5, 0.9, 0.99]))
def test_to_look_at_any_time_costs_a_wider_interval(number, quantile):
    low, high = sequence_ranks(number, quantile, 0.99)
    fixed_low, fixed_high = interval_ranks(number, quantile, 0.99)
    assert low <= fixed_low
    assert high >= fixed_high


@given(quantiles, confidences)
def test_fewest_is_the_least_number_that_bounds_a_quantile_from_above(quantile, confidence):
    least = fewest(quantile, confidence)
    assert sequence_ranks(least, quantile, confidence)[1] <= least
    assert all(
        sequence_ranks(fewer, quantile, confidence)[1] == fewer + 1
        for fewer in range(max(1, least - 5), least)
    )


def test_a_99th_percentile_is_bounded_by_662_samples():
    assert fewest(0.99) == 662
    assert contract([1.0] * 662, 1.0).verdict == "PASS"
    assert contract([1.0] * 661, 1.0).verdict == "INCONCLUSIVE"


@given(st.lists(positive_ms, min_size=1, max_size=300), quantiles)
def test_an_interval_encloses_the_quantile_of_the_samples(values, quantile):
    found = bounded(np.asarray(values), quantile)
    assert found.value in values
    assert sum(value <= found.value for value in values) >= quantile * len(values) - 1e-6
    assert sum(value < found.value for value in values) <= quantile * len(values)
    assert found.low is None or found.low <= found.value
    assert found.high is None or found.high >= found.value
    assert (found.half_width is None) == (found.low is None or found.high is None)


def test_a_quantile_is_the_smallest_sample_with_its_share_at_or_below():
    values = np.arange(1.0, 101.0)
    assert [bounded(values, q).value for q in (0.01, 0.07, 0.5, 0.99)] == [1, 7, 50, 99]


@given(st.permutations(range(50)), st.floats(0.1, 10))
def test_the_order_of_samples_does_not_matter_and_the_unit_scales(order, factor):
    values = np.geomspace(1, 3, 50)
    found, scaled = bounded(values, 0.5), bounded(values[list(order)] * factor, 0.5)
    assert found.low is not None
    assert found.high is not None
    assert [scaled.value, scaled.low, scaled.high] == pytest.approx(
        [found.value * factor, found.low * factor, found.high * factor]
    )
    assert scaled.half_width == pytest.approx(found.half_width)


def test_a_side_that_is_not_known_is_said():
    assert str(bounded(np.asarray([1.0]), 0.5)) == "1 [?, ?]"


@pytest.mark.parametrize(
    ("low", "high", "limit", "verdict"),
    [
        (1.0, 2.0, 2.0, "PASS"),
        (1.0, 2.0, 1.99, "INCONCLUSIVE"),
        (1.0, 2.0, 1.0, "INCONCLUSIVE"),
        (1.0, 2.0, 0.99, "FAIL"),
        (None, 2.0, 2.0, "PASS"),
        (None, 2.0, 1.0, "INCONCLUSIVE"),
        (1.0, None, 0.99, "FAIL"),
        (1.0, None, 99.0, "INCONCLUSIVE"),
        (None, None, 1.0, "INCONCLUSIVE"),
    ],
)
def test_a_verdict_is_clear_where_the_whole_interval_is_on_one_side(low, high, limit, verdict):
    assert judge(Bounded(quantile=0.5, value=1.5, low=low, high=high), limit) == verdict


def test_calls_that_are_slow_independently_are_worth_one_each():
    random = np.random.default_rng(2)
    found = [clustering(random.random(5000) < 0.02) for _ in range(200)]
    assert min(found) >= 1.0
    assert np.mean(found) < 1.15
    assert np.max(found) < 2.0


@pytest.mark.parametrize("length", [5, 20])
def test_calls_that_are_slow_together_are_worth_fewer(length):
    random = np.random.default_rng(length)
    hiccups = random.random((200, 5000 // length)) < 0.02
    found = [clustering(np.repeat(row, length)) for row in hiccups]
    assert 0.6 * length < np.mean(found) < 1.2 * length


@pytest.mark.parametrize("above", [[True] * 50, [True, False] * 49, [False] * 500, [True] * 500])
def test_of_too_few_calls_or_all_alike_nothing_is_said_about_clusters(above):
    assert clustering(np.asarray(above)) == 1.0


@given(st.integers(1, 2000), st.integers(1, 50_000))
def test_looks_grow_by_a_quarter_and_end_at_the_last(first, last):
    numbers = list(looks(first, last))
    assert numbers[-1] == last
    assert all(before < after <= before * 1.25 + 1 for before, after in pairwise(numbers))
    assert numbers[0] == min(first, last)


# --- contracts -------------------------------------------------------------------------------


def test_a_contract_is_kept_broken_or_one_cannot_tell():
    latencies = np.linspace(1, 2, 2000)
    kept, broken, near = (contract(latencies, budget) for budget in (2.5, 1.5, 1.99))
    assert [found.verdict for found in (kept, broken, near)] == ["PASS", "FAIL", "INCONCLUSIVE"]
    assert (kept.above, broken.above) == (0, 1000)
    assert kept.latency_ms.value == pytest.approx(1.99, abs=1e-3)
    assert "within 2.5 ms" in str(kept)
    assert "above 1.5 ms" in str(broken)
    assert "too near to 1.99 ms" in str(near)
    assert "has the budget of 1.99 ms inside" in near.reason
    assert kept.reason == broken.reason == ""


def test_too_few_calls_say_how_many_are_needed():
    found = contract([1.0] * 100, 2.0)
    assert found.verdict == "INCONCLUSIVE"
    assert "100 calls are too few: a quantile of 0.99 is bounded by 662 or more" in found.reason
    assert "not known to be within 2 ms" in str(found)
    assert contract([1.0] * 100, 2.0, quantile=0.9).verdict == "PASS"


def test_few_calls_suffice_where_all_are_too_slow():
    assert contract([3.0] * 5, 2.0).verdict == "FAIL"


def test_slow_calls_that_come_together_say_less():
    slow = np.zeros(4000, bool)
    slow[np.random.default_rng(0).choice(4000, 100, replace=False)] = True
    alone = contract(np.where(slow, 3.0, 1.0), 2.0)
    together = contract(np.where(np.sort(slow), 3.0, 1.0), 2.0)
    assert alone.verdict == "FAIL"
    assert together.verdict == "INCONCLUSIVE"
    assert together.clustering > 10 > alone.clustering


def test_a_contract_at_its_very_limit_is_rarely_decided_at_all():
    random = np.random.default_rng(3)
    verdicts = []
    for _ in range(300):
        latencies = np.where(random.random(4000) < 0.01, 3.0, 1.0)
        seen = (contract(latencies[:number], 2.0).verdict for number in looks(662, 4000))
        verdicts.append(next((one for one in seen if one != "INCONCLUSIVE"), "INCONCLUSIVE"))
    # Half a percent on either side, and what three hundred draws may add.
    assert verdicts.count("PASS") <= 6
    assert verdicts.count("FAIL") <= 6


@given(st.lists(positive_ms, min_size=1, max_size=900), positive_ms)
def test_a_larger_budget_never_turns_a_kept_contract(values, budget):
    order = ["FAIL", "INCONCLUSIVE", "PASS"]
    found = [contract(values, budget * factor) for factor in (1.0, 1e9)]
    assert order.index(found[0].verdict) <= order.index(found[1].verdict)
    assert found[0].above + sum(value <= budget for value in values) == found[0].samples


@pytest.mark.parametrize(
    ("latencies", "said"),
    [
        ([], r"one at least; found shape \(0,\)"),
        ([[1.0, 2.0]], r"found shape \(1, 2\)"),
        ([1.0, float("nan"), 2.0], "latency 1 of 3 is nan, and 1 in all"),
        ([-1.0, 0.0], r"latency 0 of 2 is -1.0, and 2 in all"),
        ([float("inf")], "latency 0 of 1 is inf"),
    ],
)
def test_what_is_no_latency_is_refused(latencies, said):
    with pytest.raises(ValueError, match=said):
        contract(latencies, 1.0)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(ValueError, match="a latency budget is a positive number of milliseconds"):
        contract([1.0], budget)


@pytest.mark.parametrize("share", [0.0, 1.0, 99.0, float("nan")])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match=r"a quantile lies between 0 and 1, as 0.99 does"):
        contract([1.0], 1.0, quantile=share)
    with pytest.raises(ValueError, match=r"a confidence lies between 0 and 1, as 0.99 does"):
        compare([1.0], [1.0], confidence=share)


# --- comparisons: how often they err ---------------------------------------------------------


def jitter(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.exp(0.03 * random.standard_normal(shape))


def spikes(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """One call in twenty is slower by a factor without a variance."""
    return jitter(random, shape) * np.where(
        random.random(shape) < 0.05, 1 + random.pareto(1, shape), 1
    )


def drift(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Half as slow again at the end, and back and forth meanwhile."""
    time = np.linspace(0, 1, shape[1])
    waves = 1 + 0.2 * np.sin(2 * np.pi * (8 * time + random.random((shape[0], 1))))
    return jitter(random, shape) * (1 + 0.5 * time) * waves


def autocorrelated(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A hundred calls long, and a fifth wide."""
    fast = np.exp(0.03 * random.standard_normal(shape))
    slow = lfilter([1.0], [1.0, -0.99], random.standard_normal(shape), axis=1)
    latencies: np.ndarray = fast * np.exp(0.2 * sqrt(1 - 0.99**2) * slow)
    return latencies


def stolen(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Someone else takes the core for tens of calls, and then all take twice as long."""
    begins = random.random(shape) < 0.01
    busy = lfilter([1.0] * 30, [1.0], begins, axis=1) > 0.5
    return jitter(random, shape) * np.where(busy, 2.0, 1.0)


NOISES = [jitter, spikes, drift, autocorrelated, stolen]
Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def sides(noise: Noise, slowdown: float, times: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Latencies of candidate and baseline [times, pairs], in random order pair by pair."""
    random = np.random.default_rng([times, pairs])
    slots = noise(random, (times, 2 * pairs)).reshape(times, pairs, 2)
    first = random.random((times, pairs, 1)) < 0.5
    now, before = np.moveaxis(np.where(first, slots, slots[..., ::-1]), -1, 0)
    return now * (1 + slowdown), before


def decided(now: np.ndarray, before: np.ndarray, effect: float) -> tuple[list[str], np.ndarray]:
    """Verdict and number of pairs of each row, as `compare` gives them when looked at by turns."""
    times, most = now.shape
    below = np.cumsum(now / before <= sqrt(1 + effect), axis=1)
    verdicts, pairs = np.full(times, "INCONCLUSIVE", dtype=object), np.full(times, most)
    for number in looks(FIRST_PAIRS, most):
        low, high = sequence_ranks(number, 0.5)
        open_ = verdicts == "INCONCLUSIVE"
        count = below[:, number - 1]
        pairs[open_ & ((count >= high) | (count < low))] = number
        verdicts[open_ & (count >= high)] = "PASS"
        verdicts[open_ & (count < low)] = "FAIL"
    return list(verdicts), pairs


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("slowdown", [0.0, 0.025, 0.05])
def test_the_simulation_decides_as_compare_does(noise, slowdown):
    now, before = sides(noise, slowdown, 6, 300)
    verdicts, pairs = decided(now, before, EFFECT)
    for row, (verdict, number) in enumerate(zip(verdicts, pairs, strict=True)):
        assert compare(now[row, :number], before[row, :number]).verdict == verdict


@pytest.mark.parametrize("noise", NOISES)
def test_of_a_thousand_changes_of_nothing_one_in_a_hundred_at_most_is_an_alarm(noise):
    verdicts, pairs = decided(*sides(noise, 0.0, 1000, 3000), EFFECT)
    assert verdicts.count("FAIL") <= 10
    assert verdicts.count("PASS") >= 950
    assert np.median(pairs) <= 1000


@pytest.mark.parametrize("noise", NOISES)
def test_a_slowdown_of_5_percent_is_found(noise):
    verdicts, pairs = decided(*sides(noise, 0.05, 1000, 3000), EFFECT)
    assert verdicts.count("FAIL") >= 950
    assert verdicts.count("PASS") <= 10
    assert np.median(pairs) <= 1000


@pytest.mark.parametrize("noise", NOISES)
def test_a_slowdown_at_the_very_limit_is_decided_in_one_of_a_hundred(noise):
    verdicts, _ = decided(*sides(noise, sqrt(1 + EFFECT) - 1, 1000, 3000), EFFECT)
    # Half a percent on either side, and what a thousand draws may add.
    assert verdicts.count("FAIL") <= 12
    assert verdicts.count("PASS") <= 12


def test_a_slowdown_of_2_percent_is_found_where_that_is_asked_for():
    verdicts, _ = decided(*sides(jitter, 0.02, 500, 6000), 0.02)
    assert verdicts.count("FAIL") >= 475
    verdicts, _ = decided(*sides(jitter, 0.0, 500, 6000), 0.02)
    assert verdicts.count("FAIL") <= 5


@given(st.integers(0, 1000), st.floats(-0.2, 0.2))
def test_swapping_the_sides_inverts_the_ratio(seed, slowdown):
    random = np.random.default_rng(seed)
    now, before = 1 + random.random((2, 101))
    there, back = compare(now * (1 + slowdown), before), compare(before, now * (1 + slowdown))
    assert back.ratio.value == pytest.approx(1 / there.ratio.value)
    assert there.ratio.low is not None
    assert there.ratio.high is not None
    assert back.ratio.low == pytest.approx(1 / there.ratio.high)
    assert back.ratio.high == pytest.approx(1 / there.ratio.low)


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_the_unit_of_both_sides_does_not_matter(seed, factor):
    now, before = 1 + np.random.default_rng(seed).random((2, 100))
    found, scaled = compare(now, before), compare(now * factor, before * factor)
    assert scaled.verdict == found.verdict
    assert scaled.ratio.value == pytest.approx(found.ratio.value)
    assert scaled.baseline_p50_ms == pytest.approx(found.baseline_p50_ms * factor)


def test_a_comparison_says_what_it_found():
    same = compare([1.0] * 20, [1.0] * 20)
    slower = compare([1.2] * 20, [1.0] * 20)
    faster = compare([0.5] * 20, [1.0] * 20)
    unknown = compare([1.0] * 3, [1.0] * 3)
    assert [found.verdict for found in (same, slower, faster, unknown)] == [
        "PASS",
        "FAIL",
        "PASS",
        "INCONCLUSIVE",
    ]
    assert "1 [1, 1] times the baseline, not slower by 5%" in str(same)
    assert "1.2 [1.2, 1.2] times the baseline, slower by 5%" in str(slower)
    assert "slower or not, one cannot tell" in str(unknown)
    assert unknown.reason.startswith("3 pairs are too few for the noise here")
    assert (same.pairs, same.runs, same.samples) == (20, None, 20)


def test_sides_of_different_length_are_no_pairs():
    with pytest.raises(ValueError, match="3 latencies of the candidate and 2 are no pairs"):
        compare([1.0] * 3, [1.0] * 2)


@pytest.mark.parametrize("effect", [0.0, -0.05, float("nan"), float("inf")])
def test_what_is_no_effect_is_refused(effect):
    with pytest.raises(ValueError, match="an effect is the relative slowdown to be found"):
        compare([1.0], [1.0], effect=effect)


# --- stored baselines ------------------------------------------------------------------------

KEY = DeviceKey(device="cpu", hardware="a cpu", cores=4, module=None, power_mode=None, locked=True)
VERSIONS = {"python": "3.10.12", "torch": "2.8.0"}


def run_of(median_ms: float, *, spread: float = 0.001, seed: int = 0, **versions: str) -> Run:
    jitter_ms = spread * np.random.default_rng(seed).standard_normal(2001)
    jitter_ms -= np.median(jitter_ms)
    return summed(median_ms * np.exp(jitter_ms), {**VERSIONS, **versions})


def baseline_of(*medians_ms: float) -> Baseline:
    runs = tuple(run_of(one_ms, seed=seed) for seed, one_ms in enumerate(medians_ms))
    return Baseline(called="test_it", key=KEY, runs=runs)


def test_a_run_keeps_how_it_drifted():
    run = summed(np.linspace(1, 2, 1000), VERSIONS, throttled={"hot": 20})
    assert run.samples == 1000
    assert run.blocks_ms == tuple(sorted(run.blocks_ms))
    assert len(run.blocks_ms) == 10
    assert run.blocks_ms[0] == pytest.approx(1.05, abs=0.001)
    assert run.p50_ms.value == pytest.approx(1.5, abs=0.001)
    assert len(summed(np.ones(3), VERSIONS).blocks_ms) == 3
    with pytest.raises(ValueError, match="one at least"):
        summed(np.empty(0), VERSIONS)


@pytest.mark.parametrize("number", range(1, MIN_RUNS))
def test_of_too_few_stored_runs_nothing_is_said(number):
    found = compare_stored(run_of(9.0), baseline_of(*[1.0] * number))
    assert found.verdict == "INCONCLUSIVE"
    assert f"the baseline has {number} runs, and 3 are the fewest" in found.reason
    assert found.ratio.low is None
    assert found.ratio.value == pytest.approx(9.0)


def test_a_stored_baseline_finds_what_is_slower():
    stored = baseline_of(1.0, 1.001, 0.999, 1.002, 0.998)
    assert compare_stored(run_of(1.0), stored).verdict == "PASS"
    slower = compare_stored(run_of(1.06), stored)
    assert slower.verdict == "FAIL"
    assert slower.baseline_p50_ms == pytest.approx(1.0, abs=1e-4)
    assert (slower.pairs, slower.runs) == (None, 5)
    assert "5 stored runs" in str(slower)


@given(st.floats(0.0005, 0.05), st.floats(1.5, 5.0))
def test_runs_that_scatter_more_widen_the_interval(scatter, times):
    narrow, wide = (
        compare_stored(run_of(1.0), baseline_of(*np.exp(size * np.asarray([-1, 0, 1, -1, 1]))))
        for size in (scatter, scatter * times)
    )
    assert narrow.ratio.high is not None
    assert wide.ratio.high is not None
    assert narrow.ratio.high <= wide.ratio.high
    assert wide.ratio.low == pytest.approx(wide.ratio.value**2 / wide.ratio.high)


def test_more_runs_with_the_same_scatter_narrow_the_interval():
    few, many = (baseline_of(*[0.99, 1.01] * half) for half in (2, 10))
    widths = [compare_stored(run_of(1.0), stored).ratio.half_width or 0.0 for stored in (few, many)]
    assert 0.0 < widths[1] < 0.7 * widths[0]
    # As the documentation has it: with twenty runs about three times their scatter.
    assert log(1 + widths[1]) == pytest.approx(3 * 0.01, rel=0.1)


def test_runs_that_agree_by_chance_are_known_no_better_than_each_of_them():
    runs = tuple(run_of(1.0, spread=0.5, seed=seed) for seed in range(5))
    stored = Baseline(called="test_it", key=KEY, runs=runs)
    found = compare_stored(run_of(1.0, spread=0.5), stored)
    assert found.verdict == "INCONCLUSIVE"
    assert "5 runs scatter too much" in found.reason


@pytest.mark.parametrize("number", [5, 10])
def test_a_stored_baseline_errs_as_rarely_as_it_says(number):
    """Of runs that scatter by half a percent; one more of the same, and one that is slower."""
    random = np.random.default_rng(number)
    like = run_of(1.0, spread=1e-4)

    def drawn(factor: float = 1.0) -> Run:
        value = factor * exp(0.005 * random.standard_normal())
        return replace(like, p50_ms=replace(like.p50_ms, value=value))

    verdicts: dict[float, list[str]] = {0.0: [], 0.05: [], sqrt(1.05) - 1: []}
    for _ in range(400):
        stored = Baseline(called="test_it", key=KEY, runs=tuple(drawn() for _ in range(number)))
        for slowdown, found in verdicts.items():
            found.append(compare_stored(drawn(1 + slowdown), stored).verdict)
    assert verdicts[0.0].count("FAIL") == 0
    assert verdicts[0.05].count("PASS") == 0
    assert verdicts[sqrt(1.05) - 1].count("FAIL") <= 400 * 0.015
    assert verdicts[sqrt(1.05) - 1].count("PASS") <= 400 * 0.015
    if number == 10:
        assert verdicts[0.05].count("FAIL") >= 0.8 * 400


def test_other_software_is_told_when_compared():
    found = compare_stored(run_of(1.0, torch="2.9.0", driver="1"), baseline_of(1.0, 1.0, 1.0))
    assert found.changed == ("driver none -> 1", "torch 2.8.0 -> 2.9.0")
    assert "since then driver none -> 1, torch 2.8.0 -> 2.9.0" in str(found)
    assert found.verdict == "PASS"


def test_runs_are_added_and_the_newest_kept(tmp_path):
    path = tmp_path / "of" / "it.json"
    for index in range(MAX_RUNS + 2):
        stored = store(run_of(1.0 + index / 100), path, "test_it", KEY)
        assert len(stored.runs) == min(index + 1, MAX_RUNS)
    assert load_baseline(path, "test_it", KEY) == stored
    assert stored.runs[-1].p50_ms.value == pytest.approx(1 + (MAX_RUNS + 1) / 100)
    assert stored.runs[0].p50_ms.value == pytest.approx(1.02)
    assert [one.name for one in path.parent.iterdir()] == ["it.json"]


def test_a_store_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "it.json"
    store(run_of(1.0), path, "test_it", KEY)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left on device; nothing was changed"):
        store(run_of(1.0), path, "test_it", KEY)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("field", "here"),
    [
        ("device", "jetson-orin"),
        ("hardware", "another cpu"),
        ("cores", 8),
        ("module", "p3701-0005"),
        ("power_mode", "MAXN"),
        ("locked", False),
    ],
)
def test_a_baseline_of_another_device_is_refused_with_both_named(tmp_path, field, here):
    path = tmp_path / "it.json"
    store(run_of(1.0), path, "test_it", KEY)
    other = replace(KEY, **{field: here})
    said = f"it.json and this machine .* {field} is {getattr(KEY, field)} and {here}"
    with pytest.raises(MismatchError, match=said):
        load_baseline(path, "test_it", other)
    with pytest.raises(MismatchError, match=said):
        store(run_of(1.0), path, "test_it", other)


def test_a_baseline_of_another_call_is_refused(tmp_path):
    path = tmp_path / "it.json"
    store(run_of(1.0), path, "test_it", KEY)
    said = r"it.json is the baseline of test_it, not of test_that; give each test a file of its own"
    with pytest.raises(ArtifactError, match=said):
        load_baseline(path, "test_that", KEY)
    with pytest.raises(ArtifactError, match=said):
        store(run_of(1.0), path, "test_that", KEY)


def test_runs_of_other_software_do_not_go_into_one_baseline(tmp_path):
    path = tmp_path / "it.json"
    store(run_of(1.0), path, "test_it", KEY)
    before = path.read_bytes()
    with pytest.raises(MismatchError, match=r"other software \(torch 2.8.0 -> 2.9.0\).*delete"):
        store(run_of(1.0, torch="2.9.0"), path, "test_it", KEY)
    assert path.read_bytes() == before


def damaged(content: dict[str, object], damage: str) -> bytes:
    data = content["data"]
    assert isinstance(data, dict)
    if damage == "cut short":
        return msgspec.json.encode(content)[:-20]
    if damage == "altered":
        data["called"] = "test_other"
    if damage == "of version 0":
        content["version"] = 0
    if damage == "of another kind":
        content["kind"] = "plan"
    if damage == "with a field unknown":
        data["median"] = 1.0
        content["digest"] = sha256(msgspec.json.encode(data, order="sorted"))
    return msgspec.json.encode(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("cut short", "cut short"),
        ("altered", "was altered"),
        ("of version 0", "latency-baseline of version 0, this edgestitch reads version 1"),
        ("of another kind", "holds 'plan'"),
        ("with a field unknown", "no valid latency-baseline"),
    ],
)
def test_a_damaged_baseline_is_refused_and_stays_as_it_is(tmp_path, damage, said):
    path = tmp_path / "it.json"
    store(run_of(1.0), path, "test_it", KEY)
    content = damaged(msgspec.json.decode(path.read_bytes()), damage)
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=said):
        load_baseline(path, "test_it", KEY)
    with pytest.raises(ArtifactError, match=said):
        store(run_of(1.0), path, "test_it", KEY)
    assert path.read_bytes() == content


def test_a_missing_baseline_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*it.json"):
        load_baseline(tmp_path / "it.json", "test_it", KEY)


def test_this_machine_has_a_fingerprint_that_stays_the_same():
    found = fingerprint(backend="eager fp32")
    assert found.key == fingerprint().key
    assert found.versions["backend"] == "eager fp32"
    assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(found.versions.values())


# --- measuring -------------------------------------------------------------------------------

COOL = State(clocks_mhz={}, temperatures_c={}, throttle=(), events={})
HOT = replace(COOL, throttle=("hot",))


@pytest.fixture(scope="module", autouse=True)
def _collections_are_quick() -> Iterator[None]:
    """Before each look the timer collects garbage, through all that the whole suite has imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def noisy(median_ms: float, *, sigma: float = 0.02, seed: int = 0) -> Callable[[int], float]:
    drawn = median_ms * np.exp(sigma * np.random.default_rng(seed).standard_normal(60_000))
    return lambda call: float(drawn[call % len(drawn)])


def test_a_contract_is_measured_until_it_is_clear():
    timer = FakeTimer({"call": noisy(5.0)})
    found, latencies = measure_contract(timer.subjects["call"], 10.0, clock=timer.clock)
    assert found.verdict == "PASS"
    assert found.samples == len(latencies) < 700
    assert found == contract(latencies, 10.0)


def test_a_contract_near_its_budget_is_measured_until_the_time_is_up():
    timer = FakeTimer({"call": noisy(5.0)})
    budget = 5.0 * exp(0.02 * 2.326)  # the true 99th percentile
    limits = Limits(max_s=8.0)
    found, latencies = measure_contract(
        timer.subjects["call"], budget, limits=limits, clock=timer.clock
    )
    assert found.verdict == "INCONCLUSIVE"
    assert 8.0 <= timer.now_ns / 1e9 < 8.5
    assert latencies.sum() < 7000  # the warm-up is not among them


def test_fast_calls_are_sampled_for_a_least_time():
    timer = FakeTimer({"call": 0.1})
    _, latencies = measure_contract(timer.subjects["call"], 10.0, clock=timer.clock)
    assert latencies.sum() >= 1000.0
    assert set(latencies) == {0.1}


def test_a_least_time_is_never_longer_than_the_number_of_samples_allows():
    timer = FakeTimer({"call": 0.001})
    limits = Limits(max_samples=2000, min_s=0.1)
    _, latencies = measure_contract(timer.subjects["call"], 1.0, limits=limits, clock=timer.clock)
    assert 1900 < len(latencies) <= 2020


def test_what_is_not_measurable_is_said_before_anything_is_called():
    timer = FakeTimer({"call": 1.0})
    call = timer.subjects["call"]
    for use in (
        lambda: measure_contract(call, -1.0, clock=timer.clock),
        lambda: measure_contract(call, 1.0, quantile=99, clock=timer.clock),
        lambda: measure_comparison(call, call, effect=0, clock=timer.clock),
        lambda: measure_comparison(call, call, confidence=1, clock=timer.clock),
    ):
        with pytest.raises(ValueError, match=r"found|positive"):
            use()
    assert timer.calls["call"] == 0


@pytest.mark.parametrize("slowdown", [0.0, 0.05, -0.1])
def test_comparisons_are_measured_until_they_are_clear(slowdown):
    verdicts, pairs = [], []
    for seed in range(20):
        timer = FakeTimer(
            {
                "now": noisy(5.0 * (1 + slowdown), sigma=0.05, seed=2 * seed),
                "before": noisy(5.0, sigma=0.05, seed=2 * seed + 1),
            }
        )
        found, latencies = measure_comparison(
            timer.subjects["now"],
            timer.subjects["before"],
            limits=Limits(seed=seed),
            clock=timer.clock,
        )
        assert found.samples == len(latencies) == found.pairs
        verdicts.append(found.verdict)
        pairs.append(found.samples)
    assert verdicts == ["FAIL" if slowdown > 0 else "PASS"] * 20
    assert np.median(pairs) < 600


def test_sides_of_a_comparison_are_called_by_turns_in_random_order():
    timer = FakeTimer({"now": 5.0, "before": 5.0})
    measure_comparison(timer.subjects["now"], timer.subjects["before"], clock=timer.clock)
    bursts = np.asarray(timer.order).reshape(-1, 2, 2)
    assert (bursts[:, :, 0] == bursts[:, :, 1]).all()  # the first of two pays for the switch
    assert (bursts[:, 0, 0] != bursts[:, 1, 0]).all()
    assert 0.3 < np.mean(bursts[:, 0, 0] == "now") < 0.7


def test_a_comparison_at_its_limit_ends_when_the_time_is_up():
    limit = sqrt(1.05)
    timer = FakeTimer({"now": noisy(5 * limit, sigma=0.1), "before": noisy(5, sigma=0.1, seed=1)})
    found, _ = measure_comparison(
        timer.subjects["now"],
        timer.subjects["before"],
        limits=Limits(max_s=6.0),
        clock=timer.clock,
    )
    assert found.verdict == "INCONCLUSIVE"
    assert 6.0 <= timer.now_ns / 1e9 < 7.0


def test_samples_of_a_throttling_device_count_and_are_told():
    timer = FakeTimer({"call": noisy(5.0)})

    def look() -> State:
        return HOT if timer.now_ns > 2e9 else COOL

    found, latencies = measure_contract(timer.subjects["call"], 10.0, look=look, clock=timer.clock)
    assert 0 < found.throttled["hot"] < len(latencies)
    assert f"throttled: {found.throttled['hot']} hot" in str(found)
    timer = FakeTimer({"now": 5.0, "before": 5.0})
    compared, _ = measure_comparison(
        timer.subjects["now"], timer.subjects["before"], look=lambda: HOT, clock=timer.clock
    )
    assert compared.throttled["hot"] >= 2 * compared.samples
    assert "throttled:" in str(compared)


def test_a_run_for_a_baseline_is_as_long_as_its_median_needs():
    timer = FakeTimer({"call": noisy(5.0, sigma=0.03)})
    run, latencies = measure_run(timer.subjects["call"], VERSIONS, clock=timer.clock)
    assert run.p50_ms.half_width is not None
    assert run.p50_ms.half_width <= PRECISION
    assert run.samples == len(latencies) > fewest(0.99)
    assert run.steady
    assert run.p99_ms.high is not None
    assert run.versions == VERSIONS


def test_a_run_that_never_settles_says_so():
    timer = FakeTimer({"call": lambda call: 1.0 + call / 100})
    run, _ = measure_run(
        timer.subjects["call"], VERSIONS, limits=Limits(max_s=10), clock=timer.clock
    )
    assert not run.steady


def test_after_each_look_the_first_calls_do_not_count():
    timer = FakeTimer({"call": 1.0})
    sizes = [
        len(gathered.durations_ms["call"])
        for gathered in gather(timer.subjects, [100, 200, 300], Limits(), clock=timer.clock)
    ]
    assert sizes == [100, 200 - COLD, 300 - 2 * COLD]


def test_looks_that_are_no_longer_apart_than_a_window_take_nothing_new():
    timer = FakeTimer({"a": 1.0, "b": 2.0})
    seen = list(gather(timer.subjects, [20, 25, 32], Limits(), clock=timer.clock))
    assert [len(gathered.durations_ms["a"]) for gathered in seen] == [20, 40, 40]
    assert seen[-1].duration_s == pytest.approx(0.12)
    assert seen[-1].steady


def test_an_exception_of_a_call_passes_through():
    def fails() -> None:
        raise RuntimeError("no frame")

    with pytest.raises(RuntimeError, match="no frame"):
        measure_contract(fails, 10.0)
    with pytest.raises(RuntimeError, match="no frame"):
        measure_comparison(lambda: None, fails)
    with pytest.raises(RuntimeError, match="no frame"):
        measure_run(fails, VERSIONS)


@pytest.mark.parametrize("initialized", [True, False])
def test_a_call_waits_for_the_gpu_where_one_is_used(monkeypatch, initialized):
    done: list[str] = []
    cuda = SimpleNamespace(
        is_initialized=lambda: initialized, synchronize=lambda: done.append("synchronized")
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))

    def call() -> str:
        done.append("called")
        return "result"

    assert synchronised(call)() == "result"
    assert done == ["called", "synchronized"][: 1 + initialized]


def test_to_measure_imports_no_torch():
    code = """
import sys
from edgestitch.regression import Limits, compare, measure_contract
found, _ = measure_contract(lambda: None, 1e3, limits=Limits(max_s=0.2, min_s=0.01))
print(found.verdict, compare([1.0] * 20, [1.0] * 20).verdict, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["PASS", "PASS", "False"], done.stderr
