"""How topologies are divided into segments, the units that are compiled.

A border between two segments costs time at every call. A segment that runs on where only some
topologies do saves them borders, and costs a second copy of the weights that the others need too:

    memory  =  sum over different segments of (their atoms' weights + what a segment takes itself)
    latency =  the topology's atoms + (its segments - 1) x border

The division without copies is always there (`cut_topologies`); `choose_cut` looks for the one with
the least mean latency within a budget of memory.
"""

import math
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from .compose import BORDER, terms
from .errors import InfeasibleError
from .family import Family
from .profile import Profile
from .topology import Run

Chain = tuple[str, ...]

SLACK_MIB = 1e-5
"""Budgets are held to ten bytes: sums of floats, and the solver's own tolerance, are no closer."""

TOLERANCE = 1e-5
"""Borders in a call that are no difference: what the solver proves is no closer."""

INFEASIBLE = 2
"""What `scipy.optimize.milp` calls it."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How topologies are divided: segments by name, with their atoms, and each topology's segments."""

    atoms: Mapping[str, tuple[str, ...]]
    chains: Mapping[str, tuple[str, ...]]


def cut_topologies(family: Family, topologies: Iterable[str]) -> Cut:
    """The fewest segments such that every topology uses each of them whole or not at all."""
    chains = {name: family.atoms(name) for name in topologies}
    parts = divide(chains.values())
    return _named({name: parts[chain] for name, chain in chains.items()})


def part(plan: Cut, topologies: Iterable[str]) -> Cut:
    """Some topologies of a cut, divided as they are there."""
    chains = {name: plan.chains[name] for name in topologies}
    used = dict.fromkeys(segment for chain in chains.values() for segment in chain)
    return Cut(atoms={name: plan.atoms[name] for name in used}, chains=chains)


def divide(chains: Iterable[Chain]) -> dict[Chain, tuple[Chain, ...]]:
    """Each chain of atoms as the fewest segments such that each segment is used whole or not at all.

    Two atoms stay together where every chain that has one has the other right beside it. So no
    weight is compiled twice, and removing any border would break a chain.
    """
    chains = tuple(dict.fromkeys(chains))
    ends = ("", "")
    following: dict[str, set[str]] = {}
    leading: dict[str, set[str]] = {}
    for chain in chains:
        for before, after in pairwise((ends[0], *chain, ends[1])):
            following.setdefault(before, set()).add(after)
            leading.setdefault(after, set()).add(before)

    def joined(before: str, after: str) -> bool:
        return following[before] == {after} and leading[after] == {before}

    segments = {}
    for chain in chains:
        parts = [[chain[0]]]
        for before, after in pairwise(chain):
            if joined(before, after):
                parts[-1].append(after)
            else:
                parts.append([after])
        segments[chain] = tuple(tuple(part) for part in parts)
    return segments


def segment_name(atoms: tuple[str, ...]) -> str:
    """A segment's name: its atoms, consecutive blocks as one run (`ti:stem+ti:0:6`)."""
    parts: list[str] = []
    run: Run | None = None
    for atom in atoms:
        anchor, _, block = atom.partition(":")
        if not block.isdigit():
            run = None
            parts.append(atom)
        elif run is not None and run.anchor == anchor and run.stop == int(block):
            run = Run(anchor, run.start, run.stop + 1)
            parts[-1] = run.name
        else:
            run = Run(anchor, int(block), int(block) + 1)
            parts.append(atom)
    return "+".join(parts)


def _named(chains: Mapping[str, Sequence[Chain]]) -> Cut:
    """The cut from each topology's segments, given by their atoms."""
    return Cut(
        atoms={segment_name(atoms): atoms for chain in chains.values() for atoms in chain},
        chains={name: tuple(map(segment_name, chain)) for name, chain in chains.items()},
    )


# --- what a border costs ---------------------------------------------------------------------


