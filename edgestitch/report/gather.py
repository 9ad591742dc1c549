"""From files to a page: artifacts recognised by their kind, and what ships for their family."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgestitch.accuracy import Accuracy
from edgestitch.artifact import Artifact, digest, load, read
from edgestitch.catalog import (
    require_accuracy,
    shipped_accuracy,
    shipped_complexity,
    shipped_peers,
)
from edgestitch.complexity import Complexity
from edgestitch.errors import ArtifactError, MismatchError
from edgestitch.family import Family
from edgestitch.peers import Peers
from edgestitch.profile import Profile
from edgestitch.recipe import load_family
from edgestitch.runlog import RunLog
from edgestitch.schedule import Plan
from edgestitch.switches import SwitchMatrix
from edgestitch.zoo import Zoo

FIELDS: dict[str, type[Artifact]] = {
    "accuracy": Accuracy,
    "profile": Profile,
    "plan": Plan,
    "zoo": Zoo,
    "switches": SwitchMatrix,
    "logs": RunLog,
    "complexity": Complexity,
    "peers": Peers,
}
"""Artifacts that a report can be made of, by the argument of `render` that takes them."""

KINDS = {kind.kind: field for field, kind in FIELDS.items()}


class Gathered(NamedTuple):
    """What was in files."""

    found: dict[str, Any]
    """Arguments of `render`."""
    left_out: tuple[str, ...]
    """Files that are artifacts, but of a kind that a report makes nothing of, with that kind."""


class _Kind(msgspec.Struct):
    kind: str


def gather(paths: Iterable[Path], named: Iterable[tuple[str, Path]] = ()) -> Gathered:
    """The artifacts in files: of `paths` any kind, of `named` that of an argument of `render`.

    Raises:
        ArtifactError: a file cannot be read, is no artifact, or of another kind than it is named.
        MismatchError: two files where a report takes one.
    """
    kinds = [(path, _kind(path)) for path in paths]
    known = [(KINDS[kind], path) for path, kind in kinds if kind in KINDS]
    found: dict[str, Any] = {}
    taken: dict[str, Path] = {}
    for field, path in (*known, *named):
        value = load(FIELDS[field], path)
        if field == "logs":
            found[field] = (*found.get(field, ()), value)
        elif field in taken:
            raise MismatchError(
                f"{taken[field]} and {path} both hold {value.kind!r}, and a report is about one; give "
                "one of them"
            )
        else:
            taken[field], found[field] = path, value
    left_out = tuple(f"{path} ({kind})" for path, kind in kinds if kind not in KINDS)
    return Gathered(found, left_out)


def _kind(path: Path) -> str:
    try:
        return msgspec.json.decode(read(path), type=_Kind).kind
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is no edgestitch artifact or is cut short ({error}); write it again"
        ) from error


def with_what_ships(found: Mapping[str, Any], family_name: str | None = None) -> dict[str, Any]:
    """The arguments of `render`, with the family, its complexity and the networks of others.

    A family that is named brings its accuracies with it, where they are of the same network.

    Raises:
        ArtifactError: no family of that name; nothing but the name is given, and no accuracies ship.
    """
    family = _family(found, family_name)
    if family is None:
        return dict(found)
    accuracy = found.get("accuracy")
    if accuracy is None and family_name is not None:
        accuracy = _shipped(found, family) if found else require_accuracy(family.name)
    if accuracy is not None:
        family = family.in_mode(accuracy.mode)
    shipped = {"complexity": shipped_complexity(family), "peers": shipped_peers(family)}
    return {**shipped, **found, "family": family, "accuracy": accuracy}


def _family(found: Mapping[str, Any], name: str | None) -> Family | None:
    """The one that is named, or else that of the artifacts that need one."""
    of = (found.get(field) for field in ("accuracy", "profile", "plan", "complexity"))
    names = [name, *(artifact.family for artifact in of if artifact is not None)]
    given = next((one for one in names if one is not None), None)
    return None if given is None else load_family(given)


def _shipped(found: Mapping[str, Any], family: Family) -> Accuracy | None:
    """The accuracies that ship, unless what was given is of another network or other accuracies."""
    accuracy = shipped_accuracy(family)
    if accuracy is None:
        return None
    about = [found.get("profile"), found.get("plan"), found.get("switches"), *found.get("logs", ())]
    networks = {artifact.network for artifact in about if artifact is not None} - {None}
    plan = found.get("plan")
    if plan is not None and plan.accuracy != digest(accuracy):
        return None
    return accuracy if accuracy.network is None or networks <= {accuracy.network} else None
