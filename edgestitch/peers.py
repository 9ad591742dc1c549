"""Networks of others that a family is compared with: what they cost and what they are worth."""

from collections.abc import Iterable
from typing import ClassVar

from .artifact import Artifact, Value
from .family import Family


class Peer(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One network of others."""

    name: str
    """As its source calls it; of a stitched one, the topologies here that have its cost."""
    gmacs: float
    params: int
    top1: float
    family: str = ""
    """The family that it is a topology of, from another training than the accuracies that ship."""


class Peers(Artifact, frozen=True, kw_only=True):
    """Networks for the same images and classes, as somebody published them."""

    kind: ClassVar[str] = "peers"
    version: ClassVar[int] = 1

    dataset: str
    source: str
    input_shape: tuple[int, int, int]
    num_classes: int
    rows: tuple[Peer, ...]

    def fits(self, family: Family) -> bool:
        """Whether the family takes the same images to the same classes."""
        return (self.input_shape, self.num_classes) == (family.input_shape, family.num_classes)

    @property
    def single(self) -> tuple[Peer, ...]:
        """Those that are networks of their own, and no topologies."""
        return tuple(row for row in self.rows if not row.family)

    def stitched(self, family: Family) -> tuple[Peer, ...]:
        """Those that are topologies of that family."""
        return tuple(row for row in self.rows if row.family == family.name)


def outdone(peers: Iterable[Peer], points: Iterable[tuple[float, float]]) -> tuple[Peer, ...]:
    """The peers that a point (GMACs, top-1) equals or beats in accuracy without costing more."""
    points = tuple(points)
    return tuple(
        peer
        for peer in peers
        if any(gmacs <= peer.gmacs and top1 >= peer.top1 for gmacs, top1 in points)
    )
