"""Stitched networks: every segment of a family in one module, assembled into topologies."""

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from . import anchor as anchors
from .artifact import load_tensors, save_tensors, tensor_digest
from .complexity import AtomComplexity, Complexity
from .errors import ArtifactError
from .family import Family
from .stitch import StitchingLayer
from .topology import Topology

KIND = "stitch network"
VERSION = 1

Mode = Literal["corrected"]
"""How stitched paths are computed. `corrected`: the last anchor's final norm is always applied."""


class StitchNetwork(nn.Module):
    """All atoms of a family; a topology is a selection of them.

    `assemble` is the only walk over a network: forward, size, export and compilation use it.
    """

    def __init__(self, family: Family, atoms: Mapping[str, nn.Module], mode: Mode = "corrected"):
        super().__init__()
        self.family = family
        self.mode = mode
        self.atoms = nn.ModuleDict(atoms)

    def assemble(self, topology: Topology | str) -> nn.Sequential:
        """The network of a topology, [B, C, H, W] to logits [B, classes]; it shares all weights.

        Raises:
            ValueError: the family has no such topology.
        """
        return self.chain(self.family.atoms(topology))

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


def build_network(family: Family, *, pretrained: bool = False) -> StitchNetwork:
    """A family's network: anchors from timm, stitching layers with random weights.

    With `pretrained` the anchors' weights come from timm's hub.
    """
    atoms: dict[str, nn.Module] = {}
    widths = {}
    for anchor in family.anchors:
        parts = anchors.take_apart(anchors.build(anchor, family, pretrained=pretrained))
        widths[anchor.name] = parts.width
        atoms[f"{anchor.name}:stem"] = parts.stem
        atoms |= {f"{anchor.name}:{index}": block for index, block in enumerate(parts.blocks)}
        atoms[f"{anchor.name}:head"] = parts.head
    _require_equal_tokens(family, atoms)
    for name, (stitch, *_) in family.stitches.items():
        atoms[name] = StitchingLayer(widths[stitch.front], widths[stitch.back])
    return StitchNetwork(family, atoms).eval()


def _require_equal_tokens(family: Family, atoms: Mapping[str, nn.Module]) -> None:
    image = torch.zeros(1, *family.input_shape)
    with torch.inference_mode():
        tokens = {a.name: atoms[f"{a.name}:stem"].eval()(image).shape[1] for a in family.anchors}
    if len(set(tokens.values())) > 1:
        found = ", ".join(f"{name} {number}" for name, number in tokens.items())
        raise ValueError(
            f"anchors of {family.name} cut an image into different numbers of tokens ({found}); "
            "they need the same patch size and input size to be stitched"
        )


def save_network(network: StitchNetwork, path: Path, **provenance: str) -> str:
    """Writes weights, family and mode as safetensors, and returns the digest of the weights."""
    family = msgspec.json.encode(network.family).decode()
    metadata = {**provenance, "family": family, "mode": network.mode}
    return save_tensors(KIND, VERSION, metadata, network.tensors(), path)


def load_network(path: str | Path, *, family: Family | None = None) -> StitchNetwork:
    """The network in a file that `save_network` wrote, in evaluation mode on the CPU.

    Raises:
        ArtifactError: the file is missing, damaged, or holds other weights than its family needs.
        ArtifactError: `family` is given and the file holds another one.
    """
    path = Path(path)
    metadata, tensors = load_tensors(KIND, VERSION, path)
    try:
        found = msgspec.json.decode(metadata.get("family", ""), type=Family)
        mode = msgspec.convert(metadata.get("mode"), type=Mode)
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"{path}: field 'family' or 'mode' of its header: {error}") from error
    if family is not None and found.digest != family.digest:
        raise ArtifactError(
            f"{path} holds weights of family {found.name} ({found.digest[:12]}), but "
            f"{family.name} ({family.digest[:12]}) was asked for"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # the random weights are replaced: leave no trace
            network = build_network(found)
        network.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.items()})
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path} does not fit its own family {found.name}: {error}") from error
    wrong = [n for n, t in network.tensors().items() if t.dtype != tensors[n].dtype]
    if wrong:
        raise ArtifactError(
            f"{path} does not fit its own family {found.name}: {wrong[0]} is "
            f"{tensors[wrong[0]].dtype}"
        )
    network.mode = mode
    return network


def count(network: StitchNetwork) -> Complexity:
    """Multiply-adds and parameters of every atom, on one image.

    Counted by fvcore as in the stitching papers: a multiply-add is one, a LayerNorm five per
    element, activations and additions nothing. Attention must go through plain matrix products
    for that (fvcore 0.1.5 does not see the fused operator), so it does while counting.
    """
    costs: dict[str, AtomComplexity] = {}
    outputs: dict[str, Tensor] = {}  # each atom runs once: what enters it has the same shape always
    fused: list[tuple[Any, bool]] = [
        (m, bool(m.fused_attn)) for m in network.modules() if hasattr(m, "fused_attn")
    ]
    for module, _ in fused:
        module.fused_attn = False
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # fvcore uses what torch will drop
            from fvcore.nn import FlopCountAnalysis

            for topology in network.family.topologies:
                x = torch.zeros(1, *network.family.input_shape)
                for name, atom in network.assemble(topology).named_children():
                    if name not in costs:
                        analysis = FlopCountAnalysis(atom, x)
                        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
                        params = sum(p.numel() for p in atom.parameters())
                        costs[name] = AtomComplexity(macs=int(analysis.total()), params=params)
                        outputs[name] = atom(x)
                    x = outputs[name]
    finally:
        for module, was in fused:
            module.fused_attn = was
    return Complexity(family=network.family.name, family_digest=network.family.digest, atoms=costs)
