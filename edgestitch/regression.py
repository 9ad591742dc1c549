"""Verdicts on latencies: a budget is kept, or a change made nothing slower; or one cannot tell.

    a contract      quantile of one call's latency           against the budget
    a comparison    median of candidate / baseline by pairs  against half of the effect to be found

Both are a quantile with an interval against a limit: PASS if the whole interval is below, FAIL if
it is above, INCONCLUSIVE if the limit lies within. Nothing is assumed of how latencies are
distributed: the ends are order statistics. Calls are taken until the verdict is clear, so the interval
holds at every number of calls at once (`sequence_ranks`): stopping when it is clear costs nothing.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from math import ceil, exp, inf, isfinite, lgamma, log, sqrt
from pathlib import Path
from platform import python_version
from statistics import median
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
from msgspec.structs import replace

from .artifact import Artifact, Value, load, save
from .device import detect
from .environment import PACKAGES
from .errors import ArtifactError, MismatchError
from .profile import require_equal
from .sensors import State, find_sensors
from .timer import Clock, Taken, TimerSettings, interleave

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]

CONFIDENCE = 0.99
"""Of an interval, both sides and all looks together: of a hundred contracts that hold exactly, or
changes that are exactly at the limit, half a one fails."""
EFFECT = 0.05
EFFECT_LOCKED = 0.02
"""Slowdown that is to be found, relative: where clocks are free, and where they are pinned."""
FIRST_PAIRS = 20
"""At the first look of a comparison; eleven that agree are the fewest which tell anything."""
MIN_RUNS = 3
"""Of a stored baseline, to say anything of how much runs differ."""
MAX_RUNS = 30
"""Of a stored baseline: the newest are kept."""
BLOCKS = 10
PRECISION = 0.005
"""Relative half-width of the interval of the median with which a stored run is long enough."""


# --- intervals that hold whenever one looks --------------------------------------------------


def sequence_ranks(
    number: int, quantile: float, confidence: float = CONFIDENCE, clustering: float = 1.0
) -> tuple[int, int]:
    """Ranks, from 1, of order statistics that enclose a quantile at every number of samples at once.

    As `timer.interval_ranks`, which holds for one number that was fixed beforehand; a rank of 0 or of
    `number + 1` says that the samples are too few for that side.

    With x of n samples above the true quantile, whose share is p = 1 - quantile, and B the beta
    function, the mixture of likelihood ratios

        M(n) = B(a + x, b + n - x) / B(a, b) / (p^x (1 - p)^(n - x))

    is a martingale that begins at 1, so that with probability `confidence` it stays below
    1 / (1 - confidence) for ever (Ville 1939; Robbins 1970; for quantiles Howard and Ramdas 2022). The
    counts for which it does are the interval. The prior's mean is p, its weight that of
    1 / min(p, 1 - p) samples: with p = 0.01, 662 samples none of which is above are the fewest
    that bound the quantile from above at 99 %.

    `clustering` is the number of samples that are worth one independent sample.
    """
    middle = min(max(round(number * quantile), 0), number)
    limit = -log(1 - confidence)

    def plausible(below: int) -> bool:
        return _log_mixture(below / clustering, number / clustering, quantile) < limit

    # M falls towards the middle and rises after it.
    low = _first(plausible, 0, middle)
    high = number - _first(lambda above: plausible(number - above), 0, number - middle)
    return low, high + 1


def _log_mixture(below: float, number: float, quantile: float) -> float:
    rare = min(quantile, 1 - quantile)
    a, b, above = (1 - quantile) / rare, quantile / rare, number - below
    mixed = _log_beta(a + above, b + below) - _log_beta(a, b)
    return mixed - above * log(1 - quantile) - below * log(quantile)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest integer for which something holds that holds from there to `high`."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def fewest(quantile: float, confidence: float = CONFIDENCE) -> int:
    """Samples that are needed, all of them below a limit, to be sure that the quantile is below it."""

    def bounded(number: int) -> bool:
        return sequence_ranks(number, quantile, confidence)[1] <= number

    number = 1
    while not bounded(number):
        number *= 2
    return _first(bounded, number // 2, number)


class Bounded(Value, frozen=True, kw_only=True):
    """A quantile of samples, and an interval of the true one."""

    quantile: float
    value: float
    low: float | None
    high: float | None
    """`None`: too few samples for that side."""

    @property
    def half_width(self) -> float | None:
        """Of the interval, relative to the value."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2 / self.value

    def __str__(self) -> str:
        ends = ("?" if end is None else f"{end:.4g}" for end in (self.low, self.high))
        return f"{self.value:.4g} [{', '.join(ends)}]"


