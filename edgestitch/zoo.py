"""Individually trained networks of timm, measured on this device: what a stitched one stands beside.

Accuracies are published ones. Weights are random: what a call costs does not depend on them. `zoo_run`
measures.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import ClassVar

from .artifact import Artifact, Value, load
from .peers import Peer, Peers
from .profile import Conditions, Cost, Protocol
from .shipped import shipped

DRIFT = 0.05
"""Spread of the reference's medians between groups above which a zoo says so."""


class ZooRow(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One network: what it is worth, and what it costs here or why that is not known."""

    name: str
    """In the table that the accuracy is from."""
    model: str | None = None
    """As the installed timm calls it; `None`: it knows no such model, or it was not asked yet."""
    input_shape: tuple[int, int, int] | None = None
    """Of the images that it was measured with."""
    gmacs: float
    params: int
    top1: float
    """Published, in percent."""
    source: str = ""
    """Of the accuracy, where it is not the zoo's."""
    cost: Cost | None = None
    """Its `topology` is `name`. `None`: not measured."""
    reason: str | None = None
    """Why it was not measured; `None`: it was."""

    def __post_init__(self) -> None:
        if (self.cost is None) == (self.reason is None):
            raise ValueError(f"{self.name} has either a cost or a reason why it has none")

    @property
    def latency_ms(self) -> float | None:
        """Median."""
        return None if self.cost is None else self.cost.latency_ms

    @property
    def energy_mj(self) -> float | None:
        return None if self.cost is None else self.cost.energy_mj


class Group(Value, frozen=True, kw_only=True):
    """Networks that were resident and measured together."""

    names: tuple[str, ...]
    """The reference is the first."""
    reference_ms: float
    reference_low_ms: float
    reference_high_ms: float
    """Median of the reference in this group, with its 95 % interval."""
    duration_s: float
    steady: bool
    capped: bool


class Zoo(Artifact, frozen=True, kw_only=True, dict=True, omit_defaults=True):
    """Networks of timm on one device, backend, precision and batch."""

    kind: ClassVar[str] = "zoo"
    version: ClassVar[int] = 1

    dataset: str
    num_classes: int
    source: str
    """Of the accuracies, but for rows that have another."""
    timm: str
    """The version that built the networks."""
    conditions: Conditions
    protocol: Protocol
    """Of all groups: `time_cap_s` is for everything, `steady` says that all were, `capped` that any
    was."""
    meter: str
    energy_reason: str | None
    """Why energy is null, if it is."""
    date: str
    rows: tuple[ZooRow, ...]
    """In the order of the tables."""
    reference: str | None = None
    """The network that was measured in every group, but for those after it failed."""
    groups: tuple[Group, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader must know before trusting it."""

    @cached_property
    def measured(self) -> tuple[ZooRow, ...]:
        return tuple(row for row in self.rows if row.cost is not None)

    @property
    def drift(self) -> float | None:
        """How far the reference's medians lie apart between groups, relative to the least."""
        return drift(self.groups)


def drift(groups: Sequence[Group]) -> float | None:
    """How far the reference's medians lie apart, relative to the least; `None`: there is one only."""
    medians = [g.reference_ms for g in groups if g.names[0] == groups[0].names[0]]
    return max(medians) / min(medians) - 1 if len(medians) > 1 else None


# Top-1 of the anchors of the families that ship, each a network of its own with the very weights that
# stitching begins with; the table of the project page has few of them.
ANCHORS = Peers(
    dataset="ImageNet-1k, 50,000 validation images",
    source="timm's results-imagenet.csv of 2025-10-30, at the resolution of training",
    input_shape=(3, 224, 224),
    num_classes=1000,
    rows=tuple(
        Peer(name=name, gmacs=gmacs, params=params, top1=top1)
        for name, gmacs, params, top1 in (
            ("deit_tiny_patch16_224.fb_in1k", 1.258, 5_717_416, 72.190),
            ("deit_small_patch16_224.fb_in1k", 4.608, 22_050_664, 79.856),
            ("deit_base_patch16_224.fb_in1k", 17.583, 86_567_656, 81.980),
            ("deit3_small_patch16_224.fb_in22k_ft_in1k", 4.608, 22_059_496, 83.082),
            ("deit3_base_patch16_224.fb_in22k_ft_in1k", 17.583, 86_585_320, 85.728),
            ("deit3_large_patch16_224.fb_in22k_ft_in1k", 61.604, 304_374_760, 86.990),
            ("swin_tiny_patch4_window7_224.ms_in22k_ft_in1k", 4.509, 28_288_354, 80.966),
            ("swin_small_patch4_window7_224.ms_in22k_ft_in1k", 8.769, 49_606_258, 83.330),
            ("swin_base_patch4_window7_224.ms_in22k_ft_in1k", 15.468, 87_768_224, 85.276),
            ("resnet18.a1_in1k", 1.819, 11_689_512, 71.504),
            ("resnet50.a1_in1k", 4.112, 25_557_032, 80.382),
            ("levit_192.fb_dist_in1k", 0.662, 10_947_069, 79.858),
            ("levit_256.fb_dist_in1k", 1.133, 18_893_876, 81.506),
            ("tf_efficientnet_lite0.in1k", 0.399, 4_652_008, 74.846),
            ("tf_efficientnet_lite1.in1k", 0.600, 5_416_680, 76.674),
            ("tf_efficientnet_lite2.in1k", 0.860, 6_092_072, 77.470),
        )
    ),
)


def tables() -> tuple[Peers, ...]:
    """The networks that can be measured: those of the project page, and the anchors by themselves."""
    return load(Peers, shipped("calibrate") / "imagenet.peers.json"), ANCHORS


def select(found: Sequence[Peers], patterns: Sequence[str] = ()) -> tuple[tuple[Peers, Peer], ...]:
    """The networks whose names match a pattern (`resnet*`), each with its table; without any, all.

    Raises:
        ValueError: a pattern matches none.
    """
    every = [(table, peer) for table in found for peer in table.single]
    for pattern in patterns:
        if not any(fnmatchcase(peer.name, pattern) for _, peer in every):
            raise ValueError(
                f"none of the {len(every)} networks is called {pattern!r}; `edgestitch zoo --list` "
                "shows them, and patterns such as 'resnet*' choose several"
            )
    return tuple(
        (table, peer)
        for table, peer in every
        if not patterns or any(fnmatchcase(peer.name, pattern) for pattern in patterns)
    )
