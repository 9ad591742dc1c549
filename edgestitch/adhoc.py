"""Families made up from timm's names of models, for anchors that no recipe joins yet.

Models are looked at without weights, on torch's `meta` device, so that a look takes a fraction of a
second whatever their size.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from typing import Any, Literal

import timm
import torch
from timm.models import get_pretrained_cfg

from .anchor import Parts, feature_shapes, take_apart
from .family import Anchor, Family, Stitching

Rule = Literal["paired", "staged", "two-way"]
Shape = tuple[int, int, int]

MOST_SUGGESTIONS = 5
MOST_LOOKS = 15
"""How many models are looked at in search of those that would fit: a few seconds."""
EXAMPLES = "vit_small_patch16_224, swin_tiny_patch4_window7_224, resnet18, levit_192, convnext_tiny"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a family must know of a timm model."""

    model: str
    kind: str
    """timm's class."""
    stages: tuple[int, ...]
    """Blocks of each stage; one number for a network without stages."""
    places: tuple[tuple[int, ...], ...]
    """Rows and columns, or tokens, that leave each stage."""
    input_shape: Shape
    fixed: bool
    """Whether it takes images of that size only."""
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def describe(
    models: Sequence[str],
    *,
    rule: Rule | None = None,
    window: int = 2,
    stride: int = 1,
    nearest: bool = True,
) -> Family:
    """The family of these timm models, cheapest first, under names made from theirs.

    Without a rule plain transformers of equal depth are paired, and all others stitched in every
    stage. Images are as those anchors want them that take one size only, else as the first one
    does. The order is not looked at: `complexity.check_order` does, once costs are counted.

    Raises:
        ValueError: timm has no such model, it cannot be taken apart, or two do not fit each other;
            the message says why and which models would fit.
    """
    looks = _looks(models)
    first = looks[0]
    for other in looks[1:]:
        if why := misfit(first, other):
            raise ValueError(
                f"{first.model} and {other.model} cannot be stitched: {why}; {_advice(first, models)}"
            )
    plain = all(len(look.stages) == 1 for look in looks)
    equal = len({look.stages for look in looks}) == 1
    names = short_names([look.model for look in looks])
    return Family(
        name=_family_name(looks, names),
        anchors=tuple(_anchor(name, look) for name, look in zip(names, looks, strict=True)),
        stitching=Stitching(
            rule=rule or ("paired" if plain and equal else "staged"),
            window=window,
            stride=stride,
            nearest=nearest,
        ),
        input_shape=first.input_shape,
        num_classes=first.num_classes,
        mean=first.mean,
        std=first.std,
    )


@cache
def look_at(model: str, images: Shape | None = None) -> Look:
    """What timm and the model itself say of it; on images of that shape, where it takes any.

    Raises:
        ValueError: it cannot be taken apart, or classifies nothing.
    """
    built, parts, shapes = _take_apart(model, images)
    known = built.pretrained_cfg
    if not known["num_classes"]:
        raise ValueError(
            f"{model} has no classes: its weights are a backbone without a classifier{_tags(model)}"
        )
    stages = tuple(len(stage) for stage in parts.stages)
    ends = [sum(stages[: stage + 1]) for stage in range(len(stages))]
    return Look(
        model=model,
        kind=type(built).__name__,
        stages=stages,
        places=tuple(_places(shapes[end], parts.layout) for end in ends),
        input_shape=_images(known, images),
        fixed=_is_fixed(known),
        num_classes=known["num_classes"],
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
    )


def misfit(first: Look, other: Look) -> str | None:
    """Why two models cannot be anchors of one family; `None` if they can."""
    if len(first.stages) != len(other.stages):
        return f"{_staging(first)}, {_staging(other)}; anchors need as many stages"
    if first.input_shape != other.input_shape:
        return f"they take images of {list(first.input_shape)} and {list(other.input_shape)}"
    if first.num_classes != other.num_classes:
        return f"they know {first.num_classes} and {other.num_classes} classes"
    for what in ("mean", "std"):
        ours, theirs = getattr(first, what), getattr(other, what)
        if max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 1e-3:
            return f"they want images normalised by {what} {list(ours)} and {list(theirs)}"
    for stage, (ours, theirs) in enumerate(zip(first.places, other.places, strict=True)):
        if ours != theirs and min(first.stages[stage], other.stages[stage]) > 1:
            where = f" in stage {stage}" if len(first.stages) > 1 else ""
            return (
                f"they have {_times(ours)} and {_times(theirs)} places{where}, so their patch sizes, "
                "strides or extra tokens differ"
            )
    return None


def short_names(models: Sequence[str]) -> tuple[str, ...]:
    """Names of anchors from what tells the models' names apart; `a1`, `a2` where that says nothing.

    A part that begins with a digit takes the part before it along.
    """
    parts = [model.partition(".")[0].split("_") for model in models]
    shared = set(parts[0]).intersection(*parts[1:])
    own = [_own(words, shared) for words in parts]
    for names in (["".join(words) for words in own], [words[0] for words in own if words]):
        good = all(re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,15}", name) for name in names)
        if good and len(set(names)) == len(models):
            return tuple(names)
    return tuple(f"a{number}" for number in range(1, len(models) + 1))


# --- one model -------------------------------------------------------------------------------


def _looks(models: Sequence[str]) -> list[Look]:
    if len(models) < 2:
        raise ValueError(f"a family needs two anchors or more, got {', '.join(models) or 'none'}")
    models = [_known(model) for model in models]
    twice = [model for index, model in enumerate(models) if model in models[:index]]
    if twice:
        raise ValueError(f"{twice[0]} is given twice; anchors of a family are different networks")
    outcomes = [_look_or_error(model) for model in models]
    looks = [outcome for outcome in outcomes if isinstance(outcome, Look)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, ValueError)]
    if failures:
        advice = _advice(looks[0], models) if looks else f"anchors can be {EXAMPLES}"
        raise ValueError(f"{failures[0]}; {advice}")
    images = next((look for look in looks if look.fixed), looks[0]).input_shape
    return [look if look.input_shape == images else look_at(look.model, images) for look in looks]


