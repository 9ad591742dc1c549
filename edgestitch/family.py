"""Families: which anchors stitch, by which rule, and all topologies that follow.

Read from recipes in TOML (`calibrate/*.toml`). Nothing here needs torch, so that planning answers
at once on any machine.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from .artifact import Value, read, sha256
from .errors import ArtifactError
from .shipped import shipped
from .topology import Run, Stitch, Topology, paired_windows

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9]*\Z")]


class Anchor(Value, frozen=True, kw_only=True):
    """One pretrained network of a family: a timm model under a short name."""

    name: Name
    model: str
    """timm's name of the model."""
    depth: Positive
    """Number of blocks that stitching can address."""
    options: dict[str, int | float | str | bool] = msgspec.field(default_factory=dict)
    """Keyword arguments for `timm.create_model` beyond the family's own."""
    conv_stem: tuple[Positive, ...] = ()
    """Channels of 3x3 convolutions of stride 2 in place of the patch embedding (Xiao et al. 2021)."""


class Stitching(Value, frozen=True, kw_only=True):
    """The rule that says which pairs of blocks are joined, and which pairs share a layer."""

    rule: Literal["paired"] = "paired"
    window: Positive = 2
    stride: Positive = 1


class Family(Value, frozen=True, kw_only=True, dict=True):
    """Anchors in order of cost, and the rule that joins neighbours."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*\Z")]
    anchors: Annotated[tuple[Anchor, ...], msgspec.Meta(min_length=1)]
    stitching: Stitching = Stitching()
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
        depths = {anchor.depth for anchor in self.anchors}
        if self.stitching.rule == "paired" and len(depths) > 1:
            found = ", ".join(f"{anchor.name} {anchor.depth}" for anchor in self.anchors)
            raise ValueError(f"paired stitching needs anchors of equal depth, found {found}")
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

    @cached_property
    def topologies(self) -> tuple[Topology, ...]:
        """All topologies: the anchors first, then the stitched ones, in the reference's order."""
        whole = tuple(Topology((Run(a.name, 0, a.depth),)) for a in self.anchors)
        stitched = tuple(
            Topology((Run(s.front, 0, s.stop), Run(s.back, s.start, self.anchor(s.back).depth)))
            for s in self._layers
        )
        return whole + stitched

    @cached_property
    def _layers(self) -> dict[Stitch, str]:
        """The stitching layer of every stitch; a layer is named after the first stitch it serves."""
        rule = self.stitching
        return {
            _stitch(front, i, back, k): _stitch(front, pairs[0][0], back, pairs[0][1]).name
            for front, back in pairwise(self.anchors)
            for pairs in paired_windows(front.depth, rule.window, rule.stride)
            for i, k in pairs
        }

    @cached_property
    def stitches(self) -> Mapping[str, tuple[Stitch, ...]]:
        """For each stitching layer, by name, the stitches that share it."""
        shared: dict[str, tuple[Stitch, ...]] = {}
        for stitch, layer in self._layers.items():
            shared[layer] = (*shared.get(layer, ()), stitch)
        return shared

    def anchor(self, name: str) -> Anchor:
        for anchor in self.anchors:
            if anchor.name == name:
                return anchor
        known = ", ".join(anchor.name for anchor in self.anchors)
        raise ValueError(f"{self.name} has no anchor {name!r}; it has {known}")

    def topology(self, topology: Topology | str) -> Topology:
        """The topology, or the one of that name, if the family has it.

        Raises:
            ValueError: it is not one of the family's; the message says which part is wrong.
        """
        if isinstance(topology, str):
            topology = Topology.parse(topology)
        for run in topology.runs:
            depth = self.anchor(run.anchor).depth
            if run.stop > depth:
                raise ValueError(
                    f"{topology} runs block {run.stop - 1} of {run.anchor}, which {self.name} lacks: "
                    f"{run.anchor} has blocks 0 to {depth - 1}"
                )
        first, last = topology.runs[0], topology.runs[-1]
        if first.start != 0 or last.stop != self.anchor(last.anchor).depth:
            raise ValueError(
                f"{topology} leaves blocks out: it must begin with block 0 of {first.anchor} and "
                f"end with block {self.anchor(last.anchor).depth - 1} of {last.anchor}"
            )
        for stitch in topology.stitches:
            if stitch not in self._layers:
                raise ValueError(
                    f"{topology} needs the stitch {stitch.name}, which {self.name} lacks; "
                    f"`edgestitch show {self.name}` lists its topologies"
                )
        if len(topology.runs) > 2:
            raise ValueError(
                f"{topology} has {len(topology.stitches)} stitches, topologies of {self.name} have one "
                f"at most; `edgestitch show {self.name}` lists them"
            )
        return topology

    def atoms(self, topology: Topology | str) -> tuple[str, ...]:
        """The smallest segments of a topology in order: stem, single blocks, stitching layers, head."""
        topology = self.topology(topology)
        names = [f"{topology.runs[0].anchor}:stem"]
        for run, stitch in zip(topology.runs, (*topology.stitches, None), strict=True):
            names += [f"{run.anchor}:{block}" for block in range(run.start, run.stop)]
            if stitch is not None:
                names.append(self._layers[stitch])
        names.append(f"{topology.runs[-1].anchor}:head")
        return tuple(names)


