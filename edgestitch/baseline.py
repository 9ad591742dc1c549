"""The honest baseline: what an individually trained network does in the time that a topology takes.

A stitched network is worth having where it is not far below networks that were trained for one budget
alone. Beside the topology of each budget stand the most accurate individually trained network that
keeps it, held against the same bound, and one that takes the same time:

    budget -> ours: s:0:6+b:5:12 | best that fits: resnet101 | of the same latency: regnety_040

They are those of a zoo, and the family's own anchors, which the profile has measured as topologies.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from .accuracy import Accuracy
from .artifact import Value, read
from .catalog import shipped_complexity
from .errors import ArtifactError, InfeasibleError
from .family import Family
from .profile import Cost, Profile, require_comparable, require_equal
from .recipe import load_family
from .schedule import (
    QUANTILE,
    Budget,
    Candidate,
    Plan,
    candidates,
    choose,
    latency_bound_ms,
)
from .shipped import shipped
from .zoo import ANCHORS, Zoo

if TYPE_CHECKING:
    import numpy as np

SAME = 0.05
"""Medians that are no farther apart, relative, are taken to be the same latency."""

SAME_GMACS = 0.05
"""Multiply-adds that are no farther apart, relative, are of images of one size."""


class Individual(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A network that was trained for itself, measured under the conditions of the profile."""

    name: str
    top1: float
    latency_ms: float
    """Median."""
    bound_ms: float
    """What a deadline is held against, at the same quantile as the topology's."""
    energy_mj: float | None = None
    power_w: float | None = None
    samples: int
    source: str
    """Where its accuracy and its costs are from."""
    alone: bool = True
    """Whether the accuracy is what it has as a network of its own; `False`: what the anchor has
    inside of the stitched network, since no other is known."""

    @property
    def candidate(self) -> Candidate:
        """As a budget judges it."""
        return Candidate(
            topology=self.name,
            top1=self.top1,
            median_ms=self.latency_ms,
            latency_ms=self.bound_ms,
            energy_mj=self.energy_mj,
            power_w=self.power_w,
        )