def _look_or_error(model: str, images: Shape | None = None) -> Look | ValueError:
    try:
        return look_at(model, images)
    except ValueError as error:
        return error


def _known(model: str) -> str:
    """A name that timm knows; of one that timm has replaced, the new one."""
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {model!r}; {_close(model)}")
    known = _tagged(name)
    if tag and model not in known:
        tags = f"it has {', '.join(known)}" if known else "it has no pretrained weights at all"
        raise ValueError(f"timm has no weights {model!r}; {tags}")
    if name in timm.list_models(name):
        return model
    with torch.device("meta"):
        replacement = _create(name).pretrained_cfg
    return f"{replacement['architecture']}.{replacement['tag']}"


def _close(model: str) -> str:
    close = get_close_matches(model, timm.list_models(), n=MOST_SUGGESTIONS)
    return f"close are {', '.join(close)}" if close else "timm.list_models() lists its models"


def _tagged(name: str) -> list[str]:
    return list(timm.list_models(f"{name}.*", pretrained=True))


def _tags(model: str) -> str:
    """A clause with the tags of a model's weights that classify something, if there are any."""
    tagged = _tagged(model.partition(".")[0])
    able = [t for t in tagged if (known := get_pretrained_cfg(t)) and known.num_classes]
    return f", which {', '.join(able[:MOST_SUGGESTIONS])} have" if able else ""


def _create(model: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that were replaced, and of what models announce
        return timm.create_model(model)


def _take_apart(model: str, images: Shape | None) -> tuple[Any, Parts, tuple[torch.Size, ...]]:
    """A model without weights, its parts, and the shape of what enters and leaves each block."""
    try:
        try:
            return _take_apart_on("meta", model, images)
        except RuntimeError:  # what asks for a value of a weight does not work without any
            return _take_apart_on("cpu", model, images)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{model} cannot be an anchor: {error}") from error


def _take_apart_on(
    device: str, model: str, images: Shape | None
) -> tuple[Any, Parts, tuple[torch.Size, ...]]:
    with torch.device(device):
        built = _create(model)
        parts = take_apart(built)
        return built, parts, feature_shapes(parts, _images(built.pretrained_cfg, images))


def _images(known: Any, wanted: Shape | None) -> Shape:
    """The shape of the images that a model is looked at with."""
    own: Shape = tuple(known["input_size"])
    return own if wanted is None or _is_fixed(known) else wanted


def _is_fixed(known: Any) -> bool:
    return bool(known.get("fixed_input_size"))


def _places(shape: torch.Size, layout: str) -> tuple[int, ...]:
    """Rows and columns, or the number of tokens."""
    return tuple(shape[2:]) if layout == "nchw" else tuple(shape[1:-1])


def _anchor(name: str, look: Look) -> Anchor:
    stages = look.stages if len(look.stages) > 1 else ()
    return Anchor(name=name, model=look.model, depth=sum(look.stages), stages=stages)


# --- words -----------------------------------------------------------------------------------


def _own(words: Sequence[str], shared: set[str]) -> list[str]:
    """The words of a model's name that not all the names have."""
    own: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word not in shared:
            own.append(before + word if not own and word[:1].isdigit() else word)
    return own


def _family_name(looks: Sequence[Look], names: Sequence[str]) -> str:
    """The names of the anchors, behind what their models' names begin with."""
    heads = list(dict.fromkeys(look.model.partition(".")[0].split("_")[0] for look in looks))
    behind = [] if names[0].startswith(heads[0]) else heads
    return "-".join((*behind, *names))


def _staging(look: Look) -> str:
    if len(look.stages) == 1:
        return f"{look.model} is a plain transformer without stages"
    return f"{look.model} has {len(look.stages)} stages"


def _times(places: tuple[int, ...]) -> str:
    return "x".join(map(str, places))


def _advice(first: Look, models: Sequence[str]) -> str:
    """Which models would fit the first one."""
    found = list(_fitting(first, models))
    fitting = ", ".join(found) if found else f"none was found among {MOST_LOOKS} of its kind"
    return f"with {first.model} would fit: {fitting}"


def _fitting(first: Look, models: Sequence[str]) -> Iterator[str]:
    """At most five models of timm that fit the first one, those of the closest names."""
    name = first.model.partition(".")[0]
    module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    given = {name, *models}
    candidates = [m for m in timm.list_models(module=module) if m not in given and _may(first, m)]
    # Names of as many words first: they are other sizes rather than other kinds.
    candidates.sort(
        key=lambda model: (
            model.count("_") != name.count("_"),
            -SequenceMatcher(None, name, model).ratio(),
        )
    )
    found = 0
    for model in candidates[:MOST_LOOKS]:
        look = _look_or_error(model, first.input_shape)
        if isinstance(look, Look) and misfit(first, look) is None:
            yield model
            found += 1
        if found == MOST_SUGGESTIONS:
            return


def _may(first: Look, model: str) -> bool:
    """Whether a model's weights are for the same images and classes, before looking at it."""
    known = get_pretrained_cfg(model)
    return (
        known is not None
        and (known.input_size == first.input_shape or not known.fixed_input_size)
        and known.num_classes == first.num_classes
        and max(abs(a - b) for a, b in zip(known.mean, first.mean, strict=False)) < 1e-3
    )
