"""Checkpoints of the stitching papers' authors, read into networks of timm's anchors.

Their code names tensors otherwise than timm does, keeps its stitching layers in numbered lists, and
stores what follows from the architecture; here rules for each architecture turn one into the other.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from timm.models.levit import Levit
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from . import anchor as anchors
from .errors import ArtifactError
from .family import Anchor, Family
from .network import StitchNetwork, join
from .statefile import load_state

FOLD_TOLERANCE = 1e-6
"""Of the largest output; rounding to float32 costs 3e-8 of it."""
SHOWN = 10
"""Of the tensors that do not fit, how many of each kind a message lists."""


def import_checkpoint(family: Family, path: Path) -> StitchNetwork:
    """The network in a file of the authors' code, in mode `reference` and in evaluation mode.

    Raises:
        ArtifactError: the file cannot be read, or its tensors are not those of the family.
    """
    family = family.in_mode("reference")
    state = _without_lora(load_state(path), path)
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced: leave no trace
        models = {a.name: anchors.build(a, family) for a in family.anchors}
        network = join(family, models)
    ours = dict(_destinations(network, models))
    theirs = _renamed(state, family, models)
    wrong = _differences(ours, theirs, state)
    if any(wrong.values()):
        raise ArtifactError(_misfit(path, family, models, state, wrong))
    with torch.no_grad():
        for name, destination in ours.items():
            destination.copy_(state[theirs[name]].reshape(destination.shape))
    return network.train().eval()  # timm's LeViT forgets in train what it remembers of old weights


def provenance(path: Path) -> dict[str, str]:
    """What a network's file says of the checkpoint that it was made from."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return {"source": path.name, "source_sha256": digest.hexdigest()}


# --- low rank ----------------------------------------------------------------------------------


