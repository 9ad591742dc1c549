"""pytest fixtures that guard latencies: a budget that is kept, a change that makes nothing slower.

    def test_a_frame_takes_ten_ms(latency_contract, edgestitch_runtime):
        latency_contract(lambda: edgestitch_runtime(image), budget_ms=10)

    def test_the_new_preprocessing_is_not_slower(latency_regression):
        latency_regression(lambda: new(image), baseline=lambda: old(image))

Verdicts are those of `edgestitch.regression`. What was measured goes through pytest-benchmark's fixture,
so that its table, its JSON and `--benchmark-compare` have it.

pytest loads this file in every run of an environment that has edgestitch: it imports pytest alone, and
the rest when a fixture is used.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    import numpy as np

    from .regression import Baseline, Comparison, Contract, DeviceKey, Fingerprint, Limits
    from .runtime import Runtime
    from .sensors import State

FIXTURES = ("latency_contract", "latency_regression")
OUTCOMES = ("fail", "skip", "xfail")
COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}
Call = Callable[[], object]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edgestitch", "latency contracts and regressions (edgestitch)")
    group.addoption(
        "--edgestitch-deployment",
        metavar="FOLDER",
        help="Deployment that the fixture edgestitch_runtime opens. Default: the ini option "
        "edgestitch_deployment, else what edgestitch.Runtime() finds.",
    )
    group.addoption(
        "--edgestitch-max-time",
        metavar="SECONDS",
        type=float,
        help="Longest time that one latency is measured. Default: the ini option edgestitch_max_time.",
    )
    group.addoption(
        "--edgestitch-inconclusive",
        choices=OUTCOMES,
        help="What a test becomes whose latency is INCONCLUSIVE. Default: the ini option "
        "edgestitch_inconclusive.",
    )
    group.addoption(
        "--edgestitch-save-baselines",
        action="store_true",
        help="Add this run to the stored baselines instead of comparing with them.",
    )
    parser.addini("edgestitch_deployment", "Deployment that the fixture edgestitch_runtime opens.")
    parser.addini(
        "edgestitch_max_time", "Seconds that one latency is measured at most.", default="60"
    )
    parser.addini(
        "edgestitch_inconclusive",
        "What a test becomes whose latency is INCONCLUSIVE: fail, skip or xfail.",
        default="fail",
    )


# --- pytest-benchmark ------------------------------------------------------------------------


class Benchmark(Protocol):
    """What is used of pytest-benchmark's fixture: only what its documentation has."""

    extra_info: dict[str, Any]

    @property
    def enabled(self) -> bool: ...

    def pedantic(
        self, target: Callable[..., object], args: tuple[Any, ...] = (), *, rounds: int = 1
    ) -> object: ...


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the fixtures: those that need pytest-benchmark's, or those that say it is not here."""
    config.stash[VERDICTS] = []
    # By its entry point, or by -p pytest_benchmark.plugin where plugins are not found by themselves.
    found = any(map(config.pluginmanager.hasplugin, ("benchmark", "pytest_benchmark.plugin")))
    config.pluginmanager.register(
        Measuring() if found else Unavailable(config), "edgestitch-latency"
    )


class Replay:
    """A clock that moves when `step` is called, by one latency after the other.

    pytest-benchmark times what it calls by itself: one call at a time, until a time is up. Latencies
    here are taken as a verdict needs them, of two sides by turns, and with all the care of
    `edgestitch.timer`. To hand them over without touching its insides, its fixture is given this clock,
    by the `timer` of its mark, and "times" `step` with it once for every latency.
    """

    def __init__(self) -> None:
        self._now_s: float | None = None
        self._left_s: deque[float] = deque()

    def edgestitch_timer(self) -> float:
        """Seconds since it was last read; an ordinary clock until there are latencies.

        The JSON has its name.
        """
        if self._now_s is None:
            return time.perf_counter()
        now_s, self._now_s = self._now_s, 0.0  # what is added up is rounded
        return now_s

    def begin(self, latencies_s: Sequence[float]) -> None:
        self._now_s, self._left_s = 0.0, deque(latencies_s)

    def step(self, call: Call) -> None:
        """Lets the next latency pass; once there is none, calls: that is for a profiler."""
        if self._left_s:
            self._now_s = self._left_s.popleft()
        else:
            call()


