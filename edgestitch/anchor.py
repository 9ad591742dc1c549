"""Anchors: timm models taken apart into stem, blocks and head.

The only file that knows the inside of timm's models. The parts are views: they keep timm's own
code and parameter names, so an anchor put together again computes what timm computes, bit by bit.
What a stage does before its first block (patch merging, subsampling) belongs to that block.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from timm.layers.hybrid_embed import HybridEmbed
from timm.models import get_pretrained_cfg
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.levit import Levit
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from .family import Anchor, Family
from .stitch import Layout


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What stitching needs of an anchor; its modules share the model's parameters."""

    layout: Layout
    stem: nn.Module
    """Images to what enters block 0."""
    stages: tuple[tuple[nn.Module, ...], ...]
    norm: nn.Module | None
    """The final norm, where it can be left out; else `None`."""
    head: nn.Module
    """What leaves the last block to logits, the final norm included."""
    bare_head: nn.Module
    """The head without the final norm."""

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        return tuple(block for stage in self.stages for block in stage)


class Part(nn.Module):
    """Some children of a timm model, run by a function of it; it shares their parameters."""

    def __init__(
        self, model: nn.Module, names: Iterable[str], run: Callable[[Any, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.model = _view(model, set(names))
        self._run = run

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self.model, x)


def take_apart(model: nn.Module) -> Parts:
    """The parts of a timm model.

    Raises:
        ValueError: the model is of a kind that cannot be stitched.
    """
    for kind, parts in ARCHITECTURES.items():
        if isinstance(model, kind):
            return parts(model)
    known = ", ".join(kind.__name__ for kind in ARCHITECTURES)
    raise ValueError(
        f"{type(model).__name__} cannot be stitched: edgestitch cannot take it apart into stem, blocks "
        f"and head; it can take {known} of timm apart"
    )


# --- architectures -----------------------------------------------------------------------------


def _vision_transformer(model: VisionTransformer) -> Parts:
    stem = {"patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed", "pos_drop"}
    stem |= {"patch_drop", "norm_pre"}
    head = {"attn_pool", "fc_norm", "head_drop", "head", "head_dist"}

    def embed(vit: Any, images: Tensor) -> Tensor:
        tokens: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        return tokens

    return Parts(
        layout="tokens",
        stem=Part(model, stem, embed),
        stages=(tuple(model.blocks),),
        norm=model.norm,
        head=Part(model, {*head, "norm"}, _norm_and_head),
        bare_head=Part(model, head, _head),
    )


def _swin(model: SwinTransformer | SwinTransformerV2) -> Parts:
    return Parts(
        layout="nhwc",
        stem=Part(model, {"patch_embed"}, lambda swin, images: swin.patch_embed(images)),
        stages=tuple(_behind(stage.downsample, stage.blocks) for stage in model.layers),
        norm=model.norm,
        head=Part(model, {"norm", "head"}, _norm_and_head),
        bare_head=Part(model, {"head"}, _head),
    )


def _levit(model: Levit) -> Parts:
    def embed(levit: Any, images: Tensor) -> Tensor:
        features: Tensor = levit.stem(images)
        return features if levit.use_conv else features.flatten(2).transpose(1, 2)

    head = Part(model, {"head", "head_dist"}, _head)
    return Parts(
        layout="nchw" if model.use_conv else "tokens",
        stem=Part(model, {"stem"}, embed),
        stages=tuple(_behind(stage.downsample, stage.blocks) for stage in model.stages),
        norm=None,
        head=head,
        bare_head=head,
    )


def _resnet(model: Any) -> Parts:
    def embed(resnet: Any, images: Tensor) -> Tensor:
        features: Tensor = resnet.maxpool(resnet.act1(resnet.bn1(resnet.conv1(images))))
        return features

    head = Part(model, {"global_pool", "fc"}, _head)
    return Parts(
        layout="nchw",
        stem=Part(model, {"conv1", "bn1", "act1", "maxpool"}, embed),
        stages=tuple(
            tuple(layer) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)
        ),
        norm=None,
        head=head,
        bare_head=head,
    )


def _efficientnet(model: EfficientNet) -> Parts:
    def classify(net: Any, features: Tensor) -> Tensor:
        logits: Tensor = net.forward_head(net.bn2(net.conv_head(features)))
        return logits

    head = Part(model, {"conv_head", "bn2", "global_pool", "classifier"}, classify)
    return _mobile(model, head)


def _mobilenet_v3(model: MobileNetV3) -> Parts:
    names = {"global_pool", "conv_head", "norm_head", "act2", "flatten", "classifier"}
    return _mobile(model, Part(model, names, _head))


def _mobile(model: Any, head: nn.Module) -> Parts:
    return Parts(
        layout="nchw",
        stem=Part(model, {"conv_stem", "bn1"}, lambda net, images: net.bn1(net.conv_stem(images))),
        stages=tuple(tuple(stage) for stage in model.blocks),
        norm=None,
        head=head,
        bare_head=head,
    )


def _convnext(model: ConvNeXt) -> Parts:
    def classify(net: Any, features: Tensor) -> Tensor:
        logits: Tensor = net.forward_head(net.norm_pre(features))
        return logits

    head = Part(model, {"norm_pre", "head"}, classify)
    return Parts(
        layout="nchw",
        stem=Part(model, {"stem"}, lambda net, images: net.stem(images)),
        stages=tuple(_behind(stage.downsample, stage.blocks) for stage in model.stages),
        norm=None,
        head=head,
        bare_head=head,
    )


ARCHITECTURES: dict[type[nn.Module], Callable[[Any], Parts]] = {
    VisionTransformer: _vision_transformer,
    SwinTransformer: _swin,
    SwinTransformerV2: _swin,
    ResNet: _resnet,
    Levit: _levit,
    EfficientNet: _efficientnet,
    MobileNetV3: _mobilenet_v3,
    ConvNeXt: _convnext,
}


def _head(model: Any, features: Tensor) -> Tensor:
    logits: Tensor = model.forward_head(features)
    return logits


def _norm_and_head(model: Any, features: Tensor) -> Tensor:
    logits: Tensor = model.forward_head(model.norm(features))
    return logits


def _behind(downsample: Any, blocks: Any) -> tuple[nn.Module, ...]:
    """The blocks of a stage, the first one behind what the stage does before it."""
    first, *rest = blocks
    if not isinstance(downsample, nn.Identity):
        first = nn.Sequential(downsample, first)
    return (first, *rest)


def _view(model: nn.Module, names: set[str]) -> nn.Module:
    view = copy.copy(model)
    for kind in ("_modules", "_parameters", "_buffers"):
        members = getattr(model, kind)
        setattr(view, kind, {name: part for name, part in members.items() if name in names})
    return view


# --- models ------------------------------------------------------------------------------------


def build(anchor: Anchor, family: Family, *, pretrained: bool = False) -> nn.Module:
    """The timm model of an anchor, with random weights or with those of timm's hub.

    Raises:
        ValueError: timm has no such model, it refuses the options, or its blocks are not as the
            recipe says.
    """
    options = _options(anchor, family)
    if pretrained:
        _check_pretrained(anchor, family)
    try:
        model = timm.create_model(anchor.model, pretrained=pretrained, **options)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"anchor {anchor.name}: timm cannot make {anchor.model!r} with {options}: {error}"
        ) from error
    found = tuple(len(stage) for stage in take_apart(model).stages)
    if found != (anchor.stages or (anchor.depth,)):
        said = f"stages {list(anchor.stages)}" if anchor.stages else f"depth {anchor.depth}"
        raise ValueError(
            f"anchor {anchor.name}: the recipe says {said}, {anchor.model} with its options has "
            f"{f'stages {list(found)}' if len(found) > 1 else f'depth {found[0]}'}"
        )
    assert isinstance(model, nn.Module)
    return model


