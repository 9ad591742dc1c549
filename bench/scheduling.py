"""What a mix of topologies gains, what memory is worth, and how long the solvers take. See README.md.

Costs are the shipped multiply-adds and accuracies the authors' published ones, so that nothing here
depends on a device but the times.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import mean as average
from statistics import median
from typing import TypeVar

import pages

from edgestitch import __version__, load_family
from edgestitch.catalog import shipped_accuracy, shipped_complexity
from edgestitch.complexity import Complexity
from edgestitch.coschedule import Stream, coschedule
from edgestitch.device import detect
from edgestitch.errors import InfeasibleError
from edgestitch.family import Family
from edgestitch.mixing import MeanBound, best_shares, diffuse, mean
from edgestitch.residency import Memory, Residency, Scenario, keep, memory_of_weights
from edgestitch.schedule import Budget, Candidate, choose, front_along, mixture, pareto_front

FAMILIES = ("deit-ti-s-b", "swin-ti-s-b", "resnet18-50", "deit3-s-l")
BUDGETS = 400
"""Evenly over the range of a family's costs, or of its accuracies."""

T = TypeVar("T")


class Published:
    """A family's published accuracies with its multiply-adds."""

    def __init__(self, name: str) -> None:
        family, accuracy = load_family(name), shipped_accuracy(name)
        assert accuracy is not None
        self.name = name
        self.family: Family = family.in_mode(accuracy.mode)
        complexity = shipped_complexity(self.family)
        assert complexity is not None
        self.complexity: Complexity = complexity
        self.top1 = {row.topology: row.top1 for row in accuracy.rows}
        self.gmacs = {n: complexity.gmacs(self.family, n) for n in self.top1}


def timed(what: Callable[[], T], times_ms: list[float]) -> T:
    start = time.perf_counter()
    found = what()
    times_ms.append(1e3 * (time.perf_counter() - start))
    return found


def times(found: list[float]) -> list[str]:
    return [str(len(found)), f"{median(found):.3g}", f"{max(found):.3g}"]


# --- mixing --------------------------------------------------------------------------------------


def at_equal_cost(published: Published, times_ms: list[float]) -> list[tuple[float, float]]:
    """Budgets, and what the best mix gains there over the best single topology."""
    gmacs, top1 = published.gmacs, published.top1
    low, high = min(gmacs.values()), max(gmacs.values())
    front = front_along((n, gmacs[n], top1[n]) for n in gmacs)
    # The most is gained just below the cost of a topology on the front.
    grid = [low + (high - low) * i / BUDGETS for i in range(BUDGETS + 1)]
    found = []
    for bound in [*grid, *(gmacs[n] * (1 - 1e-9) for n in front[1:])]:
        limit = MeanBound(name="gmacs", costs=gmacs, bound=bound)
        shares = timed(lambda limit=limit: best_shares(top1, [limit]), times_ms)
        single = max(top1[n] for n in gmacs if gmacs[n] <= bound)
        found.append((bound, mean(shares, top1) - single))
    return found


def at_equal_accuracy(published: Published, times_ms: list[float]) -> list[tuple[float, float]]:
    """Accuracies, and the share of multiply-adds that the best mix saves there."""
    gmacs, top1 = published.gmacs, published.top1
    low, high = min(top1.values()), max(top1.values())
    front = front_along((n, gmacs[n], top1[n]) for n in gmacs)
    grid = [low + (high - low) * i / BUDGETS for i in range(1, BUDGETS + 1)]
    found = []
    for floor in [*grid, *(top1[n] + 1e-6 for n in front[:-1])]:
        limit = MeanBound(name="top1", costs={n: -a for n, a in top1.items()}, bound=-floor)
        worth = {n: -cost for n, cost in gmacs.items()}
        shares = timed(lambda limit=limit, worth=worth: best_shares(worth, [limit]), times_ms)
        single = min(gmacs[n] for n in gmacs if top1[n] >= floor)
        found.append((floor, 1 - mean(shares, gmacs) / single))
    return found


