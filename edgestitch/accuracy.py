"""The accuracy of a network's topologies on one data set."""

from functools import cached_property
from typing import ClassVar

from .artifact import Artifact, Value


class TopologyAccuracy(Value, frozen=True, kw_only=True):
    """Top-1 in percent, with the 95 % Wilson interval `low` to `high`."""

    topology: str
    top1: float
    low: float
    high: float
    correct: int


class Accuracy(Artifact, frozen=True, kw_only=True, dict=True):
    """Top-1 of topologies of one network (by the digest of its weights) on one data set (by its)."""

    kind: ClassVar[str] = "accuracy"
    version: ClassVar[int] = 1

    family: str
    network: str
    data: str
    num_images: int
    rows: tuple[TopologyAccuracy, ...]

    @cached_property
    def by_topology(self) -> dict[str, TopologyAccuracy]:
        return {row.topology: row for row in self.rows}
