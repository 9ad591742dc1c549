"""All that is known of each topology, joined."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from edgestitch.accuracy import TopologyAccuracy
from edgestitch.errors import MismatchError
from edgestitch.family import Family
from edgestitch.profile import Cost
from edgestitch.schedule import front_along
from edgestitch.topology import Topology

from .evidence import Evidence
from .units import GMACS, unit_for


class Row(NamedTuple):
    """One topology."""

    topology: Topology
    accuracy: TopologyAccuracy | None
    cost: Cost | None
    gmacs: float | None
    params: int | None
    front: bool = False
    """Whether it is the most accurate within some deadline; without latencies, within some number
    of multiply-adds."""

    @property
    def name(self) -> str:
        return self.topology.name

    @property
    def is_anchor(self) -> bool:
        return len(self.topology.runs) == 1

    @property
    def top1(self) -> float | None:
        return self.accuracy.top1 if self.accuracy is not None else None

    @property
    def median_ms(self) -> float | None:
        return self.cost.latency_ms if self.cost is not None else None

    @property
    def bound_ms(self) -> float | None:
        return self.cost.bound_ms if self.cost is not None else None

    @property
    def energy_mj(self) -> float | None:
        return self.cost.energy_mj if self.cost is not None else None


def join_rows(evidence: Evidence) -> tuple[Row, ...]:
    """One row for every topology of the family, fastest or smallest first; none without a family."""
    family, complexity = evidence.family, evidence.complexity
    if family is None or not (evidence.accuracy or evidence.profile or complexity):
        return ()
    accuracies = evidence.accuracy.by_topology if evidence.accuracy is not None else {}
    costs = evidence.profile.by_topology if evidence.profile is not None else {}
    _require_known(family, (*costs, *accuracies))
    rows = [
        Row(
            topology=topology,
            accuracy=accuracies.get(topology.name),
            cost=costs.get(topology.name),
            gmacs=complexity.gmacs(family, topology) if complexity is not None else None,
            params=complexity.params(family, topology) if complexity is not None else None,
        )
        for topology in family.topologies
    ]
    best = set(front_of(_gmacs if evidence.profile is None else _bound_ms, rows))
    return tuple(row._replace(front=row.name in best) for row in sorted(rows, key=_expense))


def _gmacs(row: Row) -> float | None:
    return row.gmacs


def _bound_ms(row: Row) -> float | None:
    return row.bound_ms


def _require_known(family: Family, measured: Iterable[str]) -> None:
    strange = sorted(set(measured) - {topology.name for topology in family.topologies})
    if strange:
        raise MismatchError(
            f"{strange[0]} was measured, but {family.name} has no such topology; give the family "
            "that the measurements were made with"
        )


def _expense(row: Row) -> tuple[float, ...]:
    known = (row.bound_ms, row.median_ms, row.gmacs)
    return tuple(math.inf if value is None else value for value in known)


def front_of(cost: Callable[[Row], float | None], rows: Iterable[Row]) -> list[str]:
    """The Pareto front in accuracy and one cost, cheapest first."""
    return front_along(
        (row.name, x, row.top1)
        for row in rows
        if row.top1 is not None and (x := cost(row)) is not None
    )


def macs_unit(rows: Sequence[Row], others: Iterable[float] = ()) -> tuple[float, str]:
    """One unit for all multiply-adds: the one that suits the largest, of topologies if there are."""
    known = [row.gmacs for row in rows if row.gmacs]
    return unit_for(max(known or others, default=0), GMACS)