def mixing(times_ms: list[float]) -> tuple[list[list[str]], str]:
    rows, said = [], ""
    for name in FAMILIES:
        published = Published(name)
        gains = at_equal_cost(published, times_ms)
        saved = at_equal_accuracy(published, times_ms)
        best, least = max(gains, key=lambda g: g[1]), max(saved, key=lambda s: s[1])
        even = average(gain for _, gain in gains[: BUDGETS + 1])
        rows.append(
            [
                f"`{name}`",
                str(len(published.top1)),
                str(
                    len(front_along((n, published.gmacs[n], a) for n, a in published.top1.items()))
                ),
                f"**+{best[1]:.2f}** at {best[0]:.2f} G",
                f"+{even:.2f}",
                f"**{least[1]:.1%}** at {least[0]:.2f} %",
                f"{average(share for _, share in saved[:BUDGETS]):.1%}",
            ]
        )
        if name == FAMILIES[0]:
            said = (
                f"At equal mean multiply-adds a mix of two published DeiT topologies is up to "
                f"{best[1]:.2f} points more accurate than the best single one, at {best[0]:.2f} G, and "
                f"{even:.2f} in the mean over budgets; at equal mean accuracy it saves up to "
                f"{least[1]:.1%} of them."
            )
    return rows, said


# --- memory --------------------------------------------------------------------------------------


def resident(times_ms: list[float]) -> list[list[str]]:
    """Published DeiT in a part of the memory of all its weights, fp16, 20 budgets of multiply-adds."""
    published = Published("deit-ti-s-b")
    gmacs = published.gmacs
    ordered = sorted(gmacs.values())
    low, high = ordered[0], ordered[-1]
    bounds = [low + (high - low) * i / 19 for i in range(20)]
    scenarios = [Scenario(admitted=frozenset(n for n in gmacs if gmacs[n] <= b)) for b in bounds]
    safety = min(gmacs, key=gmacs.__getitem__)
    whole = memory_of_weights(
        published.family, published.complexity, budget_mib=1e6, bytes_per_weight=2
    ).of(gmacs)
    rows = []
    for part in (0.25, 0.5, 0.75, 1.0):
        memory = memory_of_weights(
            published.family, published.complexity, budget_mib=part * whole, bytes_per_weight=2
        )
        found = timed(
            lambda memory=memory: keep(published.top1, scenarios, memory, safety=safety), times_ms
        )
        rows.append([f"{part:.0%}", f"{part * whole:.0f}", *worth(found), f"{times_ms[-1]:.0f}"])
    return rows


def worth(found: Residency) -> list[str]:
    return [
        str(len(found.topologies)),
        f"**{found.expected_top1:.3f}**",
        f"{found.greedy_top1:.3f}",
        f"{found.front_top1:.3f}",
        "yes" if found.proven else f"within {found.gap:.3f}",
    ]