def border_ms(profile: Profile, family: Family) -> float | None:
    """What one border between segments adds to a call, from a composed profile.

    `None` where the profile does not know it: no cost was composed, or the topologies that the sum
    was fitted to have so many borders as follows from their atoms. Then the sum gives borders and
    atoms whatever shares it likes, and only the totals are right. It is so wherever the whole of a
    family was measured, cut without copies: each block is a segment, with one border.
    """
    composition = profile.composition
    if composition is None:
        return None
    cut = cut_topologies(family, (cost.topology for cost in profile.costs))
    if set(cut.atoms) != set(profile.segments):
        return None
    summed = terms(
        {name: family.atoms(name) for name in cut.chains},
        composition.classes,
        {name: len(chain) - 1 for name, chain in cut.chains.items()},
    )
    rows = summed.rows(composition.designed)
    others = np.delete(rows, summed.columns.index(BORDER), axis=1)
    if np.linalg.matrix_rank(rows) == np.linalg.matrix_rank(others):
        return None
    return composition.latency.costs.get(BORDER)


# --- the choice ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ChosenCut:
    """A division of topologies, with what it takes and gains beside the one without copies."""

    cut: Cut
    memory_mib: float
    without_copies_mib: float
    """What the division without copies takes."""
    gain_ms: float
    """Mean latency that it saves, weighted by use."""
    borders: int
    borders_without_copies: int
    """Of all topologies together."""
    proven: bool
    """Whether no division that fits is faster in the mean."""
    gap_ms: float
    """How much faster one might be at most; 0 if proven."""


def choose_cut(
    family: Family,
    topologies: Iterable[str],
    *,
    atoms_mib: Mapping[str, float],
    border_ms: float,
    memory_mib: float | None = None,
    shares_weights: bool = False,
    segment_mib: float = 0.0,
    use: Mapping[str, float] | None = None,
    time_limit_s: float = 5.0,
) -> ChosenCut:
    """The division with the least mean latency whose segments fit in `memory_mib` together.

    Of equals it is one that takes less memory, and then one of fewer segments, as far as the time
    limit allows to look for it. Without a budget it is the division without copies.

    `atoms_mib` are the weights of each atom, `segment_mib` what a compiled segment takes beside
    them. Where the backend's segments share their weights, a copy costs only the latter. `use` says
    how often each topology runs, in any unit; without it all run equally often. What a time limit
    ends is not proven, and may differ from one machine to another.

    Raises:
        InfeasibleError: no division fits; the message names which of the topologies would.
        ValueError: a number is missing, negative or no number.
    """
    names = tuple(dict.fromkeys(topologies))
    if not names:
        raise ValueError("no topologies were given")
    base = cut_topologies(family, names)
    division = _Division(
        base=base,
        sizes_mib=_sizes(base, atoms_mib),
        share=_shares(names, use),
        segment_mib=_amount("segment_mib", segment_mib),
        shares_weights=shares_weights,
        budget_mib=math.inf if memory_mib is None else _memory(memory_mib),
        counted=_amount("border_ms", border_ms) > 0,
        paths={name: tuple((segment,) for segment in chain) for name, chain in base.chains.items()},
    )
    if memory_mib is None:
        return _chosen(division, division, division.cost, border_ms)
    whole = division.taking({name: (chain,) for name, chain in base.chains.items()})
    if whole.fits and whole.counted and all(division.share.values()):
        return _chosen(division, whole, 0.0, border_ms)  # nothing else is as fast
    if segment_mib == 0 and not division.fits:
        raise InfeasibleError(_too_large(division, proven=True))  # nothing takes less
    best, bound = _solve(division, _merged(division), time_limit_s)
    if not best.fits:
        raise InfeasibleError(_too_large(division, proven=bound == math.inf))
    return _chosen(division, best, bound, border_ms)


def _amount(name: str, value: float, most: float = sys.float_info.max) -> float:
    if not 0 <= value <= most:
        raise ValueError(f"{name} must be a number not below zero, not {value}")
    return value


def _memory(memory_mib: float) -> float:
    """Memory may be without end."""
    return _amount("memory_mib", memory_mib, math.inf)


def _sizes(cut: Cut, atoms_mib: Mapping[str, float]) -> dict[str, float]:
    """The weights of each segment."""
    missing = sorted({a for atoms in cut.atoms.values() for a in atoms} - atoms_mib.keys())
    if missing:
        raise ValueError(f"atoms_mib lacks {len(missing)} atoms of these topologies: {missing[0]}")
    return {
        name: math.fsum(_amount(f"atoms_mib of {atom}", atoms_mib[atom]) for atom in atoms)
        for name, atoms in cut.atoms.items()
    }