def bounded(
    values: np.ndarray, quantile: float, confidence: float = CONFIDENCE, clustering: float = 1.0
) -> Bounded:
    """A quantile of samples with its interval, of which there must be one at least."""
    ordered, number = np.sort(values), len(values)
    low, high = sequence_ranks(number, quantile, confidence, clustering)
    rank = max(ceil(quantile * number - 1e-9), 1)  # 0.07 * 100 is above 7
    return Bounded(
        quantile=quantile,
        value=float(ordered[rank - 1]),
        low=float(ordered[low - 1]) if low >= 1 else None,
        high=float(ordered[high - 1]) if high <= number else None,
    )


def clustering(above: np.ndarray) -> float:
    """How many calls are worth one, since those above a limit come together; 1 at least.

    The variance of their number in blocks of neighbours over the binomial one. It is 1 where none is
    above: of slow calls that did not come no samples can tell.
    """
    number, share = len(above), float(np.mean(above))
    length = ceil(sqrt(number))
    if number < 100 or share in (0.0, 1.0):
        return 1.0
    counts = above[: number // length * length].reshape(-1, length).sum(axis=1)
    return max(1.0, float(counts.var(ddof=1)) / (length * share * (1 - share)))


def judge(found: Bounded, limit: float) -> Verdict:
    """PASS: the interval ends at the limit or below; FAIL: it begins above."""
    if found.high is not None and found.high <= limit:
        return "PASS"
    return "FAIL" if found.low is not None and found.low > limit else "INCONCLUSIVE"


def looks(first: int, last: int) -> Iterator[int]:
    """Numbers of samples after which one looks, each a quarter above the one before."""
    number = first
    while number < last:
        yield number
        number = ceil(number * 1.25)
    yield last


# --- contracts -------------------------------------------------------------------------------


class Contract(Value, frozen=True, kw_only=True):
    """Whether a quantile of the latency keeps a budget; milliseconds."""

    verdict: Verdict
    budget_ms: float
    latency_ms: Bounded
    """The quantile that the contract is about."""
    p50_ms: Bounded
    p99_ms: Bounded
    """With intervals as of calls that do not come together."""
    samples: int
    above: int
    """Calls that took longer than the budget."""
    clustering: float
    """How many calls were worth one: those above the budget came together."""
    confidence: float
    throttled: dict[str, int] = msgspec.field(default_factory=dict)
    """Samples taken while the device throttled, by its reason: they count, as deadlines do."""
    reason: str = ""
    """Of an INCONCLUSIVE one: why, and what to do."""

    def __str__(self) -> str:
        beyond = {"PASS": "within", "FAIL": "above", "INCONCLUSIVE": "too near to"}[self.verdict]
        if self.latency_ms.high is None and self.verdict == "INCONCLUSIVE":
            beyond = "not known to be within"
        return (
            f"p{100 * self.latency_ms.quantile:g} {self.latency_ms} ms {beyond} {self.budget_ms:g} ms; "
            f"p50 {self.p50_ms} ms; {self.samples} calls, {self.above} above"
            f"{_told(self.throttled)}"
        )


def contract(
    latencies_ms: Sequence[float] | np.ndarray,
    budget_ms: float,
    *,
    quantile: float = 0.99,
    confidence: float = CONFIDENCE,
) -> Contract:
    """The verdict on latencies that were measured, in the order in which they were.

    Calls that are above the budget together, as in one hiccup of the machine, say less than as many
    that are alone: the interval is the wider for it, by `clustering`.

    Raises:
        ValueError: there is no latency, one is not a positive number, or budget or quantile are none.
    """
    values = checked(latencies_ms)
    _require_contract(budget_ms, quantile, confidence)
    above = values > budget_ms
    worth = clustering(above)
    found = bounded(values, quantile, confidence, worth)
    verdict = judge(found, budget_ms)
    least = fewest(quantile, confidence)
    reason = ""
    if verdict == "INCONCLUSIVE":
        reason = (
            f"{len(values)} calls are too few: a quantile of {quantile:g} is bounded by {least} or more; "
            "give it more time, or guard a lower quantile"
            if len(values) < least
            else f"the interval has the budget of {budget_ms:g} ms inside; give it more time, or a "
            "quieter machine, or see that the budget is that near"
        )
    return Contract(
        verdict=verdict,
        budget_ms=budget_ms,
        latency_ms=found,
        p50_ms=bounded(values, 0.5, confidence),
        p99_ms=bounded(values, 0.99, confidence),
        samples=len(values),
        above=int(above.sum()),
        clustering=worth,
        confidence=confidence,
        reason=reason,
    )


def checked(latencies_ms: Sequence[float] | np.ndarray) -> np.ndarray:
    """Latencies as an array, if they are latencies.

    Raises:
        ValueError: there is none, or one is not a positive finite number.
    """
    values = np.asarray(latencies_ms, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"latencies are a list of milliseconds, one at least; found shape {values.shape}"
        )
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(wrong):
        raise ValueError(
            f"latency {wrong[0]} of {len(values)} is {values[wrong[0]]}, and {len(wrong)} in all are no "
            "positive numbers of milliseconds; leave out what was not measured"
        )
    return values


def _require_contract(budget_ms: float, quantile: float, confidence: float) -> None:
    if not (isfinite(budget_ms) and budget_ms > 0):
        raise ValueError(f"a latency budget is a positive number of milliseconds, not {budget_ms}")
    _require_share("quantile", quantile)
    _require_share("confidence", confidence)


def _require_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"a {name} lies between 0 and 1, as 0.99 does; found {value}")


