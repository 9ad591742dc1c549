"""What is known of a family without computing anything: topologies, complexity, accuracy, latency."""

from pathlib import Path
from typing import TypeVar

from .accuracy import Accuracy
from .artifact import Artifact, Value, load
from .complexity import Complexity
from .family import Family
from .profile import Profile, require_equal
from .shipped import shipped

A = TypeVar("A", bound=Artifact)


class Entry(Value, frozen=True, kw_only=True):
    """One topology; `None` where nothing is known."""

    topology: str
    gmacs: float | None
    params: int | None
    top1: float | None
    origin: str | None
    """Of the accuracy: `measured` by this project's own evaluation."""
    latency_ms: float | None = None
    bound_ms: float | None = None


class Overview(Value, frozen=True, kw_only=True):
    family: str
    topologies: tuple[Entry, ...]


def overview(
    family: Family,
    *,
    complexity: Complexity | None = None,
    accuracy: Accuracy | None = None,
    profile: Profile | None = None,
) -> Overview:
    """Every topology of a family in the reference's order, with what the artifacts say of it.

    Raises:
        MismatchError: an artifact is about another family, or two about other networks.
    """
    if complexity is not None:
        complexity.check(family)
    for what, artifact in {"accuracy": accuracy, "profile": profile}.items():
        if artifact is not None:
            require_equal(f"family and {what}", family=(family.name, artifact.family))
    if accuracy is not None and profile is not None:
        require_equal("profile and accuracy", network=(profile.network, accuracy.network))
    rows = []
    for topology in family.topologies:
        known = accuracy and accuracy.by_topology.get(topology.name)
        cost = profile and profile.by_topology.get(topology.name)
        rows.append(
            Entry(
                topology=topology.name,
                gmacs=complexity.gmacs(family, topology) if complexity else None,
                params=complexity.params(family, topology) if complexity else None,
                top1=known.top1 if known else None,
                origin="measured" if known else None,
                latency_ms=cost.latency_ms if cost else None,
                bound_ms=cost.bound_ms if cost else None,
            )
        )
    return Overview(family=family.name, topologies=tuple(rows))


def shipped_complexity(family: Family) -> Complexity | None:
    """The multiply-adds and parameters that ship for a family, if they are of this very family."""
    found = _shipped(Complexity, f"{family.name}.complexity.json")
    return found if found is not None and found.family_digest == family.digest else None


def shipped_accuracy(family: Family) -> Accuracy | None:
    """The accuracies that ship for a family."""
    return _shipped(Accuracy, f"{family.name}.accuracy.json")


def shipped_network(name: str) -> Path:
    """The weights that ship under a name; the file may not exist."""
    return shipped("calibrate") / f"{name}.safetensors"


def _shipped(kind: type[A], name: str) -> A | None:
    path = shipped("calibrate") / name
    return load(kind, path) if path.is_file() else None