def cut(chains: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Each chain of atoms as the fewest segments such that each segment is used whole or not at all.

    Two atoms stay together where every chain that has one has the other right beside it. So no
    weight is compiled twice, and removing any border would break a chain.
    """
    chains = tuple(dict.fromkeys(chains))
    ends = ("", "")
    following: dict[str, set[str]] = {}
    leading: dict[str, set[str]] = {}
    for chain in chains:
        for before, after in pairwise((ends[0], *chain, ends[1])):
            following.setdefault(before, set()).add(after)
            leading.setdefault(after, set()).add(before)

    def joined(before: str, after: str) -> bool:
        return following[before] == {after} and leading[after] == {before}

    segments = {}
    for chain in chains:
        parts = [[chain[0]]]
        for before, after in pairwise(chain):
            if joined(before, after):
                parts[-1].append(after)
            else:
                parts.append([after])
        segments[chain] = tuple(tuple(part) for part in parts)
    return segments


def segment_name(atoms: tuple[str, ...]) -> str:
    """A segment's name: its atoms, consecutive blocks as one run (`ti:stem+ti:0:6`)."""
    parts: list[str] = []
    run: Run | None = None
    for atom in atoms:
        anchor, _, block = atom.partition(":")
        if not block.isdigit():
            run = None
            parts.append(atom)
        elif run is not None and run.anchor == anchor and run.stop == int(block):
            run = Run(anchor, run.start, run.stop + 1)
            parts[-1] = run.name
        else:
            run = Run(anchor, int(block), int(block) + 1)
            parts.append(atom)
    return "+".join(parts)


# --- recipes ---------------------------------------------------------------------------------


class Training(Value, frozen=True, kw_only=True):
    """How networks are trained: AdamW, a warm-up, then a cosine to zero."""

    epochs: Positive
    batch_size: Positive = 256
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NotNegative = 0.05
    warmup_epochs: NotNegative = 1.0
    label_smoothing: Share = 0.0
    shift: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Largest random shift of an image, in pixels, each way."""
    flip: bool = False
    """Whether images are mirrored at random."""
    erase: Share = 0.0
    """Probability that a random rectangle of an image is blanked."""


class Initialization(Value, frozen=True, kw_only=True):
    """Least squares for the stitching layers."""

    images: Positive = 10_000
    mode: Literal["joint", "reference"] = "joint"
    """`joint`: one solve over all stitches that share a layer; `reference`: mean of their solutions."""


class Finetuning(Training, frozen=True, kw_only=True):
    """One random topology a step, with distillation from the largest anchor as it was alone."""

    distillation: Share = 0.5
    """Weight of the teacher's part of the loss."""
    temperature: PositiveFloat = 1.0
    """Of the teacher's soft labels."""


class Recipe(Value, frozen=True, kw_only=True):
    """A family, and how its weights are made."""

    family: Family
    dataset: Literal["fashion-mnist", "toy", "none"] = "none"
    seed: int = 0
    anchors: dict[str, Training] = msgspec.field(default_factory=dict)
    """Training of anchors that have no pretrained weights, by anchor."""
    initialize: Initialization = Initialization()
    finetune: Finetuning | None = None

    def __post_init__(self) -> None:
        for name in self.anchors:
            self.family.anchor(name)


def load_recipe(recipe: str | Path) -> Recipe:
    """The shipped recipe of that name, or the one in a TOML file.

    Raises:
        ArtifactError: no such recipe; or an unknown key, a wrong type or an impossible value in it.
    """
    path = Path(recipe)
    if path.suffix != ".toml":
        path = shipped("calibrate") / f"{recipe}.toml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml")))
            raise ArtifactError(
                f"no family {str(recipe)!r}; shipped are {known}; a recipe of your own is given as "
                "a path that ends in .toml"
            )
    try:
        return msgspec.convert(tomllib.loads(read(path).decode()), Recipe)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is no TOML file: {error}") from error
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{path} is no valid recipe: {error}") from error


def load_family(family: str | Path) -> Family:
    """The family of a shipped recipe, by name, or of a recipe in a TOML file."""
    return load_recipe(family).family


def normalized_range(family: Family) -> tuple[float, float]:
    """Smallest and largest value that a normalised pixel can have."""
    pairs = list(zip(family.mean, family.std, strict=True))
    return min(-m / s for m, s in pairs), max((1 - m) / s for m, s in pairs)


def _stitch(front: Anchor, i: int, back: Anchor, k: int) -> Stitch:
    return Stitch(front.name, i + 1, back.name, k)