def _told(throttled: Mapping[str, int]) -> str:
    if not throttled:
        return ""
    listed = ", ".join(f"{number} {reason}" for reason, number in sorted(throttled.items()))
    return f"; throttled: {listed}"


# --- comparisons -----------------------------------------------------------------------------


class Comparison(Value, frozen=True, kw_only=True):
    """Whether a candidate is slower than a baseline."""

    verdict: Verdict
    effect: float
    """The relative slowdown that is found; half of it is where PASS ends and FAIL begins."""
    ratio: Bounded
    """Latency of the candidate over that of the baseline."""
    p50_ms: Bounded
    p99_ms: Bounded
    """Of the candidate."""
    baseline_p50_ms: float
    """Of a stored baseline the geometric mean of its runs' medians."""
    pairs: int | None
    """Of interleaved calls; `None`: the baseline was a stored one."""
    runs: int | None = None
    """Of a stored baseline."""
    samples: int
    """Calls of the candidate."""
    confidence: float
    throttled: dict[str, int] = msgspec.field(default_factory=dict)
    changed: tuple[str, ...] = ()
    """Versions that differ from those of a stored baseline."""
    reason: str = ""
    """Of an INCONCLUSIVE one: why, and what to do."""

    def __str__(self) -> str:
        said = {
            "PASS": "not slower",
            "FAIL": "slower",
            "INCONCLUSIVE": "slower or not, one cannot tell",
        }[self.verdict]
        taken = f"{self.pairs} pairs" if self.runs is None else f"{self.runs} stored runs"
        changed = f"; since then {', '.join(self.changed)}" if self.changed else ""
        return (
            f"{self.ratio} times the baseline, {said} by {self.effect:.0%}; "
            f"p50 {self.p50_ms} ms, baseline {self.baseline_p50_ms:.4g} ms; {taken}"
            f"{changed}{_told(self.throttled)}"
        )