def _shares(names: Sequence[str], use: Mapping[str, float] | None) -> dict[str, float]:
    """How much of all calls each topology has; they add up to 1."""
    if use is None:
        return dict.fromkeys(names, 1 / len(names))
    unknown = sorted(use.keys() - set(names))
    if unknown:
        raise ValueError(f"use has {unknown[0]}, which is not among the {len(names)} topologies")
    used = {name: _amount(f"use of {name}", use.get(name, 0.0)) for name in names}
    total = sum(used.values())
    if not 0 < total < math.inf:
        raise ValueError(f"use of all topologies together must be above zero, not {total}")
    return {name: value / total for name, value in used.items()}


@dataclass(frozen=True, kw_only=True)
class _Division:
    """Topologies as paths over runs of base segments, and what these cost.

    Base segments are those without copies. A border inside of one is never worth it: all borders in
    it can move to its one end, whichever has the fewer different segments beside it, and then no
    topology has more borders, nor is anything compiled more often.
    """

    base: Cut
    sizes_mib: Mapping[str, float]
    """Weights of base segments."""
    share: Mapping[str, float]
    segment_mib: float
    shares_weights: bool
    budget_mib: float
    counted: bool
    """Whether borders cost anything."""
    paths: Mapping[str, tuple[Chain, ...]]

    def taking(self, paths: Mapping[str, tuple[Chain, ...]]) -> "_Division":
        return replace(self, paths=paths)

    @property
    def segments(self) -> frozenset[Chain]:
        """The different segments."""
        return frozenset(segment for path in self.paths.values() for segment in path)

    @property
    def shared_mib(self) -> float:
        """What is there once, whatever is compiled."""
        return math.fsum(self.sizes_mib.values()) if self.shares_weights else 0.0

    def size(self, segment: Chain) -> float:
        weights = () if self.shares_weights else (self.sizes_mib[name] for name in segment)
        return math.fsum((self.segment_mib, *weights))

    def memory(self, segments: Iterable[Chain]) -> float:
        return math.fsum((self.shared_mib, *map(self.size, segments)))

    @property
    def fits(self) -> bool:
        return self.memory(self.segments) <= self.budget_mib + SLACK_MIB

    @property
    def borders(self) -> int:
        return sum(len(path) - 1 for path in self.paths.values())

    @property
    def cost(self) -> float:
        """Mean number of borders in a call, weighted by use."""
        return math.fsum(self.weight(name) * (len(path) - 1) for name, path in self.paths.items())

    def weight(self, name: str) -> float:
        return self.share[name] if self.counted else 0.0

    @property
    def rank(self) -> tuple[bool, float, float, int]:
        """The lesser of two is the better one."""
        cost, memory = round(self.cost, 6), round(self.memory(self.segments), 6)
        return (not self.fits, cost, memory, len(self.segments))


def _chosen(start: _Division, best: _Division, bound: float, border_ms: float) -> ChosenCut:
    gap = best.cost - bound
    atoms = {
        name: tuple(
            tuple(atom for base in segment for atom in best.base.atoms[base]) for segment in path
        )
        for name, path in best.paths.items()
    }
    return ChosenCut(
        cut=_named(atoms),
        memory_mib=best.memory(best.segments),
        without_copies_mib=start.memory(start.segments),
        gain_ms=(start.cost - best.cost) * border_ms,
        borders=best.borders,
        borders_without_copies=start.borders,
        proven=gap <= TOLERANCE,
        gap_ms=0.0 if gap <= TOLERANCE else gap * border_ms,
    )


