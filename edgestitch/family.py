"""Families: which anchors stitch, by which rule, and all topologies that follow.

Nothing here needs torch, so that planning answers at once on any machine.
"""

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import combinations, pairwise
from typing import Annotated, Literal, NamedTuple

import msgspec

from .artifact import Value, sha256
from .rules import Layers, Pair, chained, paired_layers, stage_layers, two_way_stitches
from .topology import Run, Stitch, Topology

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9]*\Z")]
Option = int | float | str | bool

Mode = Literal["corrected", "reference"]
"""How stitched paths are computed.

`reference` repeats two habits of the authors' code, for networks that were trained with them: paired
stitching leaves out the last anchor's final norm (DeiT), and unpaired stitching shares layers with
an offset of one block (Swin-Ti to S, ResNet). `corrected` does neither.
"""


class Anchor(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One pretrained network of a family: a timm model under a short name."""

    name: Name
    model: str
    """timm's name of the model, with the tag of its pretrained weights."""
    depth: Positive
    """Number of blocks that stitching can address."""
    stages: tuple[Positive, ...] = ()
    """Blocks of each stage of a hierarchical network; they add up to `depth`."""
    options: dict[str, Option | tuple[Option, ...]] = msgspec.field(default_factory=dict)
    """Keyword arguments for `timm.create_model` beyond the family's own."""
    conv_stem: tuple[Positive, ...] = ()
    """Channels of 3x3 convolutions of stride 2 in place of the patch embedding (Xiao et al. 2021)."""

    def __post_init__(self) -> None:
        if self.stages and sum(self.stages) != self.depth:
            raise ValueError(
                f"anchor {self.name}: stages {list(self.stages)} have {sum(self.stages)} blocks, "
                f"depth says {self.depth}"
            )

    @property
    def num_stages(self) -> int:
        """A plain network is one stage."""
        return len(self.stages) or 1

    def stage(self, index: int) -> tuple[int, int]:
        """The number of a stage's first block, and how many blocks it has."""
        depths = self.stages or (self.depth,)
        return sum(depths[:index]), depths[index]


class Stitching(Value, frozen=True, kw_only=True, omit_defaults=True):
    """The rule that says which pairs of blocks are joined, and which pairs share a layer.

    `paired`: anchors of equal depth. `staged`: inside each stage, paired where the anchors are
    equally deep there, else unpaired; a plain network is one stage. `two-way`: to the larger anchor
    and back (SN-Netv2).
    """

    rule: Literal["paired", "staged", "two-way"] = "paired"
    window: Positive = 2
    stride: Positive = 1
    nearest: bool = True
    """Whether only neighbouring anchors are joined, by one stitch; else any, in chains."""
    stages: tuple[NotNegative, ...] = ()
    """The stages that are stitched under `staged`, counted from 0; none given: all."""


class _Group(NamedTuple):
    """Layers from one anchor to another, and their place in the authors' module lists."""

    place: tuple[int, ...]
    front: Anchor
    back: Anchor
    layers: Layers


class Family(Value, frozen=True, kw_only=True, dict=True, omit_defaults=True):
    """Anchors in order of cost, and the rule that joins neighbours."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*\Z")]
    anchors: Annotated[tuple[Anchor, ...], msgspec.Meta(min_length=1)]
    stitching: Stitching = Stitching()
    mode: Mode = "corrected"
    input_shape: tuple[Positive, Positive, Positive]
    """Channels, height, width of one image."""
    num_classes: Positive
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]
    """Per channel, of pixels scaled to 0..1."""

    def __post_init__(self) -> None:
        names = [anchor.name for anchor in self.anchors]
        if len(set(names)) != len(names):
            raise ValueError(f"anchors need different names, found {', '.join(names)}")
        _check_rule(self.stitching, self.anchors)
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise ValueError(f"mean {self.mean} and std {self.std} must be finite")
        if not len(self.mean) == len(self.std) == self.input_shape[0]:
            raise ValueError(
                f"mean ({len(self.mean)} values) and std ({len(self.std)}) need one value for each "
                f"of the {self.input_shape[0]} channels of input_shape"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the family's definition."""
        return sha256(msgspec.json.encode(self, order="sorted"))

    def in_mode(self, mode: Mode) -> "Family":
        """The same family with stitched paths computed in that mode."""
        return msgspec.structs.replace(self, mode=mode)

    @cached_property
    def topologies(self) -> tuple[Topology, ...]:
        """All topologies: the anchors first, then the stitched ones, in the reference's order."""
        return (*(self.whole(a.name) for a in self.anchors), *map(self._path, self._routes()))

    @cached_property
    def reference_ids(self) -> Mapping[str, int]:
        """The number of each topology, by name, in the authors' code.

        SN-Netv2 numbers one more than it samples and releases: the whole small anchor followed by
        no block of the large one, which is no topology here.
        """
        missing = len(self.anchors) + self.anchors[0].depth - 1
        gap = missing if self.stitching.rule == "two-way" and len(self.anchors) == 2 else math.inf
        return {
            topology.name: index + (index >= gap) for index, topology in enumerate(self.topologies)
        }

    @cached_property
    def stitches(self) -> Mapping[str, tuple[Stitch, ...]]:
        """For each stitching layer, by name, the stitches that share it."""
        shared: dict[str, tuple[Stitch, ...]] = {}
        for stitch, layer in self._layers.items():
            shared[layer] = (*shared.get(layer, ()), stitch)
        return shared

    @property
    def layer_places(self) -> Mapping[str, tuple[int, ...]]:
        """The indices of each stitching layer, by name, in the module lists of the authors' code."""
        return {
            _stitch(group.front, pairs[0], group.back).name: (*group.place, index)
            for group in self._groups
            for index, pairs in enumerate(group.layers)
        }

    def anchor(self, name: str) -> Anchor:
        for anchor in self.anchors:
            if anchor.name == name:
                return anchor
        known = ", ".join(anchor.name for anchor in self.anchors)
        raise ValueError(f"{self.name} has no anchor {name!r}; it has {known}")

    def whole(self, anchor: str) -> Topology:
        """The topology that is one anchor alone."""
        return Topology((Run(anchor, 0, self.anchor(anchor).depth),))

    def topology(self, topology: Topology | str) -> Topology:
        """The topology, or the one of that name, if the family has it.

        Raises:
            ValueError: it is not one of the family's; the message says which part is wrong.
        """
        if isinstance(topology, str):
            topology = Topology.parse(topology)
        if topology not in self._known:
            raise ValueError(self._why_not(topology))
        return topology

    def atoms(self, topology: Topology | str) -> tuple[str, ...]:
        """The smallest segments of a topology in order: stem, single blocks, stitching layers, head.

        Where the mode leaves out the final norm on stitched paths, it is an atom of its own.
        """
        topology = self.topology(topology)
        names = [f"{topology.runs[0].anchor}:stem"]
        for run, stitch in zip(topology.runs, (*topology.stitches, None), strict=True):
            names += [f"{run.anchor}:{block}" for block in range(run.start, run.stop)]
            if stitch is not None:
                names.append(self._layers[stitch])
        last = topology.runs[-1].anchor
        if self.norm_is_atom and len(topology.runs) == 1:
            names.append(f"{last}:norm")
        names.append(f"{last}:head")
        return tuple(names)

    @property
    def norm_is_atom(self) -> bool:
        """Whether the final norm is left out on stitched paths, and so apart from the head."""
        return self.mode == "reference" and self.stitching.rule == "paired"

    @cached_property
    def _groups(self) -> tuple[_Group, ...]:
        rule = self.stitching
        if rule.rule == "two-way":
            return tuple(self._two_way_groups())
        pairs = pairwise(self.anchors) if rule.nearest else combinations(self.anchors, 2)
        if rule.rule == "paired":
            return tuple(
                _Group((index,), front, back, paired_layers(front.depth, rule.window, rule.stride))
                for index, (front, back) in enumerate(pairs)
            )
        return tuple(self._stage_groups(tuple(pairs)))

    def _stage_groups(self, pairs: tuple[tuple[Anchor, Anchor], ...]) -> Iterator[_Group]:
        rule = self.stitching
        stages = rule.stages or range(self.anchors[0].num_stages)
        for position, stage in enumerate(stages):
            for index, (front, back) in enumerate(pairs):
                i0, front_depth = front.stage(stage)
                k0, back_depth = back.stage(stage)
                reference = self.mode == "reference"
                layers = stage_layers(
                    front_depth, back_depth, rule.window, rule.stride, reference=reference
                )
                moved = tuple(tuple((i0 + i, k0 + k) for i, k in pairs) for pairs in layers)
                yield _Group((position, index), front, back, moved)

    def _two_way_groups(self) -> Iterator[_Group]:
        for index, (small, large) in enumerate(pairwise(self.anchors)):
            up, down = two_way_stitches(small.depth, large.depth)
            yield _Group((2 * index,), small, large, tuple((pair,) for pair in up))
            yield _Group((2 * index + 1,), large, small, tuple((pair,) for pair in down))

    @cached_property
    def _layers(self) -> dict[Stitch, str]:
        """The stitching layer of every stitch; a layer is named after the first stitch it serves."""
        return {
            _stitch(group.front, pair, group.back): _stitch(group.front, pairs[0], group.back).name
            for group in self._groups
            for pairs in group.layers
            for pair in pairs
        }

    def _routes(self) -> Iterator[tuple[Stitch, ...]]:
        """The stitches of every stitched topology, in the reference's order."""
        if self.stitching.rule == "two-way":
            for up, down in zip(self._groups[::2], self._groups[1::2], strict=True):
                yield from _two_way_routes(up, down)
        elif self.stitching.nearest:
            yield from ((stitch,) for stitch in self._layers)
        else:
            for size in range(2, len(self.anchors) + 1):
                for members in combinations(self.anchors, size):
                    yield from self._chains(members)

    def _chains(self, members: tuple[Anchor, ...]) -> Iterator[tuple[Stitch, ...]]:
        """Every way through these anchors, each entered before it is left."""
        names = [anchor.name for anchor in members]
        routes: list[tuple[Stitch, ...]] = [()]
        for ends in pairwise(names):
            joints = [s for s in self._layers if (s.front, s.back) == ends]
            routes = [
                (*route, joint)
                for route in routes
                for joint in joints
                if not route or joint.stop > route[-1].start
            ]
        yield from routes

    def _path(self, route: tuple[Stitch, ...]) -> Topology:
        starts = [0, *(stitch.start for stitch in route)]
        stops = [*(stitch.stop for stitch in route), self.anchor(route[-1].back).depth]
        names = [*(stitch.front for stitch in route), route[-1].back]
        return Topology(tuple(map(Run, names, starts, stops)))

    @cached_property
    def _known(self) -> frozenset[Topology]:
        return frozenset(self.topologies)

    def _why_not(self, topology: Topology) -> str:
        """What is wrong with a topology that the family lacks."""
        for run in topology.runs:
            depth = self.anchor(run.anchor).depth
            if run.stop > depth:
                return (
                    f"{topology} runs block {run.stop - 1} of {run.anchor}, which {self.name} lacks: "
                    f"{run.anchor} has blocks 0 to {depth - 1}"
                )
        first, last = topology.runs[0], topology.runs[-1]
        if first.start != 0 or last.stop != self.anchor(last.anchor).depth:
            return (
                f"{topology} leaves blocks out: it must begin with block 0 of {first.anchor} and "
                f"end with block {self.anchor(last.anchor).depth - 1} of {last.anchor}"
            )
        for stitch in topology.stitches:
            if stitch not in self._layers:
                return (
                    f"{topology} needs the stitch {stitch.name}, which {self.name} lacks; "
                    f"`edgestitch show {self.name}` lists its topologies"
                )
        most = max(len(known.stitches) for known in self.topologies)
        return (
            f"{topology} has {len(topology.stitches)} stitches, topologies of {self.name} have "
            f"{'one' if most == 1 else most} at most; `edgestitch show {self.name}` lists them"
        )


def _check_rule(stitching: Stitching, anchors: tuple[Anchor, ...]) -> None:
    depths = ", ".join(f"{a.name} {list(a.stages) if a.stages else a.depth}" for a in anchors)
    if stitching.rule == "staged":
        numbers = {anchor.num_stages for anchor in anchors}
        if len(numbers) > 1:
            raise ValueError(f"staged stitching needs anchors of as many stages, found {depths}")
        beyond = [stage for stage in stitching.stages if stage >= min(numbers)]
        if beyond:
            raise ValueError(
                f"stitching.stages names stage {beyond[0]}, the anchors have stages 0 to "
                f"{min(numbers) - 1}"
            )
        return
    if any(len(anchor.stages) > 1 for anchor in anchors):
        raise ValueError(
            f"{stitching.rule} stitching is for networks without stages, found {depths}; "
            'write rule = "staged"'
        )
    if stitching.rule == "paired" and len({anchor.depth for anchor in anchors}) > 1:
        raise ValueError(
            f'paired stitching needs anchors of equal depth, found {depths}; rule = "staged" joins '
            "unequal ones"
        )
    if stitching.rule == "two-way":
        for small, large in pairwise(anchors):
            two_way_stitches(small.depth, large.depth)


def _two_way_routes(up: _Group, down: _Group) -> Iterator[tuple[Stitch, ...]]:
    """To the large anchor; to the small one; there and back, from either (SN-Netv2, section 3.2)."""
    rise: list[Pair] = [pair for pairs in up.layers for pair in pairs]
    fall: list[Pair] = [pair for pairs in down.layers for pair in pairs]
    small, large = up.front, up.back
    yield from ((_stitch(small, pair, large),) for pair in rise)
    yield from ((_stitch(large, pair, small),) for pair in fall)
    for out, home in chained(fall, rise):
        yield _stitch(large, out, small), _stitch(small, home, large)
    for out, home in chained(rise, fall):
        yield _stitch(small, out, large), _stitch(large, home, small)


def _stitch(front: Anchor, pair: Pair, back: Anchor) -> Stitch:
    return Stitch(front.name, pair[0] + 1, back.name, pair[1])


def normalized_range(family: Family) -> tuple[float, float]:
    """Smallest and largest value that a normalised pixel can have."""
    pairs = list(zip(family.mean, family.std, strict=True))
    return min(-m / s for m, s in pairs), max((1 - m) / s for m, s in pairs)