def made_up(seed: int, part: float) -> tuple[Mapping[str, float], list[Scenario], Memory, str]:
    """200 topologies of three anchors of 33 blocks with stitching layers, and 20 budgets."""
    draw = random.Random(seed)
    anchors = {"t": (3.0, 1.0), "s": (7.0, 1.8), "b": (27.0, 4.0)}
    sizes = {
        f"{a}{i}": mib * draw.uniform(0.9, 1.1)
        for a, (mib, _) in anchors.items()
        for i in range(33)
    }
    chains = {a: [f"{a}{i}" for i in range(33)] for a in anchors}
    while len(chains) < 200:
        front, back = draw.choice(["ts", "sb", "tb"])
        stop = draw.randrange(1, 33)
        start = min(32, max(0, stop + draw.randrange(-1, 2)))
        layer = f"{front}+{back}:{stop // 8}"
        sizes.setdefault(layer, draw.uniform(0.2, 0.8))
        blocks = [f"{front}{i}" for i in range(stop)], [f"{back}{i}" for i in range(start, 33)]
        chains[f"{front}{stop}+{back}{start}"] = [*blocks[0], layer, *blocks[1]]
    costs = {
        n: sum(anchors[p[0]][1] if "+" not in p else 0.5 for p in c) * draw.uniform(0.97, 1.03)
        for n, c in chains.items()
    }
    energies = {n: cost * draw.uniform(0.7, 1.3) for n, cost in costs.items()}
    top1 = {
        n: 60 + 24 * (1 - 2.718 ** (-cost / 45)) + draw.gauss(0, 0.8) for n, cost in costs.items()
    }
    by_cost, by_energy = sorted(costs.values()), sorted(energies.values())
    scenarios = []
    for j in range(20):
        most = by_cost[200 * (j + 1) // 21]
        dearest = by_energy[draw.randrange(50, 200)] if j % 2 else max(by_energy)
        admitted = frozenset(n for n in chains if costs[n] <= most and energies[n] <= dearest)
        scenarios.append(Scenario(admitted=admitted, weight=draw.uniform(0.5, 2)))
    memory = Memory(
        budget_mib=part * sum(sizes.values()), chains=chains, sizes_mib=sizes, time_limit_s=20
    )
    return top1, scenarios, memory, min(costs, key=costs.__getitem__)


def large(seeds: int) -> list[list[str]]:
    rows = []
    for part in (0.25, 0.5, 0.75):
        times_ms: list[float] = []
        gaps, gains = [], []
        for seed in range(seeds):
            top1, scenarios, memory, safety = made_up(seed, part)
            found = timed(
                lambda t=top1, s=scenarios, m=memory, y=safety: keep(t, s, m, safety=y), times_ms
            )
            gaps.append(found.proven)
            gains.append(found.expected_top1 - max(found.greedy_top1, found.front_top1))
        rows.append(
            [f"{part:.0%}", *times(times_ms), f"{sum(gaps)} of {seeds}", f"{max(gains):.3f}"]
        )
    return rows


# --- choices -------------------------------------------------------------------------------------


def pool(published: Published) -> list[Candidate]:
    """Made-up costs: 1 ms and 12 mJ for a billion multiply-adds, at 12 W."""
    return [
        Candidate(
            topology=n,
            top1=published.top1[n],
            median_ms=0.9 * g,
            latency_ms=g,
            energy_mj=12 * 0.9 * g,
            power_w=12.0,
        )
        for n, g in published.gmacs.items()
    ]


def together(seeds: int) -> list[list[str]]:
    rows = []
    candidates = pool(Published("deit-ti-s-b"))
    for number in (2, 3, 4, 5):
        for power_w in (None, 8.0):
            times_ms: list[float] = []
            infeasible = 0
            for seed in range(seeds):
                draw = random.Random(seed)
                streams = [
                    Stream(
                        name=f"network {i}",
                        pool=candidates,
                        period_ms=draw.choice([16.7, 25.0, 33.3, 50.0, 100.0]),
                        weight=draw.uniform(0.5, 2),
                    )
                    for i in range(number)
                ]
                try:
                    timed(
                        lambda s=streams, p=power_w: coschedule(s, power_w=p, idle_w=3.0), times_ms
                    )
                except InfeasibleError:
                    infeasible += 1
            bound = "deadlines" if power_w is None else f"deadlines, {power_w:g} W"
            rows.append([str(number), bound, *times(times_ms), str(infeasible)])
    return rows


def largest(rows: list[list[str]], number: int) -> str:
    """What so many networks take, with any bounds."""
    of = [row for row in rows if row[0] == str(number)]
    middle, longest = (max(float(row[i]) for row in of) for i in (3, 4))
    return f"up to {middle:.3g} ms in the median and {longest:.3g} ms at most"


def small() -> list[list[str]]:
    """Times of what is solved for one budget, in milliseconds."""
    candidates = pool(Published("deit-ti-s-b"))
    budget = Budget(latency_ms=10, power_w=5, rate_hz=30, idle_w=3)
    front = pareto_front(candidates)
    whole: dict[str, Callable[[], object]] = {
        "one choice of 71": lambda: choose(candidates, budget),
        "the front of 71": lambda: pareto_front(candidates),
        "the best mix of 71, one mean bound": lambda: mixture(candidates, budget),
        "the best mix of the front": lambda: mixture(front, budget),
        "a thousand frames of a mix": lambda: list(islice(diffuse({"a": 0.3, "b": 0.7}), 1000)),
    }
    rows = []
    for name, what in whole.items():
        what()  # imports
        times_ms: list[float] = []
        for _ in range(50):
            timed(what, times_ms)
        rows.append([name, *times(times_ms)])
    return rows


# --- page ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="Made-up cases of each size.")
    parser.add_argument(
        "--out", type=Path, help="Where the page goes; by default beside the others."
    )
    given = parser.parse_args()
    lp_ms: list[float] = []
    kept_ms: list[float] = []
    with pages.observed() as span:
        gains, said = mixing(lp_ms)
        kept, made = resident(kept_ms), large(given.seeds)
        shared, choices = together(given.seeds), small()
    device = detect()
    slowest = max(float(row[3]) for row in made)
    text = pages.page(
        "What do mixes gain, and how long do the solvers take?",
        "Published accuracies over shipped multiply-adds; made-up cases where it is said.",
        reading=[
            pages.noise(span.others),
            said,
            f"A linear programme of shares takes {median(lp_ms):.2g} ms in the median. What to keep of "
            f"200 topologies in 100 parts for 20 budgets takes up to {slowest / 1e3:.2g} s with the "
            "proof.",
            f"Topologies for several networks of 71 each take {largest(shared, 4)} for four and "
            f"{largest(shared, 5)} for five.",
        ],
        machine=f"{device.hardware}, {device.memory_mib} MiB.",
        versions={
            **{name: version(name) for name in ("numpy", "scipy")},
            "python": sys.version.split()[0],
            "edgestitch": __version__,
        },
        command=f"python bench/scheduling.py --seeds {given.seeds}",
        sections={
            "Mixing": [
                "The best shares of topologies at the same mean multiply-adds as the best single one, "
                f"over {BUDGETS + 1} budgets evenly spread and just below each topology of the front; and "
                "the multiply-adds saved at the same mean accuracy, likewise.",
                "",
                *pages.table(
                    [
                        "family",
                        "topologies",
                        "front",
                        "most points",
                        "in the mean",
                        "most saved",
                        "in the mean",
                    ],
                    gains,
                ),
            ],
            "Memory": [
                "Published DeiT, fp16 weights alone, 20 budgets of multiply-adds evenly spread and "
                "equally likely; expected top-1 of the proven choice, of adding what gains most for its "
                "size, and of going down the front.",
                "",
                *pages.table(
                    ["of all", "MiB", "kept", "expected", "greedy", "front", "proven", "ms"], kept
                ),
                "",
                "Made up: 200 topologies of 3 anchors of 33 blocks and their stitching layers, 20 budgets "
                "of latency and energy.",
                "",
                *pages.table(
                    ["of all", "cases", "median, ms", "longest, ms", "proven", "most above greedy"],
                    made,
                ),
            ],
            "Several networks": [
                "71 topologies each, made-up costs, random periods and weights.",
                "",
                *pages.table(
                    ["networks", "bounds", "cases", "median, ms", "longest, ms", "infeasible"],
                    shared,
                ),
            ],
            "One budget": pages.table(["what", "runs", "median, ms", "longest, ms"], choices),
        },
        missing=[
            "Gains in measured milliseconds and millijoules: multiply-adds are not what a device takes.",
            "Whether a device keeps a mix's mean power: that takes a meter.",
        ],
    )
    path = given.out or pages.result_path("scheduling", device.hardware)
    path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