def compare(
    candidate_ms: Sequence[float] | np.ndarray,
    baseline_ms: Sequence[float] | np.ndarray,
    *,
    effect: float = EFFECT,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """The verdict on two sides that were called by turns, in random order pair by pair.

    Of each pair counts the ratio. As the order is drawn for each pair anew, what the machine did to one
    of the two it could have done to the other as well: whether a ratio is above the true one is a fair
    coin, tossed independently for each pair, however the machine drifts and however long its hiccups
    last. So the interval of the median ratio holds as long as the machine slows what it slows by a
    factor, and the call before leaves nothing behind.

    The limit is `sqrt(1 + effect)`: a slowdown of `effect` and none at all are equally far from it.

    Raises:
        ValueError: there is no pair, a latency or an effect is none.
    """
    _require_effect(effect)
    _require_share("confidence", confidence)
    now, before = checked(candidate_ms), checked(baseline_ms)
    if len(now) != len(before):
        raise ValueError(f"{len(now)} latencies of the candidate and {len(before)} are no pairs")
    ratios = now / before
    found = bounded(ratios, 0.5, confidence)
    verdict = judge(found, sqrt(1 + effect))
    return Comparison(
        verdict=verdict,
        effect=effect,
        ratio=found,
        p50_ms=bounded(now, 0.5, confidence),
        p99_ms=bounded(now, 0.99, confidence),
        baseline_p50_ms=float(np.median(before)),
        pairs=len(ratios),
        samples=len(now),
        confidence=confidence,
        reason=(
            f"{len(ratios)} pairs are too few for the noise here; give it more time, a quieter machine, "
            "or look for a larger effect"
            if verdict == "INCONCLUSIVE"
            else ""
        ),
    )


def _require_effect(effect: float) -> None:
    if not 0 < effect < inf:
        raise ValueError(f"an effect is the relative slowdown to be found, as 0.05; found {effect}")


# --- stored baselines ------------------------------------------------------------------------


class DeviceKey(Value, frozen=True, kw_only=True):
    """What must be equal for stored latencies to be comparable. Software is not: it is what is tested."""

    device: str
    hardware: str
    cores: int
    module: str | None
    power_mode: str | None
    locked: bool | None
    """Whether the clocks were pinned; `None`: unknown."""


class Fingerprint(Value, frozen=True, kw_only=True):
    """What latencies were taken on, and with which software."""

    key: DeviceKey
    versions: dict[str, str]


def fingerprint(root: Path = Path("/"), **versions: str) -> Fingerprint:
    """This machine's, with the versions that are installed and those given."""
    device = detect(root)
    key = DeviceKey(
        device=device.name,
        hardware=device.hardware,
        cores=device.cores,
        module=device.module,
        power_mode=device.power_mode,
        locked=find_sensors(device, root=root).locked,
    )
    found = {"python": python_version(), "jetpack": device.jetpack, "driver": device.driver}
    found |= {package: _version(package) for package in PACKAGES} | versions
    return Fingerprint(key=key, versions={name: v for name, v in found.items() if v})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Run(Value, frozen=True, kw_only=True):
    """One process's latencies of what a baseline is about; milliseconds."""

    date: str
    p50_ms: Bounded
    p99_ms: Bounded
    blocks_ms: tuple[float, ...]
    """Medians of consecutive tenths: how it drifted."""
    samples: int
    steady: bool
    """Whether the latencies had settled before the first sample."""
    versions: dict[str, str]
    throttled: dict[str, int] = msgspec.field(default_factory=dict)


class Baseline(Artifact, frozen=True, kw_only=True):
    """Latencies of one call on one device, in several processes."""

    kind: ClassVar[str] = "latency-baseline"
    version: ClassVar[int] = 1

    called: str
    """What was called, as the test that did is named."""
    key: DeviceKey
    runs: Annotated[tuple[Run, ...], msgspec.Meta(min_length=1)]


def summed(
    latencies_ms: np.ndarray,
    versions: Mapping[str, str],
    *,
    steady: bool = True,
    throttled: Mapping[str, int] | None = None,
    confidence: float = CONFIDENCE,
) -> Run:
    """What a baseline keeps of one process's latencies."""
    values = checked(latencies_ms)
    tenths = np.array_split(values, min(BLOCKS, len(values)))
    return Run(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        p50_ms=bounded(values, 0.5, confidence),
        p99_ms=bounded(values, 0.99, confidence),
        blocks_ms=tuple(float(np.median(tenth)) for tenth in tenths),
        samples=len(values),
        steady=steady,
        versions=dict(versions),
        throttled=dict(throttled or {}),
    )


def compare_stored(
    run: Run, baseline: Baseline, *, effect: float = EFFECT, confidence: float = CONFIDENCE
) -> Comparison:
    """The verdict on a run beside those of a stored baseline.

    Medians of two processes differ by more than either's own interval says: memory is laid out anew,
    the machine is hotter, other things run. So what counts is how much the baseline's runs differ among
    themselves: the interval is Student's prediction interval of one more run's log median,

        mean +- t(confidence, k - 1) s sqrt(1 + 1 / k)

    for k runs that scatter by s. It is wide: with five runs 5 times their scatter, with twenty 3 times.
    It holds if runs scatter alike on every day, as by a normal distribution in the logarithm, and where
    days differ, only if the baseline's runs were taken on several. To find 5 % the runs of a baseline
    must agree within half a percent; where they do not it says INCONCLUSIVE. Interleaved comparisons
    need none of this: wherever both sides can be called, use `compare`.
    """
    _require_effect(effect)
    _require_share("confidence", confidence)
    logs = np.log([stored.p50_ms.value for stored in baseline.runs])
    number, mean = len(logs), float(np.mean(logs))
    ratio = run.p50_ms.value / exp(mean)
    low, high, reason = None, None, ""
    if number >= MIN_RUNS:
        wide = exp(_prediction(logs, baseline.runs, confidence))
        low, high = ratio / wide, ratio * wide
    found = Bounded(quantile=0.5, value=ratio, low=low, high=high)
    verdict = judge(found, sqrt(1 + effect))
    if verdict == "INCONCLUSIVE":
        reason = (
            f"the baseline has {number} runs, and {MIN_RUNS} are the fewest, 10 better; "
            "store more of them"
            if number < MIN_RUNS
            else f"the baseline's {number} runs scatter too much; store more of them, or compare with "
            "something that can be called"
        )
    return Comparison(
        verdict=verdict,
        effect=effect,
        ratio=found,
        p50_ms=run.p50_ms,
        p99_ms=run.p99_ms,
        baseline_p50_ms=exp(mean),
        pairs=None,
        runs=number,
        samples=run.samples,
        confidence=confidence,
        throttled=run.throttled,
        changed=_changed(baseline.runs[-1].versions, run.versions),
        reason=reason,
    )


def _prediction(logs: np.ndarray, runs: Iterable[Run], confidence: float) -> float:
    """Half-width of the prediction interval of one more."""
    from scipy.stats import norm, t

    z = float(norm.ppf((1 + confidence) / 2))
    widths = [run.p50_ms.half_width for run in runs]
    known = median(width for width in widths if width is not None) / z if any(widths) else 0.0
    # Few runs may agree by chance better than each of them is known.
    scatter = max(float(np.std(logs, ddof=1)), known)
    number = len(logs)
    return float(t.ppf((1 + confidence) / 2, number - 1)) * scatter * sqrt(1 + 1 / number)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    names = sorted(before.keys() | now.keys())
    return tuple(
        f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}"
        for name in names
        if before.get(name) != now.get(name)
    )