def _without_lora(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same weights with every low-rank part added to the matrix that it belongs to."""
    folded = dict(state)
    for key in state:
        layer, _, leaf = key.rpartition(".")
        weight, lora_b = f"{layer}.weight", f"{layer}.lora_B"
        if leaf == "lora_A" and weight in state and lora_b in state:
            parts = (folded.pop(weight), folded.pop(key), folded.pop(lora_b))
            folded[weight] = _fold(*parts, layer=layer, path=path)
    return folded


def _fold(weight: Tensor, lora_a: Tensor, lora_b: Tensor, *, layer: str, path: Path) -> Tensor:
    """W + B A / r (SN-Netv2 has alpha = 1), after checking that it maps tokens as its parts do."""
    shapes = [tuple(t.shape) for t in (weight, lora_b, lora_a)]
    rank = lora_a.shape[0] if lora_a.ndim else 0
    if not rank or shapes[1:] != [(*weight.shape[:1], rank), (rank, *weight.shape[1:])]:
        raise ArtifactError(
            f"{path}: the low-rank parts of {layer} do not fit it: weight {list(shapes[0])}, lora_B "
            f"{list(shapes[1])}, lora_A {list(shapes[2])}; fetch the checkpoint again"
        )
    w, a, b = weight.double(), lora_a.double(), lora_b.double()
    folded = (w + b @ a / rank).float()
    x = torch.randn(16, w.shape[1], dtype=w.dtype, generator=torch.Generator().manual_seed(0))
    expected = x @ w.T + x @ a.T @ b.T / rank
    difference, largest = (x @ folded.double().T - expected).abs().max(), expected.abs().max()
    if not difference <= FOLD_TOLERANCE * largest:  # so that NaN is refused too
        raise ArtifactError(
            f"{path}: {layer} maps tokens otherwise once its low-rank part is folded in "
            f"({difference:.1e} off, the largest output is {largest:.1e}); its numbers are too large "
            "or not finite, so fetch the checkpoint again"
        )
    return folded


# --- names -------------------------------------------------------------------------------------


class Naming(NamedTuple):
    """How the authors name what timm has in one kind of anchor."""

    kind: type[nn.Module]
    mark: str
    """What only names of this kind begin with."""
    rename: Callable[[str, Anchor], str | None]
    """timm's name for the authors'; `None` for what is not taken over."""


def _vision_transformer(key: str, anchor: Anchor) -> str:
    return re.sub(r"\.gamma_(\d)$", r".ls\1.gamma", key)


def _swin(key: str, anchor: Anchor) -> str | None:
    """Patch merging ends a stage there and begins the next one in timm, which computes indices."""
    if key.endswith((".relative_position_index", ".attn_mask")):
        return None
    key = re.sub(r"^head\.", "head.fc.", key)
    return re.sub(
        r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", key
    )


def _resnet(key: str, anchor: Anchor) -> str | None:
    """Split batch norm keeps statistics of augmented images apart, which only training uses."""
    return None if ".aux_bn." in key else key


def _levit(key: str, anchor: Anchor) -> str | None:
    """There all stages are one list in which attention and MLP take turns."""
    if key.endswith(".attention_bias_idxs"):
        return None
    places = _levit_places(anchor.stages)
    found = re.match(r"blocks\.(\d+)\.(?:m\.)?", key)
    if found and int(found[1]) < len(places):
        key = f"{places[int(found[1])]}.{key[found.end() :]}"
    for theirs, timms in _LEVIT_PARTS.items():
        key = re.sub(theirs, timms, key)
    return key


_LEVIT_PARTS = {
    r"^patch_embed\.0\.": "stem.conv1.",
    r"^patch_embed\.2\.": "stem.conv2.",
    r"^patch_embed\.4\.": "stem.conv3.",
    r"^patch_embed\.6\.": "stem.conv4.",
    r"\.mlp\.0\.": ".mlp.ln1.",
    r"\.mlp\.2\.": ".mlp.ln2.",
    r"\.(q|proj)\.1\.": r".\1.ln.",
    r"\.[cl]\.(weight|bias)$": r".linear.\1",
}


def _levit_places(stages: tuple[int, ...]) -> list[str]:
    """Where timm has each entry of the authors' list; their subsampling begins a stage in timm."""
    places = []
    for stage, depth in enumerate(stages):
        if stage:
            subsampling = f"stages.{stage}.downsample"
            places += [f"{subsampling}.attn_downsample", f"{subsampling}.mlp"]
        for block in range(depth):
            places += [f"stages.{stage}.blocks.{block}.{part}" for part in ("attn", "mlp")]
    return places


NAMINGS = (
    Naming(SwinTransformer, "layers.0.blocks.0.", _swin),
    Naming(Levit, "blocks.0.m.", _levit),
    Naming(ResNet, "layer1.0.", _resnet),
    Naming(VisionTransformer, "blocks.0.", _vision_transformer),
)


def _renamed(
    state: Mapping[str, Tensor], family: Family, models: Mapping[str, nn.Module]
) -> dict[str, str]:
    """The authors' name of each weight that is taken over, by the name it has here."""
    rules = [_rule(models[anchor.name]) for anchor in family.anchors]
    unused = _unused_layers(family)
    names: dict[str, str] = {}
    for key in state:
        name: str | None = key
        found = re.match(r"anchors\.(\d+)\.(.+)", key)
        if found and int(found[1]) < len(rules):
            position = int(found[1])
            renamed = rules[position](found[2], family.anchors[position])
            name = renamed and f"anchors.{position}.{renamed}"
        if name is not None and not key.startswith(unused):
            names[f"{name}, again" if name in names else name] = key
    return names


def _rule(model: nn.Module) -> Callable[[str, Anchor], str | None]:
    for naming in NAMINGS:
        if isinstance(model, naming.kind):
            return naming.rename
    return lambda key, anchor: key


def _unused_layers(family: Family) -> tuple[str, ...]:
    """What begins the names of layers that the authors' code makes and no topology here uses.

    SN-Netv2 makes one after the last block of its small anchor, before no block of the large one.
    """
    if family.stitching.rule != "two-way":
        return ()
    smaller = family.anchors[:-1]
    return tuple(f"stitch_layers.{2 * i}.{a.depth - 1}." for i, a in enumerate(smaller))


def _destinations(
    network: StitchNetwork, models: Mapping[str, nn.Module]
) -> Iterator[tuple[str, Tensor]]:
    """Every weight that has to be filled, by the authors' name with timm's inside of an anchor."""
    for position, anchor in enumerate(network.family.anchors):
        for name, tensor in models[anchor.name].state_dict().items():
            yield f"anchors.{position}.{name}", tensor
    for layer, places in network.family.layer_places.items():
        prefix = ".".join(map(str, places))
        for name, tensor in network.atoms[layer].state_dict().items():
            yield f"stitch_layers.{prefix}.transform.{name}", tensor


# --- what does not fit -------------------------------------------------------------------------


def _differences(
    ours: Mapping[str, Tensor], theirs: Mapping[str, str], state: Mapping[str, Tensor]
) -> dict[str, list[str]]:
    """What is wrong with the weights of a file, in words, by kind."""
    shapes = [
        f"{key} {_words(state[key])} not {_words(ours[name])}"
        for name, key in theirs.items()
        if name in ours and not _fits(state[key], ours[name])
    ]
    return {
        "tensors are missing": [name for name in ours if name not in theirs],
        "are not the family's": [key for name, key in theirs.items() if name not in ours],
        "have another shape": shapes,
    }


def _fits(found: Tensor, needed: Tensor) -> bool:
    """Whether one can be the other; stitching layers of convolutional anchors are 1x1 convolutions."""
    return (
        found.shape in (needed.shape, (*needed.shape, 1, 1))
        and found.is_floating_point() == needed.is_floating_point()
    )


def _words(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "one number"
    return shape if tensor.is_floating_point() else f"{shape} of {tensor.dtype}"


def _misfit(
    path: Path,
    family: Family,
    models: Mapping[str, nn.Module],
    state: Mapping[str, Tensor],
    wrong: Mapping[str, list[str]],
) -> str:
    listed = "; ".join(
        f"{len(items)} {kind} ({', '.join(items[:SHOWN])}{', ...' if len(items) > SHOWN else ''})"
        for kind, items in wrong.items()
        if items
    )
    found, needed = _kinds(state), [type(model).__name__ for model in models.values()]
    what = f"it holds {_in_words(found)}, the family has {_in_words(needed)}"
    if found == needed:
        what = f"its {_in_words(found)} are not those of the family"
    return f"{path} does not fit {family.name}: {what}; give the family it was trained as; {listed}"


def _kinds(state: Mapping[str, Tensor]) -> list[str]:
    """What each anchor in a file seems to be."""
    kinds: dict[int, str] = {}
    for key in state:
        found = re.match(r"anchors\.(\d+)\.(.+)", key)
        for naming in NAMINGS:
            if found and found[2].startswith(naming.mark):
                kinds.setdefault(int(found[1]), naming.kind.__name__)
                break
    return [kinds[position] for position in sorted(kinds)]


def _in_words(kinds: list[str]) -> str:
    return (
        " and ".join(f"{len(list(same))} {kind}" for kind, same in groupby(kinds)) or "no anchors"
    )