def _merged(division: _Division) -> _Division:
    """Two segments made one wherever they meet, again and again, as long as that fits.

    The next pair is always the one that saves the most borders for the memory that it takes: a
    division to start from, and to fall back on.
    """
    while True:
        users: dict[Chain, set[str]] = {}
        pairs: dict[tuple[Chain, Chain], set[str]] = {}
        for name, path in division.paths.items():
            for segment in path:
                users.setdefault(segment, set()).add(name)
            for pair in pairwise(path):
                pairs.setdefault(pair, set()).add(name)
        room = division.budget_mib - division.memory(users) + SLACK_MIB
        best: tuple[float, tuple[Chain, Chain]] | None = None
        for pair, names in pairs.items():
            left = (division.size(segment) for segment in pair if users[segment] <= names)
            joined = pair[0] + pair[1]
            added = (0.0 if joined in users else division.size(joined)) - math.fsum(left)
            gain = math.fsum(map(division.weight, names))
            if added > SLACK_MIB and (added > room or gain == 0):
                continue
            worth = gain / added if added > SLACK_MIB else math.inf
            if best is None or worth > best[0]:
                best = worth, pair
        if best is None:
            return division
        pair = best[1]
        division = division.taking({n: _joined(p, pair) for n, p in division.paths.items()})


def _joined(path: tuple[Chain, ...], pair: tuple[Chain, Chain]) -> tuple[Chain, ...]:
    for place, here in enumerate(pairwise(path)):
        if here == pair:
            return (*path[:place], pair[0] + pair[1], *path[place + 2 :])
    return path


def _solve(division: _Division, start: _Division, time_limit_s: float) -> tuple[_Division, float]:
    """The best division that is found, and a bound on the cost of any: infinite if none fits."""
    until = time.monotonic() + time_limit_s
    programme = Programme()
    compiled = {segment: programme.column() for segment in _candidates(division)}
    # Whether a topology takes a segment may be a fraction: once it is known which are compiled, each
    # topology looks for a shortest path, and of those, whole ones are among the best.
    steps: list[tuple[str, int]] = []
    for name, chain in division.base.chains.items():
        flows: list[list[tuple[int, float]]] = [[] for _ in range(len(chain) + 1)]
        for first, stop in _intervals(chain):
            if chain[first:stop] in compiled:
                step = programme.column(whole=False)
                steps.append((name, step))
                flows[first].append((step, 1.0))
                flows[stop].append((step, -1.0))
                programme.row([(step, 1.0), (compiled[chain[first:stop]], -1.0)], -1.0, 0.0)
        for place, flow in enumerate(flows[:-1]):
            programme.row(flow, float(place == 0), float(place == 0))
    room = division.budget_mib - division.shared_mib
    memory = [(column, division.size(segment)) for segment, column in compiled.items()]
    if math.isfinite(room):
        programme.row(memory, -math.inf, room)
    taken = [(step, division.weight(name)) for name, step in steps]
    base = sum(map(division.weight, division.base.chains))  # a path has one border less than steps
    found, bound, infeasible = programme.minimise(taken, until - time.monotonic())
    if infeasible:
        # What is known to fit does so by the slack alone, which the solver does not allow.
        return start, start.cost if start.fits else math.inf
    if found is None:
        return start, max(0.0, bound - base)
    best = min(start, _along(division, found, compiled), key=lambda one: one.rank)
    # Of those as fast the smallest; a KiB for each segment makes fewer better where sizes are equal.
    programme.row(taken, 0.0, best.cost + base + 1e-7)
    small = [(column, size + 2**-10) for column, size in memory]
    found, _, _ = programme.minimise(small, until - time.monotonic())
    if found is not None:
        best = min(best, _along(division, found, compiled), key=lambda one: one.rank)
    return best, max(0.0, bound - base)


def _intervals(chain: Chain) -> Iterable[tuple[int, int]]:
    for first in range(len(chain)):
        for stop in range(first + 1, len(chain) + 1):
            yield first, stop


def _candidates(division: _Division) -> list[Chain]:
    """The segments that a division within the budget can have."""
    chains = division.base.chains
    having: dict[Chain, set[str]] = {}
    for name, chain in chains.items():
        for first, stop in _intervals(chain):
            having.setdefault(chain[first:stop], set()).add(name)
    if division.shares_weights or not math.isfinite(division.budget_mib):
        return list(having)
    once = math.fsum(division.sizes_mib.values())

    def least(segment: Chain) -> float:
        """The weights of all, and again those in the segment that others need elsewhere."""
        copied = (name for name in segment if having[name,] != having[segment])
        return math.fsum((once, *(division.sizes_mib[name] for name in copied)))

    return [s for s in having if len(s) == 1 or least(s) <= division.budget_mib + SLACK_MIB]