REPLAY = pytest.StashKey[Replay]()
VERDICTS = pytest.StashKey[list[str]]()
STATION = pytest.StashKey["Station"]()


@dataclass(frozen=True)
class Station:
    """The machine that tests run on."""

    fingerprint: "Fingerprint"
    look: "Callable[[], State]"


def station(config: pytest.Config) -> Station:
    """This machine, looked at once."""
    if STATION not in config.stash:
        from .device import detect
        from .regression import fingerprint
        from .sensors import find_sensors

        config.stash[STATION] = Station(fingerprint(), find_sensors(detect()).read)
    return config.stash[STATION]


class Measuring:
    """The fixtures where pytest-benchmark is."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Gives pytest-benchmark's fixture the clock, before it is made; other settings stay."""
        if set(FIXTURES) & set(getattr(item, "fixturenames", ())):
            mark = item.get_closest_marker("benchmark")
            replay = item.stash[REPLAY] = Replay()
            settings = {**(mark.kwargs if mark else {}), "timer": replay.edgestitch_timer}
            item.add_marker(pytest.mark.benchmark(**settings), append=False)

    @pytest.fixture
    def latency_contract(
        self, request: pytest.FixtureRequest, benchmark: "Benchmark"
    ) -> "LatencyContract":
        """`latency_contract(call, budget_ms=10, quantile=0.99)` fails if that quantile is above it.

        Returns the `edgestitch.regression.Contract`; `None` under --benchmark-disable and xdist, where
        it only calls. In place of `call` it takes latencies in milliseconds that were measured elsewhere.
        """
        return LatencyContract(Guard(request, benchmark))

    @pytest.fixture
    def latency_regression(
        self, request: pytest.FixtureRequest, benchmark: "Benchmark"
    ) -> "LatencyRegression":
        """`latency_regression(candidate, baseline, effect=0.05)` fails if the candidate is slower.

        `baseline` is called by turns with the candidate; or it is the path of a stored baseline, made by
        --edgestitch-save-baselines on this kind of device. Returns the
        `edgestitch.regression.Comparison`; `None` where nothing was compared.
        """
        return LatencyRegression(Guard(request, benchmark))


class Unavailable:
    """The fixtures where pytest-benchmark is not: switched off, they skip; not installed, they fail."""

    def __init__(self, config: pytest.Config) -> None:
        self._blocked = config.pluginmanager.is_blocked("benchmark")

    @pytest.fixture
    def latency_contract(self) -> None:
        self._say("latency_contract")

    @pytest.fixture
    def latency_regression(self) -> None:
        self._say("latency_regression")

    def _say(self, name: str) -> None:
        if self._blocked:
            pytest.skip(
                f"{name} measures through pytest-benchmark, which -p no:benchmark switched off"
            )
        pytest.fail(
            f"{name} measures through pytest-benchmark, which is not here; "
            "pip install 'edgestitch[pytest]'",
            pytrace=False,
        )


# --- what the fixtures do --------------------------------------------------------------------


