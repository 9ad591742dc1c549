"""Which topologies to keep in memory, when their segments are shared and the budget may change.

Two topologies that run through the same segments take that memory once. So what one of them adds
depends on which others are there, and adding whichever is worth most for its size is not the best
choice. It is a knapsack over unions of sets (Goldschmidt, Nehme and Yu 1994), here with a worth that
is a mean over budgets: under each, the most accurate of what is kept and admitted.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from .artifact import Value
from .complexity import Complexity
from .errors import InfeasibleError
from .family import Family

if TYPE_CHECKING:
    from .cut import Programme

SLACK_MIB = 1e-5
"""Budgets are held to ten bytes: sums of floats, and the solver's own tolerance, are no closer."""

TOLERANCE = 1e-5
"""Points of top-1 that are no difference: what the solver proves is no closer."""


class Residency(Value, frozen=True, kw_only=True):
    """Topologies that are kept within a budget of memory, with what that is worth."""

    topologies: tuple[str, ...]
    """In the order given; the safety topology is among them."""
    memory_mib: float
    budget_mib: float
    expected_top1: float
    """Mean over the scenarios; one that no topology here is admitted in counts as 0."""
    proven: bool
    """Whether no other set that fits is worth more."""
    gap: float
    """How many points of top-1 more another might be worth at most; 0 if proven."""
    greedy_top1: float
    """Expected, of adding again and again what gains most for the memory that it adds."""
    front_top1: float
    """Expected, of going down the front from the most accurate on and keeping what fits."""
    unmet: int = 0
    """Scenarios in which nothing that is kept is admitted."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A budget that may come, by the topologies that it admits."""

    admitted: frozenset[str]
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A budget of memory, and what topologies take of it."""

    budget_mib: float
    chains: Mapping[str, Sequence[str]]
    """The parts of each topology, such as its segments or atoms."""
    sizes_mib: Mapping[str, float]
    """A part takes its size once, however many topologies use it."""
    fixed_mib: float = 0.0
    """Taken whatever is kept, such as buffers."""
    topology_mib: float = 0.0
    """What a topology takes beside its parts, such as a captured graph."""
    time_limit_s: float = 5.0

    def __post_init__(self) -> None:
        if math.isnan(self.budget_mib) or self.budget_mib <= 0:
            raise ValueError(f"a budget of memory must be above zero, not {self.budget_mib} MiB")
        numbers = {"fixed_mib": self.fixed_mib, "topology_mib": self.topology_mib}
        for name, size in {**numbers, **self.sizes_mib}.items():
            if not (math.isfinite(size) and size >= 0):
                raise ValueError(
                    f"the size of {name} must be finite and not below zero, not {size}"
                )

    @cached_property
    def parts(self) -> dict[str, frozenset[str]]:
        return {name: frozenset(chain) for name, chain in self.chains.items()}

    def of(self, topologies: Iterable[str]) -> float:
        """MiB that these take together."""
        names = frozenset(topologies)
        parts = frozenset[str]().union(*(self.parts[name] for name in names))
        weights = math.fsum(self.sizes_mib[part] for part in parts)
        return weights + self.fixed_mib + self.topology_mib * len(names)

    def fits(self, topologies: Iterable[str]) -> bool:
        return self.of(topologies) <= self.budget_mib + SLACK_MIB

    def require(self, topologies: Iterable[str]) -> None:
        """Raises `ValueError` unless the parts of all these, and their sizes, are known."""
        unknown = sorted(set(topologies) - self.chains.keys())
        if unknown:
            raise ValueError(f"chains lacks {len(unknown)} topologies: {unknown[0]}")
        parts = {part for name in topologies for part in self.chains[name]}
        missing = sorted(parts - self.sizes_mib.keys())
        if missing:
            raise ValueError(f"sizes_mib lacks {len(missing)} parts: {missing[0]}")


def memory_of_weights(
    family: Family, complexity: Complexity, *, budget_mib: float, bytes_per_weight: int = 4
) -> Memory:
    """A budget of memory for a family's weights alone: 4 bytes each in fp32, 2 in fp16 and bf16.

    What a backend takes beside is not in it; leave it room, or give `fixed_mib` and `topology_mib`.

    Raises:
        MismatchError: the complexity is of another family.
    """
    complexity.check(family)
    mib = bytes_per_weight / 2**20
    return Memory(
        budget_mib=budget_mib,
        chains={topology.name: family.atoms(topology) for topology in family.topologies},
        sizes_mib={atom: mib * found.params for atom, found in complexity.atoms.items()},
    )


def keep(
    top1: Mapping[str, float], scenarios: Sequence[Scenario], memory: Memory, *, safety: str
) -> Residency:
    """The topologies within the memory that are worth most, `safety` among them.

    Worth is top-1 in the mean over scenarios: the best admitted one that is kept, or 0 where none is.
    Nothing is kept that no scenario uses. What a time limit ends is not proven, and may differ from
    one machine to another.

    Raises:
        InfeasibleError: `safety` alone does not fit; the message says by how much.
        ValueError: a weight or a size is missing, negative or no number, or no scenario has any
            weight.
    """
    question = _question(top1, scenarios, memory, safety)
    alone = memory.of([safety])
    if not memory.fits([safety]):
        raise InfeasibleError(
            f"{safety}, the safety topology, alone takes {alone:.4g} MiB of {memory.budget_mib:.4g} "
            f"MiB, {alone - memory.budget_mib:.3g} MiB too much; allow more memory or fewer bits"
        )
    greedy, front = _greedy(question), _down_the_front(question)
    start = max(greedy, front, key=question.worth)
    best, bound = _solve(question, start)
    best = _without_useless(question, best)
    worth = question.worth(best)
    gap = bound - worth
    return Residency(
        topologies=tuple(name for name in top1 if name in best),
        memory_mib=memory.of(best),
        budget_mib=memory.budget_mib,
        expected_top1=worth,
        proven=gap <= TOLERANCE,
        gap=0.0 if gap <= TOLERANCE else gap,
        greedy_top1=question.worth(greedy),
        front_top1=question.worth(front),
        unmet=sum(not scenario.admitted & best for scenario in scenarios),
    )


Chosen = frozenset[str]


@dataclass(frozen=True, kw_only=True)
class _Question:
    top1: Mapping[str, float]
    ranked: Mapping[tuple[str, ...], float]
    """The weight of scenarios, they add up to 1, by what they admit, the most accurate first."""
    memory: Memory
    safety: str

    def worth(self, kept: Iterable[str]) -> float:
        """Expected top-1."""
        kept = frozenset(kept)
        best = (
            (weight, next((name for name in ranked if name in kept), None))
            for ranked, weight in self.ranked.items()
        )
        return math.fsum(weight * self.top1[name] for weight, name in best if name is not None)


def _question(
    top1: Mapping[str, float], scenarios: Sequence[Scenario], memory: Memory, safety: str
) -> _Question:
    if safety not in top1:
        raise ValueError(f"safety {safety} is not among the {len(top1)} topologies")
    memory.require(top1)
    for scenario in scenarios:
        if not (math.isfinite(scenario.weight) and scenario.weight >= 0):
            raise ValueError(f"a weight must be finite and not below zero, not {scenario.weight}")
    total = math.fsum(scenario.weight for scenario in scenarios)
    if not total > 0:
        raise ValueError(
            f"the weights of {len(scenarios)} scenarios add up to {total:g}, not above 0"
        )
    by_worth = sorted(top1, key=lambda name: (-top1[name], name != safety))
    ranked: dict[tuple[str, ...], float] = {}
    for scenario in scenarios:
        admitted = [name for name in by_worth if name in scenario.admitted]
        if safety in admitted:  # it is always there, so nothing worse is ever used
            admitted = admitted[: admitted.index(safety) + 1]
        ranked[tuple(admitted)] = ranked.get(tuple(admitted), 0.0) + scenario.weight / total
    return _Question(top1=top1, ranked=ranked, memory=memory, safety=safety)


# --- without a proof -------------------------------------------------------------------------


def _greedy(question: _Question) -> Chosen:
    """Again and again what gains most for the memory that it adds, while it fits."""
    kept = frozenset([question.safety])
    left = [name for name in question.top1 if name != question.safety]
    while True:
        taken, worth = question.memory.of(kept), question.worth(kept)
        best, best_rate = None, 0.0
        left = [name for name in left if question.memory.fits({*kept, name})]
        for name in left:
            gain = question.worth({*kept, name}) - worth
            added = question.memory.of({*kept, name}) - taken
            rate = gain / max(added, SLACK_MIB)
            if gain > TOLERANCE and rate > best_rate:
                best, best_rate = name, rate
        if best is None:
            return kept
        kept |= {best}
        left.remove(best)


def _down_the_front(question: _Question) -> Chosen:
    """From the most accurate down, what fits of those that are best under some budget.

    What one does who counts neither what is shared nor how often a budget comes.
    """
    kept = frozenset([question.safety])
    best = {ranked[0] for ranked in question.ranked if ranked}
    for name in sorted(best, key=lambda name: (-question.top1[name], name)):
        if question.memory.fits({*kept, name}):
            kept |= {name}
    return kept


def _without_useless(question: _Question, kept: Chosen) -> Chosen:
    """Less what no scenario uses while the rest is there."""
    used = {next((n for n in ranked if n in kept), question.safety) for ranked in question.ranked}
    return frozenset({question.safety, *used})


# --- with one --------------------------------------------------------------------------------


def _solve(question: _Question, start: Chosen) -> tuple[Chosen, float]:
    """The best set that is found, and a bound on the worth of any."""
    until = time.monotonic() + question.memory.time_limit_s
    everything = frozenset(question.top1)
    if question.memory.fits(everything):
        return everything, question.worth(everything)
    question = _useful(question)
    known = question.worth(start)
    most = question.worth(question.top1)
    model = _model(question)
    found, bound, _ = model.programme.minimise(model.worth, until - time.monotonic())
    if math.isfinite(bound):
        most = min(most, -bound)
    if found is not None:
        better = frozenset(name for name, column in model.kept.items() if found[column] > 0.5)
        if question.memory.fits(better) and question.worth(better) > known:
            return better, most
    return start, most


def _useful(question: _Question) -> _Question:
    """The same question without topologies that are never needed for the best answer."""
    memory, safety = question.memory, question.safety
    uses = {
        name: frozenset(i for i, ranked in enumerate(question.ranked) if name in ranked)
        for name in question.top1
    }

    def replaces(other: str, name: str) -> bool:
        """Whether keeping `other` instead takes no more and is as good under every budget."""
        return (
            question.top1[other] >= question.top1[name]
            and uses[other] >= uses[name]
            and memory.parts[other] <= memory.parts[name]
        )

    kept = [safety]
    for name in sorted(question.top1, key=lambda n: (-question.top1[n], len(memory.parts[n]), n)):
        if name == safety or not uses[name] or not memory.fits({safety, name}):
            continue
        if not any(replaces(other, name) for other in kept):
            kept.append(name)
    ranked: dict[tuple[str, ...], float] = {}
    for names, weight in question.ranked.items():
        left = tuple(name for name in names if name in kept)
        ranked[left] = ranked.get(left, 0.0) + weight
    top1 = {name: worth for name, worth in question.top1.items() if name in kept}
    return replace(question, top1=top1, ranked=ranked)


@dataclass(eq=False)
class _Model:
    """The programme with its variables."""

    programme: "Programme"
    kept: dict[str, int] = field(default_factory=dict)
    worth: list[tuple[int, float]] = field(default_factory=list)
    """What makes up the expected top-1, with the sign that minimises."""


def _model(question: _Question) -> _Model:
    """A topology is kept or not; a part is used as much as the most of its topologies.

    Under each budget, how many of the `k` most accurate admitted topologies are kept, at most 1,
    says whether the level of the `k`-th is reached; the worth is the sum of the steps from level to
    level times that. Budgets that admit the same `k` share what says so. It is the form that
    Cornuejols, Nemhauser and Wolsey (1980) give to the choice of locations: given what is kept,
    whole numbers follow.
    """
    from .cut import Programme  # needs NumPy, which whoever has a plan does not

    programme, memory = Programme(), question.memory
    model = _Model(programme=programme)
    model.kept = {name: programme.column() for name in question.top1}
    room = [(column, memory.topology_mib) for column in model.kept.values()]
    shared = _shared(question)
    used = {
        users: programme.column() for users in shared
    }  # whole anyway; told, the solver is faster
    room += [(used[users], size) for users, size in shared.items()]
    for users, wider in _nested(shared):
        programme.row([(used[users], 1.0), (used[wider], -1.0)], -1.0, 0.0)
    for name, column in model.kept.items():
        for users in _narrowest(users for users in shared if name in users):
            programme.row([(column, 1.0), (used[users], -1.0)], -1.0, 0.0)
    programme.row([(model.kept[question.safety], 1.0)], 1.0, 1.0)
    programme.row(room, -math.inf, memory.budget_mib - memory.fixed_mib)
    reached: dict[tuple[str, ...], int] = {}
    gains: dict[int, float] = {}
    for ranked, weight in question.ranked.items():
        for count, name in enumerate(ranked, start=1):
            level = reached.get(ranked[:count])
            if level is None:
                level = reached[ranked[:count]] = programme.column(whole=False)
                before = [(reached[ranked[: count - 1]], -1.0)] if count > 1 else []
                row = [(level, 1.0), (model.kept[name], -1.0), *before]
                programme.row(row, -math.inf, 0.0)
            below = question.top1[ranked[count]] if count < len(ranked) else 0.0
            step = question.top1[name] - below
            gains[level] = gains.get(level, 0.0) - weight * step
    model.worth = list(gains.items())
    return model


def _shared(question: _Question) -> dict[frozenset[str], float]:
    """Sizes of parts, those of the same topologies as one."""
    users: dict[str, list[str]] = {}
    for name in question.top1:
        for part in question.memory.parts[name]:
            users.setdefault(part, []).append(name)
    sizes: dict[frozenset[str], list[float]] = {}
    for part in sorted(users):
        sizes.setdefault(frozenset(users[part]), []).append(question.memory.sizes_mib[part])
    return {names: math.fsum(each) for names, each in sizes.items()}


def _narrowest(sets: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """Those that have no other one within them."""
    found = list(sets)
    return [one for one in found if not any(other < one for other in found)]


def _nested(sets: Iterable[frozenset[str]]) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
    """Each set with the ones next around it: what uses the inner part uses the outer one too."""
    found = list(sets)
    for one in found:
        for wider in _narrowest(other for other in found if one < other):
            yield one, wider
