"""The accuracy of a network's topologies on one data set, measured here or published by others."""

from functools import cached_property
from typing import ClassVar, Literal

from .artifact import Artifact, Value
from .family import Mode
from .profile import require_equal, require_same_network

Origin = Literal["measured", "published"]
"""`measured` by `edgestitch evaluate` on weights that are here, or `published` by a family's authors."""


class TopologyAccuracy(Value, frozen=True, kw_only=True):
    """Top-1 in percent, with the 95 % Wilson interval `low` to `high`."""

    topology: str
    top1: float
    low: float
    high: float
    correct: int


class Accuracy(Artifact, frozen=True, kw_only=True, dict=True, omit_defaults=True):
    """Top-1 of topologies of one network on one data set.

    Published ones are of weights and images that are not here, so they may lack those digests.
    """

    kind: ClassVar[str] = "accuracy"
    # Defaults are left out of files and digests: those of the first release keep theirs.
    version: ClassVar[int] = 1

    family: str
    origin: Origin = "measured"
    source: str = ""
    """Where published accuracies are from."""
    mode: Mode = "corrected"
    """How the network computes stitched paths."""
    network: str | None
    data: str | None
    """Digests of the weights and of the images."""
    num_images: int
    rows: tuple[TopologyAccuracy, ...]

    def __post_init__(self) -> None:
        if self.origin == "measured" and None in (self.network, self.data):
            raise ValueError("a measured accuracy says which network and data it is of")
        if self.origin == "published" and not self.source:
            raise ValueError("a published accuracy says where it is from: source is empty")

    @cached_property
    def by_topology(self) -> dict[str, TopologyAccuracy]:
        return {row.topology: row for row in self.rows}

    @property
    def provenance(self) -> str:
        """Where the numbers come from, in words."""
        if self.origin == "published":
            return f"published: {self.source}"
        return f"measured on {self.num_images:,} images"

    def check(self, what: str, family: str, network: str | None) -> None:
        """Raises `MismatchError` unless this is of that network.

        A published one is only of its family, and so is a profile of random weights.
        """
        pair = f"{what} and accuracy"
        require_equal(pair, family=(family, self.family))
        require_same_network(pair, network, self.network)


def accuracy_row(name: str, correct: int, total: int) -> TopologyAccuracy:
    """Top-1 of a topology that put `correct` of `total` images in their class."""
    low, high = wilson(correct, total)
    return TopologyAccuracy(
        topology=name, top1=100 * correct / total, low=100 * low, high=100 * high, correct=correct
    )


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    from scipy.stats import binomtest  # a second to import, and only who evaluates needs it

    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
