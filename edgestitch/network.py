"""Stitched networks: every segment of a family in one module, assembled into topologies."""

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import anchor as anchors
from .artifact import load_tensors, save_tensors, tensor_digest
from .complexity import AtomComplexity, Complexity
from .errors import ArtifactError
from .family import Family, Mode
from .pretrained import build_anchors
from .stitch import Layout, StitchingLayer
from .topology import Stitch, Topology

T = TypeVar("T")
KIND = "stitch network"
VERSION = 2


class StitchNetwork(nn.Module):
    """All atoms of a family, or of a slice of it; a topology is a selection of them.

    `assemble` is the only walk over a network: forward, size, export and compilation use it.
    """

    def __init__(
        self,
        family: Family,
        atoms: Mapping[str, nn.Module],
        layouts: Mapping[str, Layout],
        topologies: tuple[Topology, ...] | None = None,
    ) -> None:
        super().__init__()
        self.family = family
        self.topologies = topologies or family.topologies
        """What can be assembled: all topologies of the family, but for a slice."""
        self.atoms = nn.ModuleDict(atoms)
        self.layouts = dict(layouts)
        """How each anchor lays out what passes between its blocks."""

    @property
    def mode(self) -> Mode:
        """How stitched paths are computed: `corrected`, or `reference` as the authors' code does."""
        return self.family.mode

    def assemble(self, topology: Topology | str) -> nn.Sequential:
        """The network of a topology, [B, C, H, W] to logits [B, classes]; it shares all weights.

        Raises:
            ValueError: the family has no such topology, or it was left out of the slice.
        """
        topology = self.family.topology(topology)
        if topology not in self.topologies:
            raise ValueError(
                f"{topology} was left out of this slice of {self.family.name}, which has "
                f"{', '.join(map(str, self.topologies))}; export it again with that topology"
            )
        return self.chain(self.family.atoms(topology))

    def slice(self, topologies: Iterable[Topology | str]) -> "StitchNetwork":
        """The network of these topologies alone; it shares their weights.

        Raises:
            ValueError: none is given, or one that this network lacks.
        """
        kept = tuple(dict.fromkeys(self.family.topology(topology) for topology in topologies))
        if not kept:
            raise ValueError("a slice needs a topology at least")
        needed = {name for topology in kept for name, _ in self.assemble(topology).named_children()}
        atoms = {name: atom for name, atom in self.atoms.items() if name in needed}
        sliced = StitchNetwork(self.family, atoms, self.layouts, kept)
        sliced.training = self.training
        return sliced

    def chain(self, atoms: Iterable[str]) -> nn.Sequential:
        """The named atoms one after the other; it shares all weights."""
        chain = nn.Sequential(OrderedDict((name, self.atoms[name]) for name in atoms))
        chain.training = self.training
        return chain

    def forward(self, images: Tensor, topology: Topology | str) -> Tensor:
        logits: Tensor = self.assemble(topology)(images)
        return logits

    def tensors(self) -> dict[str, np.ndarray]:
        """Every parameter and buffer by name, on the host."""
        return {name: t.detach().cpu().numpy() for name, t in self.state_dict().items()}

    @property
    def digest(self) -> str:
        """SHA-256 of the weights; artifacts use it to say which network they are about."""
        return tensor_digest(self.tensors())


def build_network(
    family: Family, *, pretrained: bool = False, weights: Mapping[str, Path] | None = None
) -> StitchNetwork:
    """A family's network: anchors from timm, stitching layers with random weights.

    With `pretrained` the anchors' weights come from timm's hub, but for those that `weights` gives
    a file, by anchor.

    Raises:
        ArtifactError: a file cannot be read or does not fit its anchor, or the hub is out of reach.
    """
    models, _ = build_anchors(family, pretrained=pretrained, weights=weights)
    return join(family, models)


