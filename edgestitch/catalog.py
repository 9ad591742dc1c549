"""What is known of a family without computing anything: topologies, complexity, accuracy, latency."""

from pathlib import Path
from typing import TypeVar

from .accuracy import Accuracy, Origin
from .artifact import Artifact, Value, digest, load
from .complexity import Complexity
from .errors import ArtifactError, MismatchError
from .family import Family, Mode
from .peers import Peers
from .profile import Origin as CostOrigin
from .profile import Profile, require_equal
from .schedule import front_along
from .shipped import shipped

A = TypeVar("A", bound=Artifact)


class Entry(Value, frozen=True, kw_only=True):
    """One topology; `None` where nothing is known."""

    topology: str
    reference_id: int
    """Its number in the authors' code, or what that code would give it."""
    gmacs: float | None
    params: int | None
    top1: float | None
    origin: Origin | None
    """Of the accuracy."""
    pareto: bool | None
    """Whether no topology that is as cheap, by multiply-adds, is more accurate."""
    latency_ms: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    bound_ms: float | None = None
    energy_mj: float | None = None
    latency_origin: CostOrigin | None = None
    """Whether the latency was measured, composed of others that were, or only estimated."""


class Overview(Value, frozen=True, kw_only=True):
    """A family's topologies in the reference's order."""

    family: str
    mode: Mode
    """How stitched paths are computed, where the costs hold."""
    source: str | None
    """Where the accuracies come from."""
    topologies: tuple[Entry, ...]


def overview(
    family: Family,
    *,
    complexity: Complexity | None = None,
    accuracy: Accuracy | None = None,
    profile: Profile | None = None,
) -> Overview:
    """Every topology of a family, with what the artifacts say of it.

    Raises:
        MismatchError: an artifact is about another family, or two about other networks.
    """
    _check(family, complexity, accuracy, profile)
    top1 = {row.topology: row.top1 for row in accuracy.rows} if accuracy else {}
    costs = profile.by_topology if profile else {}
    gmacs = {t.name: complexity.gmacs(family, t) for t in family.topologies} if complexity else {}
    front = set(front_along((n, gmacs[n], top1[n]) for n in gmacs if n in top1))
    rows = []
    for topology in family.topologies:
        name = topology.name
        cost = costs.get(name)
        rows.append(
            Entry(
                topology=name,
                reference_id=family.reference_ids[name],
                gmacs=gmacs.get(name),
                params=complexity.params(family, topology) if complexity else None,
                top1=top1.get(name),
                origin=accuracy.origin if accuracy and name in top1 else None,
                pareto=name in front if name in gmacs and name in top1 else None,
                latency_ms=cost.latency_ms if cost else None,
                latency_low_ms=cost.latency_low_ms if cost else None,
                latency_high_ms=cost.latency_high_ms if cost else None,
                bound_ms=cost.bound_ms if cost else None,
                energy_mj=cost.energy_mj if cost else None,
                latency_origin=cost.origin if cost else None,
            )
        )
    return Overview(
        family=family.name,
        mode=family.mode,
        source=_source(family, accuracy) if accuracy else None,
        topologies=tuple(rows),
    )


def _source(family: Family, accuracy: Accuracy) -> str:
    other = "" if accuracy.mode == family.mode else f", of the {accuracy.mode} network"
    return f"{accuracy.provenance}{other}"


def _check(
    family: Family,
    complexity: Complexity | None,
    accuracy: Accuracy | None,
    profile: Profile | None,
) -> None:
    if complexity is not None:
        complexity.check(family)
    for what, artifact in {"accuracy": accuracy, "profile": profile}.items():
        if artifact is not None:
            require_equal(f"family and {what}", family=(family.name, artifact.family))
    if accuracy is not None and profile is not None:
        accuracy.check("profile", profile.family, profile.network)


def shipped_complexity(family: Family) -> Complexity | None:
    """The multiply-adds and parameters that ship for a family, if they are of this very family."""
    mode = "" if family.mode == "corrected" else f"{family.mode}."
    found = _shipped(Complexity, f"{family.name}.{mode}complexity.json")
    return found if found is not None and found.family_digest == family.digest else None


def shipped_accuracy(family: Family | str) -> Accuracy | None:
    """The accuracies that ship for a family, given by value or name."""
    name = family if isinstance(family, str) else family.name
    return _shipped(Accuracy, f"{name}.accuracy.json")


def require_accuracy(family: str, *, of_plan: str | None = None) -> Accuracy:
    """The accuracies that ship for a family of that name, `of_plan` by the digest in a plan.

    Raises:
        ArtifactError: none do.
        MismatchError: the plan was made from others.
    """
    found = shipped_accuracy(family)
    if found is None:
        known = sorted(path.name.split(".")[0] for path in _folder().glob("*.accuracy.json"))
        raise ArtifactError(
            f"no accuracies ship for {family!r}, they do for {', '.join(known)}; `edgestitch "
            "evaluate` measures those of a network and writes the file to give"
        )
    if of_plan not in (None, digest(found)):
        raise MismatchError(
            f"the plan was not made from the accuracies that ship for {family}; give the file that "
            "it was made from"
        )
    return found


def shipped_peers(family: Family) -> Peers | None:
    """The networks of others that ship for the images and classes of a family."""
    found = _shipped(Peers, "imagenet.peers.json")
    return found if found is not None and found.fits(family) else None


def shipped_network(name: str) -> Path:
    """The weights that ship under a name; the file may not exist."""
    return _folder() / f"{name}.safetensors"


def _shipped(kind: type[A], name: str) -> A | None:
    path = _folder() / name
    return load(kind, path) if path.is_file() else None


def _folder() -> Path:
    return shipped("calibrate")
