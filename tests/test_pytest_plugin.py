"""The fixtures of pytest: each run of pytest here is one in a process of its own, with several tests."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgestitch.artifact import save, sha256
from edgestitch.regression import Baseline, DeviceKey, fewest, fingerprint, load_baseline, summed
from edgestitch.testing import toy_deployment

# Where edgestitch is installed pytest finds the plugin by itself.
INSTALLED = any(
    point.value == "edgestitch.pytest_plugin" for point in entry_points(group="pytest11")
)
INI = """
[pytest]
addopts = --strict-markers -p no:cacheprovider
filterwarnings = error
junit_family = xunit2
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a file of tests with options; `ini` are lines of the configuration."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    for name in [name for name in os.environ if name.startswith("EDGESTITCH_")]:
        monkeypatch.delenv(name)

    def run_pytest(tests: str | None, *options: str, ini: str = "") -> pytest.RunResult:
        pytester.makeini(INI + ini)
        if tests is not None:
            pytester.makepyfile(test_it=tests)
        loaded = () if INSTALLED else ("-p", "edgestitch.pytest_plugin")
        return pytester.runpytest_subprocess(*loaded, "-rA", *options)

    return run_pytest


def told(result: pytest.RunResult, line: str) -> bool:
    """Whether one line of the output matches."""
    return any(re.search(line, one) for one in result.outlines)


# --- verdicts --------------------------------------------------------------------------------

VERDICTS = """
import pytest

def test_kept(latency_contract):
    found = latency_contract([1.0] * 700, budget_ms=2)
    assert found.verdict == "PASS"
    assert found.samples == 700

def test_broken(latency_contract):
    latency_contract([3.0] * 700, budget_ms=2)

def test_unknown(latency_contract):
    latency_contract([1.0] * 10, budget_ms=2)

def test_median(latency_contract):
    assert latency_contract([1.0, 3.0, 1.0] * 100, 2, 0.5).verdict == "PASS"

@pytest.mark.benchmark(group="mine")
@pytest.mark.parametrize("size", [1, 2])
def test_sizes(latency_contract, size):
    latency_contract([1.0] * 600 + [1.5] * 100, budget_ms=2)

class TestMethods:
    def test_kept(self, latency_contract):
        latency_contract([1.0] * 700, budget_ms=2)

def test_not_latencies(latency_contract):
    latency_contract([], budget_ms=2)

def test_no_budget(latency_contract):
    latency_contract([1.0], budget_ms=-2)

def test_twice(latency_contract):
    latency_contract([1.0] * 700, budget_ms=2)
    latency_contract([1.0] * 700, budget_ms=2)

def test_fails_in_the_call(latency_contract):
    latency_contract(lambda: 1 / 0, budget_ms=2)

def test_skips_in_the_call(latency_contract):
    latency_contract(lambda: pytest.skip("no camera"), budget_ms=2)

def test_beside_others(benchmark):
    benchmark.pedantic(lambda: None, rounds=3)
"""


def test_verdicts_are_outcomes_lines_and_figures(run, pytester):
    result = run(VERDICTS, "--benchmark-json=found.json", "--junitxml=found.xml")
    result.assert_outcomes(passed=6, failed=6, skipped=1)

    assert told(
        result, r"^FAIL: p99 3 \[3, 3\] ms above 2 ms; p50 3 \[3, 3\] ms; 700 calls, 700 above$"
    )
    assert told(result, r"^INCONCLUSIVE: .* 10 calls are too few: .* bounded by 662 or more")
    assert told(result, r"ValueError: latencies are a list of milliseconds, one at least")
    assert told(
        result, r"ValueError: a latency budget is a positive number of milliseconds, not -2"
    )
    assert told(result, r"ValueError: one test guards one latency.*pytest.mark.parametrize")
    assert told(result, r"ZeroDivisionError")

    assert told(result, "=+ edgestitch: latencies =+")
    assert told(
        result, r"^PASS +test_it.py::test_kept: p99 1 \[1, 1\] ms within 2 ms; p50 1 \[1, 1\] ms;"
    )
    assert told(result, "^FAIL +test_it.py::test_broken: ")
    assert told(result, "^INCONCLUSIVE +test_it.py::test_unknown: ")
    assert not told(result, "^(PASS|FAIL) +test_it.py::test_fails_in_the_call")

    junit = (pytester.path / "found.xml").read_text()
    assert junit.count('name="edgestitch_verdict" value="PASS"') == 6

    benchmarks = {
        one["fullname"]: one
        for one in json.loads((pytester.path / "found.json").read_text())["benchmarks"]
    }
    assert not {name for name in benchmarks if name.endswith("in_the_call")}
    assert benchmarks["test_it.py::test_beside_others"]["stats"]["rounds"] == 3
    assert "edgestitch" not in benchmarks["test_it.py::test_beside_others"]["extra_info"]

    one = benchmarks["test_it.py::test_sizes[1]"]
    assert one["group"] == "mine"
    assert one["options"]["timer"] == "edgestitch_timer"
    stats = one["stats"]
    assert stats["data"] == [1.0 / 1e3] * 600 + [1.5 / 1e3] * 100
    assert (stats["rounds"], stats["iterations"]) == (700, 1)
    assert (stats["min"], stats["median"], stats["max"]) == (0.001, 0.001, 0.0015)
    figures = one["extra_info"]["edgestitch"]
    assert figures["verdict"] == "PASS"
    assert figures["budget_ms"] == 2
    assert figures["p50_ms"] == {"quantile": 0.5, "value": 1.0, "low": 1.0, "high": 1.0}
    assert figures["p99_ms"] == {"quantile": 0.99, "value": 1.5, "low": 1.5, "high": 1.5}
    here = msgspec.to_builtins(fingerprint())
    # Clocks, and with them whether they are pinned, are the machine's to change.
    assert figures["fingerprint"]["key"]["hardware"] == here["key"]["hardware"]
    assert figures["fingerprint"]["versions"] == here["versions"]