def _along(division: _Division, found: np.ndarray, compiled: Mapping[Chain, int]) -> _Division:
    """Each topology on its shortest path over what is compiled."""
    there = {segment for segment, column in compiled.items() if found[column] > 0.5}
    paths = {name: _shortest(chain, there) for name, chain in division.base.chains.items()}
    # Where rounding left a hole, the topology's base segments.
    return division.taking({n: p or division.paths[n] for n, p in paths.items()})


def _shortest(chain: Chain, there: Collection[Chain]) -> tuple[Chain, ...]:
    """The fewest segments that make up the chain; empty if these cannot."""
    paths: dict[int, tuple[Chain, ...]] = {0: ()}
    for stop in range(1, len(chain) + 1):
        ways = [
            (*paths[first], chain[first:stop])
            for first in range(stop)
            if first in paths and chain[first:stop] in there
        ]
        if ways:
            paths[stop] = min(ways, key=len)
    return paths.get(len(chain), ())


def _too_large(division: _Division, *, proven: bool) -> str:
    names = tuple(division.base.chains)
    found = "no division fits" if proven else "no division was found that fits"
    message = (
        f"{len(names)} topologies, {division.budget_mib:.4g} MiB of memory: {found}, without copies "
        f"they take {division.memory(division.segments):.4g} MiB"
    )
    sizes = {name: size + division.segment_mib for name, size in division.sizes_mib.items()}
    try:
        kept = largest_resident(
            division.base.chains, sizes, memory_mib=division.budget_mib, safety=names[0]
        )
    except InfeasibleError as error:
        return f"{message}; {error}"
    most = "the most" if kept.proven else "as many as were found"
    return (
        f"{message}; {most} that fit with {names[0]}, the first, are {len(kept.topologies)}, in "
        f"{kept.memory_mib:.4g} MiB: {_listed(kept.topologies)}; deploy these, or allow more memory"
    )


def _listed(names: Sequence[str], most: int = 12) -> str:
    beyond = len(names) - most
    return ", ".join(names[:most]) + (f" and {beyond} more" if beyond > 0 else "")


# --- what fits -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ResidentSet:
    """Topologies that fit in memory together."""

    topologies: tuple[str, ...]
    """In the order given."""
    memory_mib: float
    proven: bool
    """Whether no more of them fit."""
    gap: int
    """How many more might fit at most; 0 if proven."""