def load_baseline(path: Path, called: str, key: DeviceKey) -> Baseline:
    """The stored baseline of a call on this device.

    Raises:
        ArtifactError: the file is missing, damaged, of another kind or of an unknown version.
            Or it is of another call.
        MismatchError: it is of another device.
    """
    baseline = load(Baseline, path)
    if baseline.called != called:
        raise ArtifactError(
            f"{path} is the baseline of {baseline.called}, not of {called}; give each test a file of its "
            "own, or delete the file and store it again"
        )
    for field in DeviceKey.__struct_fields__:
        stored, here = getattr(baseline.key, field), getattr(key, field)
        require_equal(f"the baseline {path} and this machine", **{field: (stored, here)})
    return baseline


def store(run: Run, path: Path, called: str, key: DeviceKey) -> Baseline:
    """Adds a run to a stored baseline, which is made if there is none.

    Raises:
        ArtifactError: the file is damaged, of an unknown version, or of another call.
        MismatchError: it is of another device, or of other software.
    """
    runs: tuple[Run, ...] = ()
    if path.exists():
        runs = load_baseline(path, called, key).runs
        if changed := _changed(runs[-1].versions, run.versions):
            raise MismatchError(
                f"the runs of {path} were taken with other software ({', '.join(changed)}), and would "
                "scatter for that; delete the file to begin a new baseline"
            )
    baseline = Baseline(called=called, key=key, runs=(*runs, run)[-MAX_RUNS:])
    save(baseline, path)
    return baseline


