"""Several topologies in turn: the shares that are best in the mean, and the order that keeps them.

A budget that holds in the mean, such as the energy of a battery, need not be kept by every frame.
Between two topologies, one within it and one beyond, running both in turn is more accurate than
running the cheaper one alone. Which shares are best is a linear programme, and a basic solution of
it has no more topologies than there are mean bounds, and one (Dantzig 1963, chapter 4).
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from .artifact import Value
from .errors import InfeasibleError

NEGLIGIBLE = 1e-9
"""A share below this is the solver's rounding: one frame in a billion."""

INFEASIBLE = 2
"""What `scipy.optimize.linprog` calls it."""


class Share(Value, frozen=True, kw_only=True):
    """How much of all frames a topology has."""

    topology: str
    share: Annotated[float, msgspec.Meta(gt=0, le=1)]


class Mix(Value, frozen=True, kw_only=True):
    """Topologies that run in turn, so that bounds are kept in the mean."""

    shares: Annotated[tuple[Share, ...], msgspec.Meta(min_length=1)]
    """Cheapest first; they add up to 1."""
    top1: float
    """In the mean."""
    means: dict[str, float]
    """What it costs in the mean, by the bounds' names."""
    single: str | None
    """The topology that is best alone under the same bounds. `None`: none of them keeps all."""
    gain: float | None
    """What the mix is better by in what was asked for: points of top-1, or the cost to be least."""
    dwell: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Frames that a topology keeps running at least."""

    def sequence(self) -> Iterator[str]:
        """The topology of each frame, for ever. See `diffuse`."""
        return diffuse({share.topology: share.share for share in self.shares}, self.dwell)


@dataclass(frozen=True, kw_only=True)
class MeanBound:
    """The mean of these costs, by topology, is at most `bound`."""

    name: str
    costs: Mapping[str, float]
    bound: float


def best_shares(worth: Mapping[str, float], bounds: Sequence[MeanBound]) -> dict[str, float]:
    """The shares with the most mean worth that keep every bound in the mean, as given in order.

    There are no more topologies in it than bounds, and one. Bounds are kept to a millionth.

    Raises:
        InfeasibleError: no shares keep all bounds; the message names the bounds that nothing keeps.
        ValueError: nothing to choose from, or a bound lacks the cost of a topology.
    """
    if not worth:
        raise ValueError("no topologies were given")
    for bound in bounds:
        missing = sorted(worth.keys() - bound.costs.keys())
        if missing:
            raise ValueError(f"{bound.name} lacks {len(missing)} costs: {missing[0]}")
    found = _solve(worth, bounds)
    if found is None:
        raise InfeasibleError(f"no shares of {len(worth)} topologies fit: {_misses(worth, bounds)}")
    kept = {name: share for name, share in zip(worth, found, strict=True) if share > NEGLIGIBLE}
    total = math.fsum(kept.values())
    return {name: share / total for name, share in kept.items()}


def _solve(worth: Mapping[str, float], bounds: Sequence[MeanBound]) -> list[float] | None:
    import numpy as np
    from scipy.optimize import linprog  # half a second to import

    rows, limits = [], []
    for bound in bounds:  # scaled, so that the solver's tolerance is relative
        row = np.array([bound.costs[name] for name in worth]) - bound.bound
        scale = float(np.abs(row).max()) or 1.0
        rows.append(row / scale)
        limits.append(0.0)
    # The simplex method ends in a corner: a basic solution, not the middle of a face.
    answer = linprog(
        -np.array(list(worth.values())),
        A_ub=np.array(rows) if rows else None,
        b_ub=limits or None,
        A_eq=np.ones((1, len(worth))),
        b_eq=[1.0],
        method="highs-ds",
    )
    if answer.status == INFEASIBLE:
        return None
    if answer.x is None:
        raise ArithmeticError(f"the solver gave up on shares: {answer.message}")
    return [float(share) for share in answer.x]


def _misses(worth: Mapping[str, float], bounds: Sequence[MeanBound]) -> str:
    parts = []
    for bound in bounds:
        cheapest = min(worth, key=lambda name: bound.costs[name])
        over = bound.costs[cheapest] - bound.bound
        if over > 0:
            parts.append(f"{bound.name}: the cheapest, {cheapest}, is {over:.3g} above the bound")
    return "; ".join(parts) or "each bound alone can be kept, but not all together"


def mean(shares: Mapping[str, float], values: Mapping[str, float]) -> float:
    """The mean of values over shares."""
    return math.fsum(share * values[name] for name, share in shares.items())


def diffuse(shares: Mapping[str, float], dwell: int = 1) -> Iterator[str]:
    """The topology of each frame, for ever, such that every prefix has close to its shares.

    After any number of frames each topology has run its share of them within one frame, and within
    `dwell` frames where each must run that many in a row. The rule is Tijdeman's ("The chairman
    assignment problem", 1980): of the topologies that are owed enough, the one next to be owed too
    much. Taking whichever is owed most gives the same for two topologies, but no such bound for
    many.

    Raises:
        ValueError: shares that are not above zero or do not add up to 1, or a dwell below 1.
    """
    _check(shares.values(), dwell)
    return _diffused(shares, dwell)


def _check(shares: Collection[float], dwell: int) -> None:
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares must be above zero and at most 1, found {list(shares)}")
    if abs(math.fsum(shares) - 1) > 1e-6:
        raise ValueError(f"shares must add up to 1, not to {math.fsum(shares):g}")
    if dwell < 1:
        raise ValueError(f"a topology must run for 1 frame at least, not for {dwell}")


def _diffused(shares: Mapping[str, float], dwell: int) -> Iterator[str]:
    total = math.fsum(shares.values())
    rates = {name: share / total for name, share in shares.items()}
    slack = 1 / (2 * len(rates) - 2) if len(rates) > 1 else 0.0
    owed = dict.fromkeys(rates, 0.0)
    while True:
        for name, rate in rates.items():
            owed[name] += rate
        # What is owed adds up to 1, so that somebody is always owed the slack, but for rounding.
        due = [name for name in rates if owed[name] >= slack - 1e-9]
        chosen = min(due, key=lambda name: (1 - slack - owed[name]) / rates[name])
        owed[chosen] -= 1
        for _ in range(dwell):
            yield chosen