OUTCOMES = """
def test_unknown(latency_contract):
    latency_contract([1.0] * 10, budget_ms=2)

def test_broken(latency_contract):
    latency_contract([3.0] * 10, budget_ms=2)
"""


@pytest.mark.parametrize(
    ("ini", "options", "outcomes"),
    [
        ("edgestitch_inconclusive = skip", (), {"skipped": 1, "failed": 1}),
        ("edgestitch_inconclusive = xfail", (), {"xfailed": 1, "failed": 1}),
        (
            "edgestitch_inconclusive = skip",
            ("--edgestitch-inconclusive=fail",),
            {"failed": 2},
        ),
    ],
)
def test_what_is_inconclusive_is_what_one_says(run, ini, options, outcomes):
    result = run(OUTCOMES, *options, ini=ini)
    result.assert_outcomes(**outcomes)
    assert told(result, "INCONCLUSIVE: .*10 calls are too few")


def test_settings_that_are_none_are_told(run):
    tests = OUTCOMES + (
        "def test_measured(latency_contract):\n    latency_contract(lambda: None, budget_ms=2)\n"
        "def test_asked(latency_contract):\n    latency_contract(lambda: None, 2, max_s=-1)\n"
    )
    result = run(tests, ini="edgestitch_inconclusive = perhaps\nedgestitch_max_time = soon\n")
    result.assert_outcomes(failed=4)
    assert told(result, "edgestitch_inconclusive is fail, skip, xfail, not 'perhaps'")
    assert told(result, "edgestitch_max_time is a number of seconds, not 'soon'")
    assert told(result, "edgestitch_max_time is a number of seconds, not -1")
    refused = run(None, "--edgestitch-inconclusive=perhaps")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR


# --- measuring, and pytest-benchmark's options -----------------------------------------------

MEASURED = """
import sys, time
from pathlib import Path

def wait(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass

def note(what):
    with Path("calls.txt").open("a") as file:
        file.write(what)

def fast():
    assert sys.gettrace() is None
    wait(2e-4)

def slow():
    wait(4e-4)

def test_contract(latency_contract):
    found = latency_contract(lambda: (note("c"), fast()), budget_ms=500)
    assert found is None or found.samples >= 662

def test_slower(latency_regression):
    latency_regression(lambda: (note("n"), slow()), baseline=lambda: (note("b"), fast()))

def test_faster(latency_regression):
    found = latency_regression(fast, baseline=slow, effect=0.2)
    assert found is None or (found.effect == 0.2 and found.ratio.value < 1)

def test_failing(latency_regression):
    def fails():
        raise RuntimeError("no frame")
    latency_regression(fast, fails)
"""


def test_calls_are_measured_and_runs_compared_by_pytest_benchmark(run, pytester):
    saved = run(MEASURED, "--edgestitch-max-time=5", "--benchmark-save=one")
    saved.assert_outcomes(passed=2, failed=2)
    assert told(
        saved, r"^FAIL +test_it.py::test_slower: [12][.\d]* \[.*\] times the baseline, slower by "
    )
    assert told(saved, "^PASS +test_it.py::test_faster: .* not slower by 20%; .* pairs")
    assert told(saved, "RuntimeError: no frame")
    (file,) = (pytester.path / ".benchmarks").rglob("*_one.json")
    stored = json.loads(file.read_text())["benchmarks"]
    assert [one["name"] for one in stored] == ["test_contract", "test_slower", "test_faster"]
    assert stored[1]["extra_info"]["edgestitch"]["ratio"]["value"] > 1.3

    compared = run(
        None,
        "--edgestitch-max-time=5",
        "--benchmark-compare",
        "-k",
        "contract",
        "--benchmark-group-by=name",
    )
    compared.assert_outcomes(passed=1, deselected=3)
    assert told(compared, r"test_contract \(0001_one\)")
    assert told(compared, r"test_contract \(NOW\)")


