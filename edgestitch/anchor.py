"""Anchors: timm models taken apart into stem, blocks and head.

The only file that knows the inside of timm's models. The parts are views: they keep timm's own
code and parameter names, so an anchor put together again computes what timm computes, bit by bit.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from .family import Anchor, Family

_STEM = {
    "patch_embed",
    "cls_token",
    "dist_token",
    "reg_token",
    "pos_embed",
    "pos_drop",
    "patch_drop",
    "norm_pre",
}
_HEAD = {"norm", "attn_pool", "fc_norm", "head_drop", "head", "head_dist"}


@dataclass(frozen=True)
class Parts:
    """What stitching needs of an anchor; tokens between blocks are [B, T, width]."""

    stem: nn.Module
    blocks: tuple[nn.Module, ...]
    head: nn.Module
    width: int


class Stem(nn.Module):
    """Images [B, C, H, W] to the tokens [B, T, D] that enter block 0."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = _view(vit, _STEM)

    def forward(self, images: Tensor) -> Tensor:
        vit: Any = self.vit
        tokens: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        return tokens


class Head(nn.Module):
    """Tokens [B, T, D] after the last block to logits [B, classes], the final norm included."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = _view(vit, _HEAD)

    def forward(self, tokens: Tensor) -> Tensor:
        vit: Any = self.vit
        logits: Tensor = vit.forward_head(vit.norm(tokens))
        return logits


def take_apart(model: nn.Module) -> Parts:
    """The parts of a timm model; they share its parameters.

    Raises:
        ValueError: the model is of a kind that cannot be stitched yet.
    """
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"{type(model).__name__} cannot be stitched: anchors must be timm VisionTransformers "
            "(ViT, DeiT and their like)"
        )
    return Parts(Stem(model), tuple(model.blocks), Head(model), model.embed_dim)


def build(anchor: Anchor, family: Family, *, pretrained: bool = False) -> nn.Module:
    """The timm model of an anchor, with random weights or with those of timm's hub.

    Raises:
        ValueError: timm has no such model, or it refuses the options.
    """
    channels, height, width = family.input_shape
    options: dict[str, Any] = {
        "in_chans": channels,
        "img_size": (height, width),
        "num_classes": family.num_classes,
        **anchor.options,
    }
    if anchor.conv_stem:
        options["embed_layer"] = _conv_stem(anchor.conv_stem, channels)
        options["patch_size"] = 1
    try:
        model = timm.create_model(anchor.model, pretrained=pretrained, **options)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"anchor {anchor.name}: timm cannot make {anchor.model!r} with {options}: {error}; "
            "anchors must be plain vision transformers (ViT, DeiT)"
        ) from error
    depth = len(take_apart(model).blocks)
    if depth != anchor.depth:
        raise ValueError(
            f"anchor {anchor.name}: the recipe says depth {anchor.depth}, {anchor.model} with its "
            f"options has {depth} blocks"
        )
    assert isinstance(model, nn.Module)
    return model


def _conv_stem(channels: tuple[int, ...], in_channels: int) -> Any:
    backbone = ConvStem(
        in_chans=in_channels,
        depth=len(channels),
        channels=channels,
        kernel_size=3,
        stride=(2,) * len(channels),
        padding=1,
    )
    return partial(HybridEmbed, backbone=backbone, proj=False)


def _view(model: nn.Module, names: set[str]) -> nn.Module:
    view = copy.copy(model)
    view._modules = {name: part for name, part in model._modules.items() if name in names}
    view._parameters = {name: part for name, part in model._parameters.items() if name in names}
    return view