def _options(anchor: Anchor, family: Family) -> dict[str, Any]:
    """Keyword arguments for `timm.create_model`."""
    channels, height, width = family.input_shape
    options: dict[str, Any] = {"in_chans": channels, "num_classes": family.num_classes}
    known = get_pretrained_cfg(anchor.model)
    if known is not None and known.fixed_input_size:
        options["img_size"] = (height, width)
    options |= anchor.options
    if anchor.conv_stem:
        options["embed_layer"] = _conv_stem(anchor.conv_stem, channels)
        options["patch_size"] = 1
    return options


def _check_pretrained(anchor: Anchor, family: Family) -> None:
    """Raises unless the pretrained weights were made for the family's images and classes."""
    known = get_pretrained_cfg(anchor.model)
    if known is None:
        return
    wrong = []
    if known.num_classes != family.num_classes:
        wrong.append(f"{known.num_classes} classes, not {family.num_classes}")
    if known.fixed_input_size and known.input_size != family.input_shape:
        wrong.append(f"images of {list(known.input_size)}, not {list(family.input_shape)}")
    for what in ("mean", "std"):
        theirs, ours = getattr(known, what), getattr(family, what)
        if len(theirs) == len(ours) and max(map(_apart, theirs, ours)) > 1e-3:
            wrong.append(f"{what} {list(theirs)}, not {list(ours)}")
    if wrong:
        raise ValueError(
            f"anchor {anchor.name}: the pretrained weights of {anchor.model} are for "
            f"{'; '.join(wrong)} as {family.name} says; anchors of a family must agree, so choose "
            "other weights (timm's tag behind the dot) or change the recipe"
        )


def _apart(a: float, b: float) -> float:
    return abs(a - b)


def feature_shapes(parts: Parts, input_shape: tuple[int, ...]) -> tuple[torch.Size, ...]:
    """The shape, for one image, of what enters each block, and last of what leaves the last one."""
    x = torch.zeros(1, *input_shape)
    with torch.inference_mode():
        x = parts.stem.eval()(x)
        if parts.layout == "tokens" and len(parts.stages) == 1:
            return (x.shape,) * (len(parts.blocks) + 1)  # a plain transformer keeps its shape
        shapes = [x.shape]
        for block in parts.blocks:
            x = block.eval()(x)
            shapes.append(x.shape)
    return tuple(shapes)


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