# --- measuring -------------------------------------------------------------------------------


class Limits(Value, frozen=True, kw_only=True):
    """How long one may go on."""

    max_s: float = 60.0
    """Warm-up included, a fifth of it at most."""
    min_s: float = 1.0
    """Of warm-up, and of sampling: what a machine does once in a while should have its chance."""
    max_samples: int = 50_000
    seed: int = 0


BURST = 1
"""Calls of one side in a row that count, after one that does not (see `timer`). More would say less in
the same time: what slows one call of a burst mostly slows its neighbours too. To tell 5 % on two busy
cores bursts of 4 took twice the time where calls took 6 ms, half as much again at 0.6 ms."""

COLD = 2
"""Calls that do not count after a look, where nothing else is called between."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The calls of all looks so far."""

    durations_ms: Mapping[str, np.ndarray]
    steady: bool
    """Whether the latencies had settled before the first."""
    throttled: dict[str, int]

    @property
    def duration_s(self) -> float:
        return float(sum(durations.sum() for durations in self.durations_ms.values())) / 1e3


def gather(
    subjects: Mapping[str, Callable[[], object]],
    numbers: Iterable[int],
    limits: Limits,
    *,
    look: Callable[[], State] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Iterator[Gathered]:
    """Calls subjects by turns; says so after each number of samples, until the time is up.

    Samples of a throttling device are kept: deadlines hold then as well, and of two sides both had
    their share.
    """
    known: dict[str, Taken] = {}
    kept_ms = {name: np.empty(0) for name in subjects}
    calls = {name: synchronised(call) for name, call in subjects.items()}
    spent_s, steady, throttled = 0.0, True, Counter[str]()
    for index, number in enumerate(numbers):
        settings = TimerSettings(
            precision=inf,
            min_samples=number,
            max_samples=number,
            time_cap_s=limits.max_s - spent_s,
            warmup_share=0.0 if known else 0.2,
            min_warmup_s=limits.min_s,
            burst=BURST,
            keep_throttled=True,
            seed=limits.seed + index,
        )
        samples = interleave(calls, settings, known=known, look=look, clock=clock)
        steady = samples.steady if index == 0 else steady
        throttled.update(samples.throttled)
        for name, durations_ns in samples.durations_ns.items():
            before = known[name].durations_ns if known else []
            # While one looked the caches were others'. Of two sides the first call never counts.
            cold = COLD if known and len(subjects) == 1 else 0
            kept_ms[name] = np.append(kept_ms[name], durations_ns[len(before) + cold :] / 1e6)
        yield Gathered(durations_ms=dict(kept_ms), steady=steady, throttled=dict(throttled))
        spent_s += samples.duration_s
        if samples.capped or spent_s >= limits.max_s:
            return
        known = {
            name: Taken(samples.starts_ns[name].tolist(), samples.durations_ns[name].tolist())
            for name in subjects
        }


def synchronised(call: Callable[[], object]) -> Callable[[], object]:
    """The call, and the wait for what it left running on the GPU that is current.

    Without PyTorch, or before it uses CUDA, there is nothing to wait for: this neither imports the one
    nor starts the other.
    """

    def synchronising() -> object:
        result = call()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return result

    return synchronising


def measure_contract(
    call: Callable[[], object],
    budget_ms: float,
    *,
    quantile: float = 0.99,
    confidence: float = CONFIDENCE,
    limits: Limits | None = None,
    look: Callable[[], State] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> tuple[Contract, np.ndarray]:
    """Whether a call keeps a budget, and its latencies in milliseconds, as many as it took.

    Raises:
        ValueError: a budget or a quantile that is none.
    """
    limits = limits or Limits()
    _require_contract(budget_ms, quantile, confidence)
    numbers = looks(fewest(quantile, confidence), limits.max_samples)
    for gathered in gather({"call": call}, numbers, limits, look=look, clock=clock):
        latencies_ms = gathered.durations_ms["call"]
        found = contract(latencies_ms, budget_ms, quantile=quantile, confidence=confidence)
        if found.verdict != "INCONCLUSIVE" and gathered.duration_s >= limits.min_s:
            break
    return replace(found, throttled=gathered.throttled), latencies_ms


def measure_comparison(
    candidate: Callable[[], object],
    baseline: Callable[[], object],
    *,
    effect: float = EFFECT,
    confidence: float = CONFIDENCE,
    limits: Limits | None = None,
    look: Callable[[], State] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> tuple[Comparison, np.ndarray]:
    """Whether a candidate is slower than a baseline, both called by turns, and the candidate's latencies.

    Raises:
        ValueError: an effect that is none.
    """
    limits = limits or Limits()
    _require_effect(effect)
    _require_share("confidence", confidence)
    subjects = {"candidate": candidate, "baseline": baseline}
    numbers = looks(FIRST_PAIRS, limits.max_samples)
    for gathered in gather(subjects, numbers, limits, look=look, clock=clock):
        candidate_ms, baseline_ms = (gathered.durations_ms[name] for name in subjects)
        # A sample over which the clock was set back is dropped: then one side has more.
        pairs = min(len(candidate_ms), len(baseline_ms))
        found = compare(
            candidate_ms[:pairs], baseline_ms[:pairs], effect=effect, confidence=confidence
        )
        if found.verdict != "INCONCLUSIVE" and gathered.duration_s >= limits.min_s:
            break
    return replace(found, throttled=gathered.throttled), candidate_ms


def measure_run(
    call: Callable[[], object],
    versions: Mapping[str, str],
    *,
    limits: Limits | None = None,
    look: Callable[[], State] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> tuple[Run, np.ndarray]:
    """What a stored baseline keeps of this process, and the latencies in milliseconds.

    Calls are taken until the median is known to `PRECISION`, and so many that the 99th percentile is
    bounded as well.
    """
    limits = limits or Limits()
    for gathered in gather(
        {"call": call}, looks(fewest(0.99), limits.max_samples), limits, look=look, clock=clock
    ):
        latencies_ms = gathered.durations_ms["call"]
        found = bounded(latencies_ms, 0.5)
        width = found.half_width
        if width is not None and width <= PRECISION and gathered.duration_s >= limits.min_s:
            break
    run = summed(latencies_ms, versions, steady=gathered.steady, throttled=gathered.throttled)
    return run, latencies_ms
