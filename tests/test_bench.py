"""The benches run: their suites and the run side by side, on the toy family."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
# What it compiles for half a minute is PyTorch's: here it calls the module as it is.
ENVIRONMENT = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def measuring() -> ModuleType:
    sys.path.insert(0, str(BENCH))  # as for the scripts beside it
    try:
        return import_module("measuring")
    finally:
        sys.path.remove(str(BENCH))


def test_every_suite_is_collected():
    finished = run("-m", "pytest", "bench", "--collect-only", "--quiet", "-p", "no:cacheprovider")
    assert finished.returncode == 0, finished.stdout
    for suite in BENCH.glob("test_*.py"):
        assert f"bench/{suite.name}::" in finished.stdout


@pytest.mark.slow
def test_side_by_side_and_suites_make_one_page(tmp_path):
    work, suites, out = tmp_path / "work", tmp_path / "suites.json", tmp_path / "page.md"
    words = ["--benchmark-only", f"--benchmark-json={suites}", "--benchmark-min-rounds=1"]
    words += ["--benchmark-max-time=0.05", "--benchmark-warmup=off", "-p", "no:cacheprovider"]
    # What starts processes takes a second each, and is what the run side by side does as well.
    words += ["--deselect", "bench/test_startup.py", "--families", "toy"]
    finished = run("-m", "pytest", "bench", *words, "--bench-work", str(work))
    assert finished.returncode == 0, finished.stdout[-3000:]

    finished = run("bench/side_by_side.py", "--quick", "--work", str(work))
    assert finished.returncode == 0, finished.stderr[-3000:]
    told = ["--quick", "--work", str(work), "--suites", str(suites), "--out", str(out)]
    finished = run("bench/summary.py", *told)
    assert finished.returncode == 0, finished.stderr[-3000:]

    page = out.read_text()
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Reading",
        "## Machine",
        "## Versions",
        "## Command",
        "## Figures",
        "## Not measured",
    ]
    figures, missing = page.split("## Not measured")
    for said in (
        "| latency | PyTorch, eager |",
        "| latency | OpenVINO, an engine each |",
        "| latency | edgestitch, eager |",
        "| first result after a change | edgestitch, openvino |",
        "| first result after a change | reload, PyTorch: blocks that differ |",
        "| the same without imports | restart, PyTorch |",
        "| memory, 3 topologies | edgestitch, openvino |",
        "| decide, and observe |",
        "| first result / steady |",
        "| memory that topologies keep (growth, USS) |",
    ):
        assert said in figures
    assert "Error" not in missing
    assert str(tmp_path) not in page


def test_what_was_measured_is_not_measured_again(measuring, tmp_path):
    record = tmp_path / "part.json"
    measuring.keep(record, {"failed": "no such library"})
    assert measuring.has_failed(measuring.kept(record))
    assert not record.exists()  # so that it is tried again
    measuring.keep(record, {"samples_ms": [1.0], "failed": {}})
    assert measuring.kept(record) == {"samples_ms": [1.0], "failed": {}}
    assert [path.name for path in tmp_path.iterdir()] == ["part.json"]


def test_a_failure_is_told_in_a_line_without_folders(measuring):
    told = measuring.clean("\x1b[31mRuntimeError\x1b[0m: cannot\n  open /home/someone/x.bin | y")
    assert told == "RuntimeError: cannot open x.bin / y"


def test_each_round_calls_every_candidate_twice(measuring):
    called: list[str] = []
    calls = {name: lambda name=name: called.append(name) for name in "abc"}
    samples = measuring.interleaved(calls, 4)
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("abc", 4)
    for number in range(4):
        assert sorted(called[6 * number : 6 * number + 6]) == list("aabbcc")
    assert called[::2] == called[1::2]


@given(
    st.lists(st.floats(0.1, 10.0), min_size=2, max_size=12),
    st.floats(0.01, 100.0),
)
def test_a_ratio_is_within_its_interval_and_exact_for_a_factor(measuring, samples, factor):
    itself = measuring.ratio(samples, samples)
    assert (itself.value, itself.low, itself.high) == (1.0, 1.0, 1.0)
    scaled = measuring.ratio(np.multiply(samples, factor), samples)
    assert np.allclose([scaled.value, scaled.low, scaled.high], factor)


def test_a_ratio_over_topologies_is_their_geometric_mean(measuring):
    ours, theirs = [[4.0] * 5, [1.0] * 5], [[1.0] * 5, [1.0] * 5]
    assert measuring.ratio(ours, theirs).value == pytest.approx(2.0)