class Guard:
    """One test's measurement: settings, pytest-benchmark's fixture, and the outcome."""

    def __init__(self, request: pytest.FixtureRequest, benchmark: "Benchmark") -> None:
        self.config = request.config
        self.node = request.node
        self.benchmark = benchmark
        self.used = False

    @property
    def enabled(self) -> bool:
        """Whether anything is to be measured: not under --benchmark-disable, nor by xdist's workers."""
        return bool(self.benchmark.enabled)

    @property
    def called(self) -> str:
        """What a stored baseline says that it is of."""
        return str(self.node.name)

    def limits(self, max_s: float | None) -> "Limits":
        from .regression import Limits

        asked = max_s if max_s is not None else self.config.getoption("edgestitch_max_time")
        text = self.config.getini("edgestitch_max_time") if asked is None else asked
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise pytest.UsageError(f"edgestitch_max_time is a number of seconds, not {text!r}")
        return Limits(max_s=seconds, min_s=min(1.0, seconds / 10))

    def begin(self) -> None:
        if self.used:
            raise ValueError(
                "one test guards one latency, as pytest-benchmark measures one thing in a test; write "
                "another test, or use pytest.mark.parametrize"
            )
        self.used = True

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Without tracers and profilers, which would be measured; a failure is pytest-benchmark's too."""
        tracer, profiler = sys.gettrace(), sys.getprofile()
        sys.settrace(None)
        sys.setprofile(None)
        try:
            yield
        except BaseException:  # skipped and interrupted tests as well
            # It leaves out of tables and JSON what failed in its hands, and only that; and it warns of a
            # fixture that nobody used.
            with suppress(UnmeasuredError):
                self.benchmark.pedantic(_fail)
            raise
        finally:
            sys.settrace(tracer)
            sys.setprofile(profiler)

    def call(self, *calls: Call) -> None:
        """Calls once, where nothing is to be measured."""
        self.benchmark.pedantic(_each, args=calls)

    def conclude(
        self, found: "Contract | Comparison", latencies_ms: "np.ndarray", call: Call
    ) -> None:
        """Hands latencies and verdict over, and makes it the test's outcome."""
        self.hand_over(latencies_ms, call, _built(found), found.verdict, str(found))
        if found.verdict == "FAIL":
            pytest.fail(f"FAIL: {found}", pytrace=False)
        if found.verdict == "INCONCLUSIVE":
            self.inconclusive(f"INCONCLUSIVE: {found}. {found.reason}")

    def hand_over(
        self,
        latencies_ms: "np.ndarray",
        call: Call,
        figures: dict[str, Any],
        verdict: str,
        line: str,
    ) -> None:
        self.benchmark.extra_info["edgestitch"] = {
            "verdict": verdict,
            **figures,
            "fingerprint": _built(self.fingerprint()),
        }
        replay = self.node.stash[REPLAY]
        replay.begin((latencies_ms / 1e3).tolist())
        self.benchmark.pedantic(replay.step, args=(call,), rounds=len(latencies_ms))
        self.node.user_properties.append(("edgestitch_verdict", verdict))  # in JUnit's XML
        self.config.stash[VERDICTS].append(f"{verdict:<12} {self.node.nodeid}: {line}")

    def fingerprint(self) -> "Fingerprint":
        """This machine's, with the deployment's backend where the test uses the runtime."""
        from msgspec.structs import replace

        found = station(self.config).fingerprint
        runtime = self.node.funcargs.get("edgestitch_runtime")
        if runtime is None:
            return found
        conditions = runtime.deployment.manifest.conditions
        backend = f"{conditions.backend} {conditions.precision}"
        return replace(found, versions={**found.versions, "backend": backend})

    def inconclusive(self, message: str) -> None:
        asked = self.config.getoption("edgestitch_inconclusive")
        outcome = asked or self.config.getini("edgestitch_inconclusive")
        if outcome == "skip":
            pytest.skip(message)
        if outcome == "xfail":
            pytest.xfail(message)
        if outcome != "fail":
            raise pytest.UsageError(
                f"edgestitch_inconclusive is {', '.join(OUTCOMES)}, not {outcome!r}"
            )
        pytest.fail(message, pytrace=False)


class UnmeasuredError(Exception):
    """There are no latencies to hand over."""


def _fail() -> None:
    raise UnmeasuredError


def _each(*calls: Call) -> None:
    for call in calls:
        call()


def _built(value: object) -> dict[str, Any]:
    import msgspec

    built: dict[str, Any] = msgspec.to_builtins(value)
    return built


