"""How often a latency regression cries wolf, and how often it finds a real one, on real noise.

Trials of two kinds in random order: a call against itself, and the same call with 5 % of its median
spent spinning against itself. Both go through `edgestitch.regression.measure_comparison`, as the pytest
fixture `latency_regression` does. Stopped and called again, it goes on where it was.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pages

from edgestitch import Runtime, __version__
from edgestitch.accuracy import wilson
from edgestitch.data import preprocess, shipped_images
from edgestitch.device import detect
from edgestitch.regression import EFFECT, Limits, Verdict, measure_comparison

Call = Callable[[], object]
MEDIAN_OF = 500
"""Calls whose median the injected slowdown is a share of."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison."""

    subject: str
    injected: bool
    verdict: Verdict
    ratio: float
    pairs: int
    duration_s: float
    others: float
    """Share of the machine that other processes had."""


@contextmanager
def shipped_network() -> Iterator[Mapping[str, Call]]:
    """The fastest and the slowest resident topology of the shipped network."""
    image = preprocess(shipped_images().images[:1])
    with (
        Runtime(miss_rate=None) as runtime,
        Runtime(runtime.deployment, miss_rate=None) as another,
    ):
        fast, slow = runtime.topologies[0], another.topologies[-1]
        runtime.switch(fast)
        another.switch(slow)
        backend = runtime.deployment.manifest.conditions.backend
        yield {
            f"`fashion-vit` {fast}, {backend}": lambda: runtime(image),
            f"`fashion-vit` {slow}, {backend}": lambda: another(image),
        }


def slowed(call: Call, share: float) -> Call:
    """The call and a share of its median more, spent computing."""
    durations = []
    for _ in range(MEDIAN_OF):
        start = time.perf_counter_ns()
        call()
        durations.append(time.perf_counter_ns() - start)
    more_ns = share * float(np.median(durations))

    def slower() -> object:
        result = call()
        until = time.perf_counter_ns() + more_ns
        while time.perf_counter_ns() < until:
            pass
        return result

    return slower


def trial(name: str, call: Call, injected: bool, max_s: float, seed: int) -> Trial:
    # A function of its own on each side, as two versions of a program are.
    candidate = slowed(call, EFFECT) if injected else lambda: call()
    limits = Limits(max_s=max_s, min_s=max_s / 20, seed=seed)
    with pages.observed() as span:
        found, _ = measure_comparison(candidate, lambda: call(), effect=EFFECT, limits=limits)
    return Trial(
        subject=name,
        injected=injected,
        verdict=found.verdict,
        ratio=found.ratio.value,
        pairs=found.pairs or 0,
        duration_s=span.duration_s,
        others=span.others,
    )


def trials(
    calls: Mapping[str, Call], number: int, max_s: float, record: Path, time_cap_s: float
) -> list[Trial]:
    """So many of each kind and subject, those of the record first, as far as the time goes."""
    lines = record.read_bytes().splitlines() if record.exists() else []
    done = [msgspec.json.decode(line, type=Trial) for line in lines]
    wanted = [(name, injected) for name in calls for injected in (False, True)] * number
    for one in done:
        if (one.subject, one.injected) in wanted:
            wanted.remove((one.subject, one.injected))
    random.Random(len(done)).shuffle(wanted)
    end_s = time.monotonic() + time_cap_s
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("ab") as file:
        for name, injected in wanted:
            if time.monotonic() > end_s:
                break
            done.append(trial(name, calls[name], injected, max_s, seed=len(done)))
            file.write(msgspec.json.encode(done[-1]) + b"\n")
            file.flush()
            print(done[-1], flush=True)
    return done


def rate(found: list[Trial], verdict: Verdict) -> str:
    hits = sum(one.verdict == verdict for one in found)
    low, high = wilson(hits, len(found))
    return f"{hits} of {len(found)} ({100 * low:.1f} to {100 * high:.1f} %)"


def rows(found: list[Trial]) -> list[list[str]]:
    shown = []
    for name in dict.fromkeys(one.subject for one in found):
        for injected in (False, True):
            some = [one for one in found if (one.subject, one.injected) == (name, injected)]
            if some:
                shown.append(
                    [
                        name,
                        f"{EFFECT:.0%} slower" if injected else "nothing",
                        rate(some, "FAIL"),
                        rate(some, "PASS"),
                        rate(some, "INCONCLUSIVE"),
                        f"{np.median([one.ratio for one in some]):.4f}",
                        f"{np.median([one.pairs for one in some]):.0f}",
                        f"{np.median([one.duration_s for one in some]):.2f} s",
                    ]
                )
    return shown


def reading(found: list[Trial]) -> list[str]:
    same = [one for one in found if not one.injected]
    slower = [one for one in found if one.injected]
    return [
        f"{pages.noise(float(np.median([one.others for one in found])))} With nothing changed the "
        f"regression failed in {rate(same, 'FAIL')}, and could not tell in "
        f"{rate(same, 'INCONCLUSIVE')}. A slowdown of {EFFECT:.0%} was found in "
        f"{rate(slower, 'FAIL')} and let pass in {rate(slower, 'PASS')}."
    ]


COLUMNS = ["call", "change", "FAIL", "PASS", "INCONCLUSIVE", "ratio", "pairs", "time"]
EXPLANATION = (
    "Numbers of trials, with their 95 % Wilson intervals; ratio, pairs and time are medians over trials. "
    "A trial takes calls of both sides by turns until its verdict is clear or its time is up."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50, help="Of each kind and call.")
    parser.add_argument("--max-s", type=float, default=6.0, help="Of one trial.")
    parser.add_argument("--time-cap-s", type=float, default=900)
    parser.add_argument("--record", type=Path, default=Path("build/bench/regression.jsonl"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with shipped_network() as calls:
        found = trials(calls, options.trials, options.max_s, options.record, options.time_cap_s)
    device = detect()
    text = pages.page(
        "How often does a latency regression err?",
        f"Interleaved comparisons that look for {EFFECT:.0%}, at a confidence of 99 %, at most "
        f"{options.max_s:g} s each. The slowdown is injected: a share of the call's median is spent "
        "spinning after it.",
        reading=reading(found),
        machine=f"{device.hardware}, {device.memory_mib} MiB.",
        versions={"edgestitch": __version__},
        command=f"python bench/regression.py --trials {options.trials} --max-s {options.max_s:g}",
        sections={"Trials": [*pages.table(COLUMNS, rows(found)), "", EXPLANATION]},
        missing=[
            "Pinned clocks, where 2 % are looked for: this machine's cannot be pinned.",
            "Stored baselines: what they need is days apart.",
        ],
    )
    print(text)
    (options.out or pages.result_path("regression", device.hardware)).write_text(text)


if __name__ == "__main__":
    main()