def test_disabled_each_side_is_called_once_and_skipped_none(run, pytester):
    result = run(MEASURED, "--benchmark-disable")
    result.assert_outcomes(passed=3, failed=1)
    assert (pytester.path / "calls.txt").read_text() == "cbn"
    assert not told(result, "edgestitch: latencies")
    assert told(result, "RuntimeError: no frame")
    result = run(None, "--benchmark-skip")
    result.assert_outcomes(skipped=4)
    assert (pytester.path / "calls.txt").read_text() == "cbn"


def test_workers_of_xdist_only_call(run, pytester):
    pytest.importorskip("xdist")
    result = run(MEASURED, "-n", "2")
    result.assert_outcomes(passed=3, failed=1)
    assert sorted((pytester.path / "calls.txt").read_text()) == ["b", "c", "n"]


def test_without_pytest_benchmark_a_test_is_skipped_or_says_what_to_install(run, pytester):
    result = run(OUTCOMES, "-p", "no:benchmark")
    result.assert_outcomes(skipped=2)
    assert told(result, "latency_contract measures through pytest-benchmark, which -p no:benchmark")


def test_plugins_may_be_named_in_place_of_found(run, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    named = ["-p", "pytest_benchmark.plugin"]
    if INSTALLED:
        named += ["-p", "edgestitch.pytest_plugin"]
    run(OUTCOMES, *named, "-k", "broken").assert_outcomes(failed=1, deselected=1)
    result = run(None, *named[2:], "-k", "broken")
    assert told(result, r"pytest-benchmark, which is not here; pip install 'edgestitch\[pytest\]'")


def test_a_keyboard_interrupt_ends_the_run(run):
    tests = """
def test_interrupted(latency_contract):
    def call():
        raise KeyboardInterrupt
    latency_contract(call, budget_ms=2)

def test_after(latency_contract):
    latency_contract([1.0] * 700, budget_ms=2)
"""
    result = run(tests)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes()
    assert told(result, "KeyboardInterrupt")
    assert not told(result, "PASS +test_it.py::test_after")


# --- stored baselines ------------------------------------------------------------------------

STORED = """
import time

def wait():
    end = time.perf_counter() + 1e-4
    while time.perf_counter() < end:
        pass

def test_stored(latency_regression):
    found = latency_regression(wait, "baselines/stored.json", effect=0.9)
    assert found is None or found.runs >= 3
"""
FAST = ("--edgestitch-max-time=1",)


def test_baselines_are_stored_and_compared_with(run, pytester):
    missing = run(STORED, *FAST)
    missing.assert_outcomes(failed=1)
    assert told(
        missing,
        r"ArtifactError: no baseline at .*stored.json; run pytest --edgestitch-save-baselines on this "
        "device, three times at least",
    )
    path = pytester.path / "baselines" / "stored.json"
    assert not path.exists()

    for number in (1, 2, 3):
        saving = run(None, *FAST, "--edgestitch-save-baselines", "--benchmark-json=found.json")
        saving.assert_outcomes(passed=1)
        assert told(
            saving, rf"^SAVED +test_it.py::test_stored: run {number} of .*stored.json: p50 "
        )
    (one,) = json.loads((pytester.path / "found.json").read_text())["benchmarks"]
    assert one["extra_info"]["edgestitch"]["verdict"] == "SAVED"
    baseline = load_baseline(path, "test_stored", fingerprint().key)
    assert len(baseline.runs) == 3
    assert one["stats"]["rounds"] == baseline.runs[-1].samples >= fewest(0.99)

    # Three runs on a busy machine may scatter however they like: what counts is that it was compared.
    before = path.read_bytes()
    compared = run(None, *FAST, "--edgestitch-inconclusive=xfail")
    assert compared.parseoutcomes().keys() <= {"passed", "failed", "xfailed"}
    assert told(
        compared, r"^\w+ +test_it.py::test_stored: .* times the baseline, .*; 3 stored runs"
    )
    assert path.read_bytes() == before


FOUR = """
import pytest

@pytest.mark.parametrize("name", ["elsewhere", "old", "damaged", "of-another"])
def test_it(latency_regression, name):
    latency_regression(lambda: None, f"{name}.json")

def test_once(latency_regression):
    latency_regression(lambda: None, "kept.json", effect=1000.0)
    latency_regression(lambda: None, "kept.json")
"""


def test_baselines_of_other_devices_and_times_are_told(run, pytester):
    key, versions = fingerprint().key, fingerprint().versions
    runs = (summed(np.ones(700), versions),) * 3

    def stored(name: str, called: str, of: DeviceKey = key) -> Path:
        path: Path = pytester.path / f"{name}.json"
        save(Baseline(called=called, key=of, runs=runs), path)
        return path

    stored("elsewhere", "test_it[elsewhere]", msgspec.structs.replace(key, hardware="another cpu"))
    old = stored("old", "test_it[old]")
    old.write_text(old.read_text().replace('"version": 1', '"version": 0'))
    damaged = stored("damaged", "test_it[damaged]")
    damaged.write_bytes(damaged.read_bytes()[:-9])
    stored("of-another", "test_that")
    stored("kept", "test_once")
    before = {path.name: sha256(path.read_bytes()) for path in pytester.path.glob("*.json")}
    compared = run(FOUR, *FAST)
    compared.assert_outcomes(failed=4, skipped=1)
    assert told(compared, "ValueError: one test guards one latency")
    saved = run(None, *FAST, "--edgestitch-save-baselines", "-k", "test_it[")
    saved.assert_outcomes(failed=4, deselected=1)
    for result in (compared, saved):
        assert told(result, "elsewhere.json and this machine .* hardware is another cpu and ")
        assert told(result, "ArtifactError: .*old.json is a latency-baseline of version 0")
        assert told(
            result, "ArtifactError: .*damaged.json is no edgestitch artifact or is cut short"
        )
        assert told(result, "ArtifactError: .*of-another.json is the baseline of test_that, not of")
    after = {path.name: sha256(path.read_bytes()) for path in pytester.path.glob("*.json")}
    assert after == before


# --- the runtime -----------------------------------------------------------------------------

RUNTIME = """
import numpy as np

opened = []

def test_opened(edgestitch_runtime):
    opened.append(edgestitch_runtime)
    shape = edgestitch_runtime.deployment.input_shape
    assert edgestitch_runtime(np.zeros(shape, np.float32)).shape[0] == shape[0]

def test_the_same_one(latency_contract, edgestitch_runtime):
    assert edgestitch_runtime is opened[0]
    latency_contract([1.0] * 700, budget_ms=2)
"""
CLOSED = """
def pytest_unconfigure(config):
    import sys
    import numpy as np
    module = next((m for n, m in sys.modules.items() if n.endswith("test_it")), None)
    if module is None or not module.opened:
        return
    runtime = module.opened[0]
    try:
        runtime(np.zeros(runtime.deployment.input_shape, np.float32))
    except Exception as error:
        print(f"then: {error}")
    else:
        print("then: still open")
"""


def test_the_runtime_is_opened_for_the_session_and_closed(run, pytester):
    folder = pytester.path / "deployed"
    toy_deployment(folder)
    pytester.makeconftest(CLOSED)
    by_ini = run(RUNTIME, "--benchmark-json=found.json", ini="edgestitch_deployment = deployed")
    by_ini.assert_outcomes(passed=2)
    assert told(by_ini, "^then: .*closed")
    (one,) = json.loads((pytester.path / "found.json").read_text())["benchmarks"]
    versions = one["extra_info"]["edgestitch"]["fingerprint"]["versions"]
    assert versions["backend"] == "eager fp32"

    manifest = folder / "manifest.json"
    envelope = msgspec.json.decode(manifest.read_bytes())
    envelope["data"]["conditions"]["hardware"] = "another cpu"
    envelope["digest"] = sha256(msgspec.json.encode(envelope["data"], order="sorted"))
    manifest.write_bytes(msgspec.json.encode(envelope))
    elsewhere = run(None, f"--edgestitch-deployment={folder}", ini="edgestitch_deployment = none")
    elsewhere.assert_outcomes(skipped=2)
    assert told(
        elsewhere, "the deployment is not for this machine: .* hardware is another cpu there"
    )


def test_a_deployment_that_is_not_there_is_an_error(run):
    result = run(RUNTIME, ini="edgestitch_deployment = none")
    result.assert_outcomes(errors=2)
    assert told(result, "ArtifactError: no deployment at .*none")


# --- what it costs where it is not used ------------------------------------------------------


def test_the_plugin_imports_nothing_heavy():
    code = """
import sys
import pytest, edgestitch
before = set(sys.modules)
import edgestitch.pytest_plugin
print(sorted(set(sys.modules) - before))
print(sorted({"torch", "scipy", "timm", "numpy", "pytest_benchmark"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["['edgestitch.pytest_plugin']", "[]"], done.stderr
