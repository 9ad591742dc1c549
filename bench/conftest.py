"""What the suites share: what they measure, and what each benchmark says of itself."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the benches import each other by name

import numpy as np
from measuring import clean, has_failed, watched
from rivals import Job
from side_by_side import found, make_job, run
from subjects import family_of, random_frames

from edgestitch import Runtime, load_family

OTHERS = pytest.StashKey[float]()
FAILED: list[str] = []
"""Benchmarks without a figure, and why."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edgestitch benches")
    group.addoption(
        "--families",
        default="fashion-vit,deit-ti-s-b",
        help="What is measured, separated by commas; `toy` tries the suites.",
    )
    group.addoption("--bench-work", default="build/bench", help="Where deployments are kept.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family_name" in metafunc.fixturenames:
        names = metafunc.config.getoption("--families").split(",")
        metafunc.parametrize("family_name", names, scope="session")


@pytest.fixture(scope="session", autouse=True)
def others(pytestconfig: pytest.Config) -> Iterator[None]:
    """What others had of the machine while the suites ran."""
    with watched() as span:
        yield
    pytestconfig.stash[OTHERS] = span.others


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]
) -> None:
    output_json["others"] = config.stash.get(OTHERS, None)
    output_json["failed"] = FAILED


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.passed:
        return
    longrepr = report.longrepr
    # Of a skipped test: file, line, reason.
    why = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr).strip().splitlines()[-1]
    FAILED.append(f"{report.nodeid.rpartition('::')[2]}: {clean(why.removeprefix('Skipped: '))}")


Described = Callable[..., None]


@pytest.fixture
def described(benchmark: Any) -> Described:
    """Says of a benchmark what `summary.py` prints.

    `unit` is that of its time and `per` how many of them one call does; `values` are figures that
    are no times, each with what it is a ratio to, if it is one.
    """

    def say(
        figure: str,
        subject: str,
        unit: str,
        *,
        per: int = 1,
        timed: bool = True,
        values: dict[str, tuple[str, str]] | None = None,
    ) -> None:
        benchmark.group = figure
        benchmark.extra_info.update(figure=figure, subject=subject, unit=unit, per=per, timed=timed)
        if values:
            benchmark.extra_info["values"] = values

    return say


@pytest.fixture(scope="session")
def job(family_name: str, pytestconfig: pytest.Config) -> Job:
    """Five topologies: of a shipped network with all anchors, of another with the first two."""
    whole = family_name.startswith("fashion")
    anchors = [anchor.name for anchor in load_family(family_name).anchors]
    return make_job(
        Path(pytestconfig.getoption("--bench-work")),
        family=family_name,
        anchors=anchors if whole else anchors[:2],
        quick=family_name == "toy",
    )


@pytest.fixture(scope="session")
def backend(job: Job) -> str:
    """That which comes first of those that work here."""
    from edgestitch import backends

    return next(name for name in job.ours if backends.backend(name).unavailable() is None)


@pytest.fixture(scope="session")
def subject(job: Job, backend: str) -> str:
    return f"{job.family} ({', '.join(job.anchors)}), {backend} {job.precision}"


@pytest.fixture(scope="session")
def folder(job: Job, backend: str) -> Path:
    """Of the deployment, which is compiled once and kept."""
    wanted = ("build weights", f"build deployment {backend}")
    run(job, only=wanted)
    for part in wanted:
        if has_failed(record := found(job, part)):
            pytest.fail(f"{part}: {record['failed']}")
    return job.folder / f"deployment-{backend}"


@pytest.fixture
def runtime(folder: Path) -> Iterator[Runtime]:
    with Runtime(folder, rebuild=False) as opened:
        yield opened


@pytest.fixture(scope="session")
def frames(job: Job) -> list[np.ndarray]:
    return random_frames(family_of(job.family, job.anchors), 16)