class Beside(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One budget: the topology, and individually trained networks beside it."""

    budget: Budget
    ours: Candidate | None
    """`None`: no topology fits."""
    best: Individual | None
    """What the budget would choose of the individual ones, which is the most accurate that fits;
    `None`: none does."""
    nearest: Individual | None
    """The most accurate of those with the same median latency as `ours`, within 5 %; where there are
    none, the one with the nearest. `None`: nothing was measured, or no topology fits."""
    best_points: float | None = None
    """Top-1 of `ours` less that of `best`: below zero the individual one is more accurate."""
    best_ms: float | None = None
    """Median latency of `ours` less that of `best`: above zero the individual one is faster."""
    nearest_points: float | None = None
    nearest_ms: float | None = None
    """The same of `nearest`."""
    says: str
    """The comparison in words, plainly where ours is worse."""

    @property
    def worse(self) -> bool:
        """Whether an individually trained network does better under this budget."""
        if self.ours is None:
            return self.best is not None
        return self.best_points is not None and self.best_points < 0


def honest(
    profile: Profile,
    accuracy: Accuracy,
    budgets: Plan | Sequence[Budget],
    *,
    zoo: Zoo | None = None,
    family: Family | None = None,
    alone: Mapping[str, float] | None = None,
    quantile: float = QUANTILE,
    samples_ns: "Mapping[str, np.ndarray] | None" = None,
) -> tuple[Beside, ...]:
    """For each budget the topology that it gets, beside individually trained networks.

    Of a plan, its own budgets and quantile and what is resident; of one without budgets, those that
    each resident just keeps. `family` is looked for by name if it is not given. `alone` is the top-1 of
    anchors by themselves, by topology, where the caller knows it. `samples_ns` are the profile's.

    Raises:
        MismatchError: profile, accuracy, plan and zoo are not of the same network, device, backend,
            precision, batch or number of classes; the message has both values.
        InfeasibleError: no latency is known at that quantile.
    """
    if isinstance(budgets, Plan):
        budgets.check(profile, accuracy)
        quantile, pool = budgets.quantile, budgets.resident
        asked = [choice.budget for choice in budgets.choices]
        asked = asked or [Budget(latency_ms=resident.latency_ms) for resident in pool]
    else:
        pool = candidates(profile, accuracy, quantile=quantile, samples_ns=samples_ns)
        asked = list(budgets)
    others = individuals(
        profile,
        accuracy,
        zoo=zoo,
        family=family,
        alone=alone,
        quantile=quantile,
        samples_ns=samples_ns,
    )
    return tuple(_beside(budget, pool, others) for budget in asked)


def individuals(
    profile: Profile,
    accuracy: Accuracy,
    *,
    zoo: Zoo | None = None,
    family: Family | None = None,
    alone: Mapping[str, float] | None = None,
    quantile: float = QUANTILE,
    samples_ns: "Mapping[str, np.ndarray] | None" = None,
) -> tuple[Individual, ...]:
    """All that were measured under the profile's conditions: the family's anchors, then the zoo's.

    Those whose latency is not known at the quantile are left out.

    Raises:
        MismatchError: the zoo is of another device, backend, precision, batch or number of classes.
    """
    accuracy.check("profile", profile.family, profile.network)
    family = family or load_family(profile.family)
    require_equal("profile and family", family=(profile.family, family.name))
    found = _anchors(profile, accuracy, family, alone or {}, quantile, samples_ns or {})
    return (*found, *(_of_zoo(zoo, profile, family, quantile) if zoo else ()))


# --- individually trained networks ------------------------------------------------------------


class _Top1(NamedTuple):
    """The accuracy of an anchor."""

    value: float
    source: str
    alone: bool = True


def _of_zoo(zoo: Zoo, profile: Profile, family: Family, quantile: float) -> list[Individual]:
    require_comparable("profile and zoo", profile.conditions, zoo.conditions)
    require_equal("profile and zoo", **{"number of classes": (family.num_classes, zoo.num_classes)})
    found = []
    for row in zoo.measured:
        assert row.cost is not None
        top1 = _Top1(row.top1, f"top-1 of {row.source or zoo.source}")
        bound_ms = latency_bound_ms(row.cost, quantile)
        found.append(_individual(row.name, row.cost, bound_ms, top1, "measured in the zoo"))
    return [network for network in found if network]


def _anchors(
    profile: Profile,
    accuracy: Accuracy,
    family: Family,
    alone: Mapping[str, float],
    quantile: float,
    samples_ns: "Mapping[str, np.ndarray]",
) -> list[Individual]:
    """The family's anchors, with what each reaches trained alone where that is known."""
    known = {
        **_inside(accuracy),
        **_published(family),
        **_calibrated(accuracy),
        **{name: _Top1(value, "top-1 as it was given") for name, value in alone.items()},
    }
    found = []
    for anchor in family.anchors:
        name = family.whole(anchor.name).name
        cost = profile.by_topology.get(name)
        if cost is not None and name in known:
            bound_ms = latency_bound_ms(cost, quantile, samples_ns.get(name))
            where = f"anchor {anchor.model}, {cost.origin} in the profile"
            found.append(_individual(f"{name} alone", cost, bound_ms, known[name], where))
    return [network for network in found if network]


def _individual(
    name: str, cost: Cost, bound_ms: float | None, top1: _Top1, where: str
) -> Individual | None:
    if bound_ms is None:
        return None
    # The same rule as for topologies; but few samples make a bound that is easily kept.
    largest = cost.p99_high_ms is None and cost.max_ms is not None
    how = f"{where}, bounded by the largest of {cost.samples} samples" if largest else where
    return Individual(
        name=name,
        top1=top1.value,
        latency_ms=cost.latency_ms,
        bound_ms=bound_ms,
        energy_mj=cost.energy_mj,
        power_w=cost.power_w,
        samples=cost.samples,
        source=f"{how}; {top1.source}",
        alone=top1.alone,
    )


def _inside(accuracy: Accuracy) -> dict[str, _Top1]:
    source = "top-1 inside of the stitched network, since alone is not known"
    return {row.topology: _Top1(row.top1, source, alone=False) for row in accuracy.rows}


def _published(family: Family) -> dict[str, _Top1]:
    """Anchors with published weights, where they compute what the accuracy was published of."""
    complexity = shipped_complexity(family)
    published = {
        peer.name: peer for peer in ANCHORS.rows if ANCHORS.num_classes == family.num_classes
    }
    found = {}
    for anchor in family.anchors:
        peer, whole = published.get(anchor.model), family.whole(anchor.name)
        if peer is None or complexity is None:
            continue
        # Of another number of multiply-adds are images of another size, and so is the accuracy.
        if abs(complexity.gmacs(family, whole) / peer.gmacs - 1) <= SAME_GMACS:
            found[whole.name] = _Top1(peer.top1, f"top-1 of {ANCHORS.source}")
    return found


class _Step(msgspec.Struct):
    topology: str
    alone: float | None = None


class _Calibrated(msgspec.Struct):
    network: str
    steps: list[_Step]


class _File(msgspec.Struct):
    data: _Calibrated


def _calibrated(accuracy: Accuracy) -> dict[str, _Top1]:
    """Anchors that were trained here, before they were stitched to the network of the accuracy.

    What was trained is read without what trains, which needs torch.
    """
    path = shipped("calibrate") / f"{accuracy.family}.calibration.json"
    if not path.is_file():
        return {}
    try:
        found = msgspec.json.decode(read(path), type=_File).data
    except msgspec.MsgspecError as error:
        raise ArtifactError(
            f"{path} is no calibration ({error}); install edgestitch again"
        ) from error
    if found.network != accuracy.network:
        return {}
    source = "top-1 as it was trained, before stitching"
    return {s.topology: _Top1(s.alone, source) for s in found.steps if s.alone is not None}


# --- beside a topology ------------------------------------------------------------------------


def _beside(budget: Budget, pool: Sequence[Candidate], others: Sequence[Individual]) -> Beside:
    ours, best = _chosen(pool, budget), _best(others, budget)
    nearest = _nearest(others, ours.median_ms) if ours else None
    found = Beside(budget=budget, ours=ours, best=best, nearest=nearest, says="")
    if ours and best:
        found = msgspec.structs.replace(
            found,
            best_points=ours.top1 - best.top1,
            best_ms=ours.median_ms - best.latency_ms,
        )
    if ours and nearest:
        found = msgspec.structs.replace(
            found,
            nearest_points=ours.top1 - nearest.top1,
            nearest_ms=ours.median_ms - nearest.latency_ms,
        )
    return msgspec.structs.replace(found, says=_says(found, bool(others)))


def _chosen(pool: Sequence[Candidate], budget: Budget) -> Candidate | None:
    try:
        return choose(pool, budget)
    except InfeasibleError:
        return None


def _best(others: Sequence[Individual], budget: Budget) -> Individual | None:
    chosen = _chosen([network.candidate for network in others], budget) if others else None
    return next((n for n in others if chosen and n.candidate == chosen), None)


def _nearest(others: Sequence[Individual], latency_ms: float) -> Individual | None:
    """Of the same latency the most accurate, that no weak network makes ours look good."""
    if not others:
        return None
    same = [n for n in others if abs(n.latency_ms / latency_ms - 1) <= SAME]
    if same:
        return max(same, key=lambda n: (n.top1, -n.latency_ms))
    return min(others, key=lambda n: (abs(math.log(n.latency_ms / latency_ms)), -n.top1))


def _says(row: Beside, measured: bool) -> str:
    if not measured:
        return "no individually trained network was measured under these conditions"
    ours, best, nearest = row.ours, row.best, row.nearest
    if ours is None:
        if best is None:
            return "neither a topology nor an individually trained network fits"
        return f"WORSE: no topology fits, and {best.name} does, with {best.top1:.2f} %"
    if best is None or row.best_points is None:
        parts = ["no individually trained network fits"]
    else:
        parts = [f"{_points(row.best_points)} {best.name}, the best individual one that fits"]
    if nearest is not None and nearest != best and row.nearest_points is not None:
        slower = nearest.latency_ms > ours.median_ms * (1 + SAME)  # and may be more accurate for it
        parts.append(
            f"{_points(row.nearest_points, warn=not slower)} {nearest.name}, which takes "
            f"{nearest.latency_ms:.3g} ms to our {ours.median_ms:.3g} ms"
        )
    return "; ".join(parts)


def _points(difference: float, *, warn: bool = True) -> str:
    """A difference in top-1, worded so that a loss is not to be overlooked."""
    if round(difference, 2) == 0:
        return "as accurate as"
    if difference > 0:
        return f"{difference:.2f} points better than"
    return f"{'WORSE: ' if warn else ''}{-difference:.2f} points below"
