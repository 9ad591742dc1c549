"""Multiply-adds and parameters of a family, atom by atom; a topology's are their sum."""

from collections.abc import Mapping
from typing import ClassVar

from .artifact import Artifact, Value
from .errors import MismatchError
from .family import Family
from .topology import Topology


class AtomComplexity(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What an atom has to compute, read and write, for one image.

    The optional counts are left out of files and digests where there are none, so that complexities
    of the first release keep theirs.
    """

    macs: int
    """Multiply-adds."""
    params: int
    activations: int | None = None
    """Elements that its operators write, each operator by itself as PyTorch runs them, attention as
    plain matrix products. A compiler that fuses operators writes fewer."""
    kernels: int | None = None
    """How many operators that is, without views: each is one kernel or a few. A compiler that fuses
    them launches fewer, and a captured CUDA graph launches all at once."""


class Complexity(Artifact, frozen=True, kw_only=True):
    """The complexity of every atom of a family, counted once by `network.count`."""

    kind: ClassVar[str] = "complexity"
    version: ClassVar[int] = 1

    family: str
    family_digest: str
    atoms: dict[str, AtomComplexity]

    def check(self, family: Family) -> None:
        """Raises `MismatchError` unless this is the complexity of that family."""
        if self.family_digest != family.digest:
            raise MismatchError(
                f"complexity was counted for {self.family} ({self.family_digest[:12]}), not for "
                f"{family.name} ({family.digest[:12]}); count it again"
            )

    def gmacs(self, family: Family, topology: Topology | str) -> float:
        """Multiply-adds of a topology for one image, in units of 10^9."""
        return sum(self.atoms[atom].macs for atom in family.atoms(topology)) / 1e9

    def params(self, family: Family, topology: Topology | str) -> int:
        """Parameters that a topology uses."""
        return sum(self.atoms[atom].params for atom in family.atoms(topology))


def check_order(family: Family, complexity: Complexity) -> None:
    """Raises `ValueError` unless the anchors come cheapest first, by multiply-adds."""
    gmacs = {a.name: complexity.gmacs(family, family.whole(a.name)) for a in family.anchors}
    if list(gmacs.values()) == sorted(gmacs.values()):
        return
    found = ", ".join(f"{name} {value:.3g} GMACs" for name, value in gmacs.items())
    right = sorted(family.anchors, key=lambda anchor: gmacs[anchor.name])
    raise ValueError(
        f"anchors of {family.name} must come cheapest first, by multiply-adds; found {found}; write "
        f"{', '.join(a.name for a in right)} ({','.join(a.model for a in right)})"
    )


def above_line(
    family: Family, complexity: Complexity, top1: Mapping[str, float]
) -> dict[str, float]:
    """For each stitched topology, top-1 minus the straight line between its two anchors.

    The line is over multiply-adds and goes on beyond the anchors: what a mix of the two alone would
    give at the same mean cost, and how the stitching papers' tables are compared here. Where a
    topology runs through more than two anchors, or through one twice, it is the line between the
    cheapest and the dearest of them.
    """
    points = {}
    for topology in family.topologies:
        if len(topology.runs) < 2:
            continue
        anchors = (family.whole(run.anchor).name for run in topology.runs)
        costs = {name: complexity.gmacs(family, name) for name in anchors}
        cheap, dear = min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)
        slope = (top1[dear] - top1[cheap]) / (costs[dear] - costs[cheap])
        line = top1[cheap] + slope * (complexity.gmacs(family, topology) - costs[cheap])
        points[topology.name] = top1[topology.name] - line
    return points
