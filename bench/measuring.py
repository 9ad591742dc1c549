"""How the benches measure: interleaved samples, ratios with intervals, memory, records of parts.

Neither PyTorch nor anything else that is measured is imported here: processes whose memory counts
import this.
"""

import ctypes
import gc
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from pages import Span, observed

MIB = 2**20
Call = Callable[[], Any]


# --- time --------------------------------------------------------------------------------------


def interleaved(
    calls: Mapping[Any, Call],
    rounds: int,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda number: None,
) -> dict[Any, list[float]]:
    """Milliseconds; each round has all calls in random order, a sample is the second of two in a row.

    The first one brings back caches and threads, as the frame before would, and outlasts the
    threads of the call before, which spin on for some milliseconds (OpenMP's do).
    """
    samples: dict[Any, list[float]] = {key: [] for key in calls}
    order, shuffle = list(calls), random.Random(seed)
    gc.collect()
    gc.disable()
    for number in range(rounds):
        shuffle.shuffle(order)
        for key in order:
            call = calls[key]
            call()
            start = time.perf_counter_ns()
            call()
            samples[key].append((time.perf_counter_ns() - start) / 1e6)
        progress(number)
    gc.enable()
    return samples


@contextmanager
def watched() -> Iterator[Span]:
    """`pages.observed`; the others' share is not a number where psutil is not installed."""
    try:
        import psutil  # noqa: F401
    except ImportError:
        span, start = Span(others=float("nan")), time.perf_counter()
        yield span
        span.duration_s = time.perf_counter() - start
        return
    with observed() as span:
        yield span


def quantiles(values: np.ndarray) -> dict[str, float]:
    return {
        "median": float(np.median(values)),
        "p95": float(np.quantile(values, 0.95)),
        "p99": float(np.quantile(values, 0.99)),
        "max": float(np.max(values)),
    }


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 2 if self.value < 100 else 0
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    @property
    def verdict(self) -> str:
        if self.low <= 1 <= self.high:
            return "no difference that shows"
        return "slower" if self.low > 1 else "faster"


def ratio(samples: Any, to: Any, resamples: int = 2000) -> Ratio:
    """Ratio of medians of [rounds], or its geometric mean over the subjects of [subjects, rounds].

    Percentile bootstrap over rounds: both sides are drawn from the same rounds, so that what
    slowed a whole round slows both.
    """
    ours, theirs = (np.atleast_2d(np.asarray(side, float)) for side in (samples, to))
    rounds = ours.shape[-1]
    draws = np.random.default_rng(0).integers(0, rounds, (resamples, rounds))

    def log_ratio(rows: np.ndarray) -> np.ndarray:
        one, other = (np.median(side[:, rows], axis=-1) for side in (ours, theirs))
        return np.log(one / other).mean(axis=0)

    value = float(np.exp(log_ratio(np.arange(rounds))))
    low, high = np.exp(np.percentile(log_ratio(draws), [2.5, 97.5]))
    return Ratio(value, float(low), float(high))


# --- memory ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes of this process."""

    pss: int
    """Resident pages, those that other processes have as well counted in part."""
    uss: int
    """Those that only this process has."""
    rss: int
    anonymous: int
    """Of the resident ones, those that no file backs: they can be given back to swap only."""

    @classmethod
    def now(cls) -> "Memory":
        """After a collection, and after the allocator gave back what it holds for nobody; Linux."""
        gc.collect()
        if hasattr(ctypes.CDLL(None), "malloc_trim"):
            ctypes.CDLL(None).malloc_trim(0)
        text = Path("/proc/self/smaps_rollup").read_text()
        kib = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
        return cls(
            pss=1024 * kib["Pss"],
            uss=1024 * (kib["Private_Clean"] + kib["Private_Dirty"]),
            rss=1024 * kib["Rss"],
            anonymous=1024 * kib["Anonymous"],
        )

    def __sub__(self, other: "Memory") -> "Memory":
        return Memory(
            pss=self.pss - other.pss,
            uss=self.uss - other.uss,
            rss=self.rss - other.rss,
            anonymous=self.anonymous - other.anonymous,
        )


# --- processes, and what is kept of them -------------------------------------------------------


def in_own_process(
    script: str, arguments: Iterable[str], limit_s: float | None = None
) -> dict[str, Any]:
    """What a script prints as JSON in its last line; `failed` with the reason where it does not."""
    try:
        finished = subprocess.run(
            [sys.executable, script, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within the {limit_s:.0f} s that were left"}
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or [f"ended with {finished.returncode}"]
        return {"failed": clean(lines[-1])}
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def has_failed(found: Mapping[str, Any]) -> bool:
    """Whether a part has failed as a whole; one that names candidates that did is another thing."""
    return isinstance(found.get("failed"), str)


def keep(path: Path, found: Mapping[str, Any]) -> None:
    """Writes what a part found, or under another name, so that it is tried again, why it failed."""
    failure = path.with_suffix(".failed.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    (failure if has_failed(found) else path).write_text(json.dumps(found))
    if not has_failed(found):
        failure.unlink(missing_ok=True)


def kept(path: Path) -> dict[str, Any]:
    """What a part has found; `failed` where it has not."""
    for candidate in (path, path.with_suffix(".failed.json")):
        if candidate.is_file():
            found: dict[str, Any] = json.loads(candidate.read_text())
            return found
    return {"failed": "not run yet"}


def short(error: BaseException) -> str:
    return clean(f"{type(error).__name__}: {error}")


def clean(text: str) -> str:
    """In one line, without folders, colours of a terminal, and what a table is made of."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(text.split()))
    return re.sub(r"(?:/[^\s/:'\"]+)+/", "", text).replace("|", "/")[:200]


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