class LatencyContract:
    """The value of the fixture `latency_contract`."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def __call__(
        self,
        call: "Call | Sequence[float] | np.ndarray",
        budget_ms: float,
        quantile: float = 0.99,
        *,
        max_s: float | None = None,
    ) -> "Contract | None":
        guard = self._guard
        guard.begin()
        if callable(call) and not guard.enabled:
            guard.call(call)
            return None
        with guard.measuring():
            from . import regression

            if callable(call):
                found, latencies_ms = regression.measure_contract(
                    call,
                    budget_ms,
                    quantile=quantile,
                    limits=guard.limits(max_s),
                    look=station(guard.config).look,
                )
            else:
                latencies_ms = regression.checked(call)
                found = regression.contract(latencies_ms, budget_ms, quantile=quantile)
        guard.conclude(found, latencies_ms, call if callable(call) else _nothing)
        return found


def _nothing() -> None:
    """What there is to call where latencies were measured elsewhere."""


class LatencyRegression:
    """The value of the fixture `latency_regression`."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def __call__(
        self,
        candidate: Call,
        baseline: Call | str | Path,
        effect: float | None = None,
        *,
        max_s: float | None = None,
    ) -> "Comparison | None":
        """`effect`: without, 2 % where the clocks are pinned, else 5 %."""
        guard = self._guard
        guard.begin()
        if not guard.enabled:
            guard.call(*([baseline] if callable(baseline) else []), candidate)
            return None
        if callable(baseline):
            return self._interleaved(candidate, baseline, effect, max_s)
        return self._stored(candidate, guard.config.rootpath / baseline, effect, max_s)

    def _interleaved(
        self, candidate: Call, baseline: Call, effect: float | None, max_s: float | None
    ) -> "Comparison":
        guard = self._guard
        with guard.measuring():
            from .regression import measure_comparison

            found, latencies_ms = measure_comparison(
                candidate,
                baseline,
                effect=self._effect(effect),
                limits=guard.limits(max_s),
                look=station(guard.config).look,
            )
        guard.conclude(found, latencies_ms, candidate)
        return found

    def _stored(
        self, candidate: Call, path: Path, effect: float | None, max_s: float | None
    ) -> "Comparison | None":
        guard, saving = self._guard, self._guard.config.getoption("edgestitch_save_baselines")
        with guard.measuring():
            from .regression import compare_stored, measure_run, store

            here = guard.fingerprint()
            stored = None if saving else self._load(path, here.key)
            run, latencies_ms = measure_run(
                candidate,
                here.versions,
                limits=guard.limits(max_s),
                look=station(guard.config).look,
            )
            if stored is None:
                stored = store(run, path, guard.called, here.key)
            else:
                found = compare_stored(run, stored, effect=self._effect(effect))
        if saving:
            line = f"run {len(stored.runs)} of {path}: p50 {run.p50_ms} ms"
            guard.hand_over(latencies_ms, candidate, _built(run), "SAVED", line)
            return None
        guard.conclude(found, latencies_ms, candidate)
        return found

    def _load(self, path: Path, key: "DeviceKey") -> "Baseline":
        """A stored baseline; one of another device skips the test."""
        from .errors import ArtifactError, MismatchError
        from .regression import load_baseline

        if not path.exists():
            raise ArtifactError(
                f"no baseline at {path}; run pytest --edgestitch-save-baselines on this device, three "
                "times at least, to store one"
            )
        try:
            return load_baseline(path, self._guard.called, key)
        except MismatchError as error:
            pytest.skip(
                f"{error}; compare on the device that stored it, or store another one, in a file of its "
                "own, with --edgestitch-save-baselines"
            )

    def _effect(self, asked: float | None) -> float:
        from .regression import EFFECT, EFFECT_LOCKED

        locked = station(self._guard.config).fingerprint.key.locked
        return asked if asked is not None else EFFECT_LOCKED if locked else EFFECT


# --- the runtime -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def edgestitch_runtime(request: pytest.FixtureRequest) -> "Iterator[Runtime]":
    """The `edgestitch.Runtime` of --edgestitch-deployment, open for the session.

    A budget that one test sets holds for the next one as well; `infer(image, budget_ms=...)` has one of
    its own. A deployment that was made for another device skips the tests that ask for it.
    """
    from .errors import DeviceError, MismatchError
    from .runtime import Runtime

    config = request.config
    asked = config.getoption("edgestitch_deployment")
    named = asked or config.getini("edgestitch_deployment")
    folder = config.rootpath / named if named and not asked else asked
    try:
        # What was compiled anew would not be what is deployed.
        runtime = Runtime(folder, rebuild=False)
    except (MismatchError, DeviceError) as error:
        pytest.skip(f"the deployment is not for this machine: {error}")
    with runtime:
        yield runtime


# --- the report ------------------------------------------------------------------------------


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """A line for every verdict: what passed has figures as well."""
    lines = config.stash.get(VERDICTS, [])
    if not lines:
        return
    terminalreporter.section("edgestitch: latencies")
    for line in lines:
        colour = COLOURS.get(line.split()[0], "cyan")
        terminalreporter.write_line(line, **{colour: True})