def join(family: Family, models: Mapping[str, nn.Module]) -> StitchNetwork:
    """The network over a family's timm models, by anchor, whose parameters it shares.

    Raises:
        ValueError: two anchors do not have the same places where they are to be stitched.
    """
    atoms: dict[str, nn.Module] = {}
    parts = {a.name: anchors.take_apart(models[a.name]) for a in family.anchors}
    for name, part in parts.items():
        atoms[f"{name}:stem"] = part.stem
        atoms |= {f"{name}:{index}": block for index, block in enumerate(part.blocks)}
        if family.norm_is_atom and part.norm is not None:
            atoms[f"{name}:norm"] = part.norm
        atoms[f"{name}:head"] = part.bare_head if family.norm_is_atom else part.head
    shapes = {n: anchors.feature_shapes(p, family.input_shape) for n, p in parts.items()}
    for name, stitches in family.stitches.items():
        atoms[name] = _stitching_layer(family, stitches, parts, shapes)
    network = StitchNetwork(family, atoms, {name: part.layout for name, part in parts.items()})
    return _fresh(network)


def _stitching_layer(
    family: Family,
    stitches: Iterable[Stitch],
    parts: Mapping[str, anchors.Parts],
    shapes: Mapping[str, tuple[torch.Size, ...]],
) -> StitchingLayer:
    """The layer that all these stitches can share."""
    widths = set()
    for stitch in stitches:
        ends = [(stitch.front, stitch.stop), (stitch.back, stitch.start)]
        layouts = [parts[name].layout for name, _ in ends]
        places, depths = zip(
            *(
                _places(shapes[name][block], layout)
                for (name, block), layout in zip(ends, layouts, strict=True)
            ),
            strict=True,
        )
        if places[0] != places[1]:
            raise ValueError(
                f"{family.name} cannot stitch {stitch.name}: {stitch.front} has "
                f"{_times(places[0])} places there and {stitch.back} {_times(places[1])}; anchors need "
                "the same patch size, strides and input size"
            )
        widths.add(depths)
    if len(widths) > 1:
        raise ValueError(
            f"{family.name}: the stitches of one layer join different widths, {sorted(widths)}; "
            "choose a smaller window"
        )
    return StitchingLayer(*widths.pop(), *layouts)


def _places(shape: torch.Size, layout: Layout) -> tuple[tuple[int, ...], int]:
    """Where features are (tokens, or rows and columns), and how wide they are."""
    if layout == "nchw":
        return tuple(shape[2:]), shape[1]
    return tuple(shape[1:-1]), shape[-1]


def _times(places: tuple[int, ...]) -> str:
    return "x".join(map(str, places))


def _fresh(network: StitchNetwork) -> StitchNetwork:
    """The network in evaluation mode, without what timm's LeViT remembers of earlier weights."""
    return network.train().eval()


def save_network(network: StitchNetwork, path: Path, **provenance: str) -> str:
    """Writes weights, family and mode as safetensors, and returns the digest of the weights.

    A slice says which topologies it has.
    """
    metadata = {**provenance, "family": msgspec.json.encode(network.family).decode()}
    if network.topologies != network.family.topologies:
        names = [topology.name for topology in network.topologies]
        metadata["topologies"] = msgspec.json.encode(names).decode()
    return save_tensors(KIND, VERSION, metadata, network.tensors(), path)


def load_network(
    path: str | Path, *, family: Family | None = None, digest: str | None = None
) -> StitchNetwork:
    """The network in a file that `save_network` wrote, in evaluation mode on the CPU.

    Raises:
        ArtifactError: the file is missing, damaged, or holds other weights than its family needs.
        ArtifactError: `family`, or the weights' `digest`, is given and the file holds another one.
    """
    path = Path(path)
    metadata, tensors = load_tensors(KIND, VERSION, path)
    if digest is not None and metadata["digest"] != digest:
        raise ArtifactError(
            f"{path} holds other weights ({metadata['digest'][:12]}) than were asked for "
            f"({digest[:12]}); it was altered, or is another network's"
        )
    found = _field("family", metadata.get("family", ""), Family, path)
    kept = _field("topologies", metadata.get("topologies", "[]"), tuple[str, ...], path)
    if family is not None and found.digest != family.digest:
        raise ArtifactError(
            f"{path} holds weights of family {found.name} ({found.digest[:12]}), but "
            f"{family.name} ({family.digest[:12]}) was asked for"
        )
    try:
        with _Unfilled():
            network = build_network(found)
        network = network.slice(kept) if kept else network
        network.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.items()})
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path} does not fit its own family {found.name}: {error}") from error
    wrong = [n for n, t in network.tensors().items() if t.dtype != tensors[n].dtype]
    if wrong:
        raise ArtifactError(
            f"{path} does not fit its own family {found.name}: {wrong[0]} is "
            f"{tensors[wrong[0]].dtype}"
        )
    return _fresh(network)