def largest_resident(
    chains: Mapping[str, Sequence[str]],
    sizes_mib: Mapping[str, float],
    *,
    memory_mib: float,
    safety: str,
    time_limit_s: float = 5.0,
) -> ResidentSet:
    """As many topologies as fit in `memory_mib` together, `safety` among them.

    `chains` are the parts of each topology, such as its segments; a part takes its size once,
    however many topologies use it. Of sets of as many topologies it is one that takes less memory,
    as far as the time limit allows to look for it.

    Raises:
        InfeasibleError: `safety` alone does not fit.
        ValueError: a size is missing, negative or no number, or `safety` is not among them.
    """
    parts = {name: frozenset(chain) for name, chain in chains.items()}
    union = frozenset().union(*parts.values())
    if safety not in parts:
        raise ValueError(f"safety {safety} is not among the {len(parts)} topologies")
    missing = sorted(union - sizes_mib.keys())
    if missing:
        raise ValueError(f"sizes_mib lacks {len(missing)} parts of these topologies: {missing[0]}")
    sizes = {name: _amount(f"sizes_mib of {name}", sizes_mib[name]) for name in sorted(union)}
    budget = _memory(memory_mib) + SLACK_MIB

    def memory(names: Iterable[str]) -> float:
        return math.fsum(sizes[name] for name in frozenset().union(*(parts[n] for n in names)))

    alone = memory([safety])
    if alone > budget:
        raise InfeasibleError(
            f"{safety} alone takes {alone:.4g} MiB, {alone - memory_mib:.3g} MiB too much"
        )
    if memory(parts) <= budget:
        return ResidentSet(topologies=tuple(parts), memory_mib=memory(parts), proven=True, gap=0)

    def better(names: set[str], other: set[str]) -> set[str]:
        fitting = [each for each in (names, other) if safety in each and memory(each) <= budget]
        return min(fitting, key=lambda each: (-len(each), round(memory(each), 6)))

    best = _added(parts, safety, memory, budget)
    until = time.monotonic() + time_limit_s
    programme = Programme()
    kept = {name: programme.column() for name in parts}
    # A part is used as much as the most of its topologies, so it is there or not without being told.
    used = {name: programme.column(whole=False) for name in sizes}
    for name, segments in parts.items():
        for segment in sorted(segments):
            programme.row([(kept[name], 1.0), (used[segment], -1.0)], -1.0, 0.0)
    programme.row([(kept[safety], 1.0)], 1.0, 1.0)
    room = [(column, sizes[segment]) for segment, column in used.items()]
    programme.row(room, 0.0, memory_mib)
    count = [(column, -1.0) for column in kept.values()]
    most = len(parts) - 1
    found, bound, _ = programme.minimise(count, until - time.monotonic())
    if math.isfinite(bound):
        most = min(most, math.floor(TOLERANCE - bound))
    if found is not None:
        best = better(best, {name for name, column in kept.items() if found[column] > 0.5})
        programme.row(count, -math.inf, 0.5 - len(best))
        found, _, _ = programme.minimise(room, until - time.monotonic())
    if found is not None:
        best = better(best, {name for name, column in kept.items() if found[column] > 0.5})
    gap = max(0, most - len(best))
    topologies = tuple(name for name in parts if name in best)
    return ResidentSet(topologies=topologies, memory_mib=memory(best), proven=gap == 0, gap=gap)


def _added(
    names: Iterable[str],
    safety: str,
    memory: Callable[[Iterable[str]], float],
    budget_mib: float,
) -> set[str]:
    """The safety topology, then always the one that adds the least memory, while it fits."""
    chosen, left = {safety}, [name for name in names if name != safety]
    while left:
        needed = {name: memory({*chosen, name}) for name in left}
        left = [name for name in left if needed[name] <= budget_mib]
        if left:
            chosen.add(min(left, key=needed.__getitem__))
            left = [name for name in left if name not in chosen]
    return chosen


# --- the solver ------------------------------------------------------------------------------


@dataclass(eq=False)
class Programme:
    """A mixed-integer linear programme whose variables are from 0 to 1."""

    whole: list[bool] = field(default_factory=list)
    entries: list[tuple[int, int, float]] = field(default_factory=list)
    bounds: list[tuple[float, float]] = field(default_factory=list)

    def column(self, *, whole: bool = True) -> int:
        """The number of a new variable; `whole`: it is 0 or 1, and nothing between."""
        self.whole.append(whole)
        return len(self.whole) - 1

    def row(self, terms: Iterable[tuple[int, float]], least: float, most: float) -> None:
        """The sum of variables times numbers is between these two."""
        self.entries += [(len(self.bounds), column, value) for column, value in terms]
        self.bounds.append((least, most))

    def minimise(
        self, terms: Iterable[tuple[int, float]], time_limit_s: float
    ) -> tuple[np.ndarray | None, float, bool]:
        """The best values found, a bound on the sum of any, and whether there are none at all."""
        from scipy.optimize import Bounds, LinearConstraint, milp  # half a second to import
        from scipy.sparse import coo_array

        if time_limit_s <= 0:
            return None, -math.inf, False
        objective = np.zeros(len(self.whole))
        for column, value in terms:
            objective[column] += value
        rows, columns, values = zip(*self.entries, strict=True)
        least, most = zip(*self.bounds, strict=True)
        shape = (len(self.bounds), len(self.whole))
        answer = milp(
            objective,
            integrality=np.array(self.whole, int),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(
                coo_array((values, (rows, columns)), shape).tocsr(), least, most
            ),
            options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
        )
        bound = answer.mip_dual_bound
        return answer.x, -math.inf if bound is None else float(bound), answer.status == INFEASIBLE
