"""Anchors with weights: from timm's hub, or from a file that names tensors as timm does."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import timm
from torch import Tensor, nn

from . import anchor as anchors
from .artifact import Value, read, sha256
from .errors import ArtifactError
from .family import Anchor, Family
from .statefile import is_safetensors, load_state

COUNTER = "num_batches_tracked"
"""What batch normalisation counts while it trains; older files lack it and inference needs it not."""
SHOWN = 10
"""Of tensors that do not fit, those of a kind that a message lists."""

Matching = Literal["names", "order"]


class Weights(Value, frozen=True, kw_only=True):
    """The file that an anchor's weights came from."""

    file: str
    digest: str
    """SHA-256 of the file."""
    matched: Matching
    """By timm's names; or, where the file has other names, by the order of its tensors."""


def build_anchors(
    family: Family, *, pretrained: bool = False, weights: Mapping[str, Path] | None = None
) -> tuple[dict[str, nn.Module], dict[str, Weights]]:
    """The timm model of every anchor, and what is known of each file that weights were taken from.

    An anchor that `weights` names has those of the file; others have those of timm's hub with
    `pretrained`, else random ones.

    Raises:
        ArtifactError: a file cannot be read or does not fit its anchor, or the hub is out of reach.
        ValueError: `weights` names an anchor that the family lacks.
    """
    files = {family.anchor(name).name: Path(path) for name, path in (weights or {}).items()}
    models: dict[str, nn.Module] = {}
    sources: dict[str, Weights] = {}
    for anchor in family.anchors:
        if anchor.name in files:
            models[anchor.name] = anchors.build(anchor, family)
            sources[anchor.name] = load_weights(
                models[anchor.name], files[anchor.name], f"anchor {anchor.name} ({anchor.model})"
            )
        elif pretrained:
            models[anchor.name] = _from_hub(anchor, family)
        else:
            models[anchor.name] = anchors.build(anchor, family)
    return models, sources


def build_teacher(model: str, family: Family, path: Path | None = None) -> nn.Module:
    """A timm model that teaches a family, with the weights in a file or those of timm's hub.

    Raises:
        ArtifactError: the file does not fit, or the hub is out of reach.
        ValueError: timm has no such model, or it refuses the family's classes.
    """
    channels, *_ = family.input_shape
    options: dict[str, Any] = {"in_chans": channels, "num_classes": family.num_classes}
    try:
        teacher: nn.Module = timm.create_model(model, pretrained=path is None, **options)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"timm cannot make the teacher {model!r}: {error}") from error
    except Exception as error:  # the hub's client lets through what its HTTP library raises
        raise ArtifactError(_unreachable(f"the teacher {model}", error, "teacher")) from error
    if path is not None:
        load_weights(teacher, path, f"the teacher {model}")
    return teacher


def load_weights(model: nn.Module, path: Path, what: str) -> Weights:
    """Puts the weights in a file into a model, whole or not at all; messages say `what` it is.

    Raises:
        ArtifactError: the file cannot be read, or its tensors are not the model's.
    """
    found = load_state(path)
    # Safetensors keep no order, so there only names can say what a tensor is.
    state = None if is_safetensors(path) else _by_order(model, found)
    matched: Matching = "names" if state is None else "order"
    state = found if state is None else state
    wrong = _differences(model, state)
    if wrong:
        raise ArtifactError(
            f"{path} does not fit {what}: {'; '.join(wrong)}; give "
            "the weights of that model under timm's names"
        )
    model.load_state_dict({**_counters(model), **state})
    return Weights(file=path.name, digest=sha256(read(path)), matched=matched)


def _by_order(model: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors under the model's names if none has such a name and all agree one by one.

    The last part of each name must agree too: the mean and the variance of a batch normalisation,
    say, have the same shape.
    """
    own = model.state_dict()
    if any(name in own for name in found):
        return None
    ours, theirs = (
        [(name, tensor) for name, tensor in state.items() if _leaf(name) != COUNTER]
        for state in (own, found)
    )
    if [(_leaf(n), t.shape) for n, t in ours] != [(_leaf(n), t.shape) for n, t in theirs]:
        return None
    return {name: tensor for (name, _), (_, tensor) in zip(ours, theirs, strict=True)}


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _counters(model: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if _leaf(name) == COUNTER}


def _differences(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from being the model's, each kind counted and its first ones listed."""
    own = model.state_dict()
    missing = [f"{n} {_shape(t)}" for n, t in own.items() if n not in state and _leaf(n) != COUNTER]
    extra = [f"{name} {_shape(tensor)}" for name, tensor in state.items() if name not in own]
    both = [(name, own[name], state[name]) for name in own if name in state]
    reshaped = [f"{n} {_shape(b)} not {_shape(a)}" for n, a, b in both if a.shape != b.shape]
    retyped = [
        f"{name} {b.dtype}"
        for name, a, b in both
        if a.is_floating_point() != b.is_floating_point() and _leaf(name) != COUNTER
    ]
    kinds = {
        "tensors are missing": missing,
        "are not the model's": extra,
        "have another shape": reshaped,
        "have another type": retyped,
    }
    wrong = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    return [*_classes(model, state), *wrong]


def _classes(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Says so where a classifier has another number of classes."""
    names: Any = model.pretrained_cfg["classifier"]  # type: ignore[index]
    own = model.state_dict()
    for name in [names] if isinstance(names, str) else names or ():
        weight = f"{name}.weight"
        if weight in own and weight in state and len(own[weight]) != len(state[weight]):
            return [
                f"its classifier {name} has {len(state[weight])} classes, not {len(own[weight])}"
            ]
    return []


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _first(names: Iterable[str]) -> str:
    names = list(names)
    more = ", ..." if len(names) > SHOWN else ""
    return ", ".join(islice(names, SHOWN)) + more


def _from_hub(anchor: Anchor, family: Family) -> nn.Module:
    try:
        return anchors.build(anchor, family, pretrained=True)
    except ValueError:
        raise
    except Exception as error:  # the hub's client lets through what its HTTP library raises
        what = f"anchor {anchor.name} ({anchor.model})"
        raise ArtifactError(_unreachable(what, error, anchor.name)) from error


def _unreachable(what: str, error: Exception, name: str) -> str:
    return (
        f"the pretrained weights of {what} are not on this machine and could not be fetched from "
        f"timm's hub ({type(error).__name__}); go online, or give their file with --weights {name}=FILE"
    )