class _Unfilled(TorchFunctionMode):
    """Leaves new weights as the memory was: the random ones would be replaced at once."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        if func in _RANDOM or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


# `erfinv_` makes uniform numbers normal.
_RANDOM = {torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.erfinv_}


def _field(name: str, content: str, kind: type[T], path: Path) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"{path}: field {name!r} of its header: {error}") from error


def count(network: StitchNetwork) -> Complexity:
    """Multiply-adds, parameters, activations and operators of every atom, on one image.

    Multiply-adds are counted by fvcore as in the stitching papers: a multiply-add is one, a
    LayerNorm five per element, activations and additions nothing. Attention must go through plain
    matrix products for that (fvcore 0.1.5 does not see the fused operator), so it does while
    counting; activations and operators are those of plain attention as well.
    """
    costs: dict[str, AtomComplexity] = {}
    outputs: dict[str, Tensor] = {}  # each atom runs once: what enters it has the same shape always
    fused: list[tuple[Any, bool]] = [
        (m, bool(m.fused_attn)) for m in network.modules() if hasattr(m, "fused_attn")
    ]
    for module, _ in fused:
        module.fused_attn = False
    device = next(network.parameters()).device
    try:
        # Not inference mode: there torch would not take operators apart into those that are run.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # fvcore uses what torch will drop
            from fvcore.nn import FlopCountAnalysis

            for topology in network.topologies:
                x = torch.zeros(1, *network.family.input_shape, device=device)
                for name, atom in network.assemble(topology).named_children():
                    if name not in costs:
                        analysis = FlopCountAnalysis(atom, x)
                        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
                        macs = int(analysis.total())
                        # Second, so that what LeViT computes once and keeps is not counted.
                        with _Operators() as operators:
                            outputs[name] = atom(x)
                        costs[name] = AtomComplexity(
                            macs=macs,
                            params=_num_params(atom),
                            activations=operators.activations,
                            kernels=operators.kernels,
                        )
                    x = outputs[name]
    finally:
        for module, was in fused:
            module.fused_attn = was
    return Complexity(family=network.family.name, family_digest=network.family.digest, atoms=costs)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that compute something, and the elements that they write.

    Views, which give a tensor another shape, and allocations are not among them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = 0
        self.activations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        found = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(found)
        # `aten::_unsafe_view` declares no alias, so memory says what is a view.
        memory = {t.untyped_storage()._cdata for t in read}
        view = all(t.untyped_storage()._cdata in memory for t in written)
        if read and (func._schema.is_mutable or not view):
            self.kernels += 1
            self.activations += sum(t.numel() for t in written if t.is_floating_point())
        return found


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _num_params(atom: nn.Module) -> int:
    """Parameters that take part: LeViT looks its attention biases up once, as tables apart."""
    return sum(
        p.numel() for name, p in atom.named_parameters() if not name.endswith("attention_biases")
    )


def structure(module: nn.Module) -> str:
    """What a module computes but for its weights: equal for modules that compute the same thing."""
    # Paths that are dropped in training at a rate that grows with depth cost the same in use.
    structure = re.sub(r"drop_prob=[0-9.e-]+", "", repr(module))
    tensors = (*module.named_parameters(), *module.named_buffers())
    return f"{structure} {[(name, tuple(tensor.shape)) for name, tensor in tensors]}"
