"""The honest baseline: for each budget, networks that were trained for themselves beside ours."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from edgestitch.accuracy import Accuracy
from edgestitch.baseline import Beside, Individual, honest
from edgestitch.profile import Profile
from edgestitch.schedule import Budget, Candidate, candidates, staircase
from edgestitch.zoo import ANCHORS

from .evidence import Evidence
from .markup import Column, folded, framed, paragraph, section, table, text
from .units import decimals, format_points

HEADING = "Beside individually trained networks"

UNKNOWN = (
    "A topology stands beside individually trained networks in accuracy and measured latency, for "
    "each budget: give both an accuracy and a profile."
)
NO_ZOO = "Beside ours stand the family's own anchors alone."
ZOO_FITS = " `edgestitch zoo` measures networks of timm under the same conditions, and --zoo brings them here."
BUDGETS = 6
"""Of a report without a plan: spread over what there is to choose from."""

INSIDE = "*"
"""Marks an accuracy that is not of a network of its own."""


class _Line(NamedTuple):
    """One network of a budget's rows."""

    what: str
    name: str
    top1: str
    points: str
    median: str
    ms: str
    bound: str
    energy: str
    css: str = ""


def individuals_section(evidence: Evidence) -> str:
    """For each budget our topology and its rivals; or the reason why there is nothing beside ours."""
    profile, accuracy = evidence.profile, evidence.accuracy
    if profile is None or accuracy is None:
        return section(HEADING, paragraph(UNKNOWN), "individuals")
    budgets = evidence.plan or _spread(profile, accuracy)
    found = honest(profile, accuracy, budgets, zoo=evidence.zoo, family=evidence.family)
    content = "" if evidence.zoo is not None else paragraph(_no_zoo(evidence))
    content += paragraph(
        "For each budget: our topology, the most accurate individually trained network that keeps "
        "the same bound, and the one that takes nearly the same time. A difference is ours less "
        "theirs; where it is below zero in accuracy, theirs is the better network for that budget."
    )
    content += _sentences(found) + _table(found) + _sources(found)
    return section(HEADING, content, "individuals")


def _no_zoo(evidence: Evidence) -> str:
    family = evidence.family
    fits = family is not None and family.num_classes == ANCHORS.num_classes
    return f"{NO_ZOO}{ZOO_FITS if fits else ''}"


def _spread(profile: Profile, accuracy: Accuracy) -> list[Budget]:
    """Deadlines that the topologies of the front just keep."""
    bounds, _ = staircase(candidates(profile, accuracy))
    last = len(bounds) - 1
    steps = sorted({round(index * last / (BUDGETS - 1)) for index in range(BUDGETS)})
    return [Budget(latency_ms=_rounded_up(bounds[step])) for step in steps]


def _rounded_up(latency_ms: float) -> float:
    """In three digits, as a person would say it; never below, or it would not be kept."""
    step = 10.0 ** (math.floor(math.log10(latency_ms)) - 2)
    return float(f"{math.ceil(latency_ms / step) * step:.3g}")


def _sentences(found: Iterable[Beside]) -> str:
    items = "".join(
        f'<li class="{"worse" if one.worse else ""}"><strong>{text(str(one.budget))}</strong> {text(one.says)}</li>'
        for one in found
    )
    return f'<ul class="verdicts">{items}</ul>'


def _table(found: Sequence[Beside]) -> str:
    heads = (
        ("Budget", "budget"),
        ("", "role"),
        ("Network", "name"),
        ("Top-1 (%)", "number"),
        ("Ours is better by (points)", "number"),
        ("Median (ms)", "number"),
        ("Ours takes longer by (ms)", "number"),
        ("p99 bound (ms)", "number"),
        ("Energy (mJ)", "number"),
    )
    energy = any(_energies(found))
    shown = heads if energy else heads[:-1]
    row = "".join(f'<th scope="col" class="{css}">{text(head)}</th>' for head, css in shown)
    places = decimals([latency for one in found for latency in _latencies(one)])
    groups = "".join(_group(one, places, energy) for one in found)
    return framed(
        "Each budget: our topology and the individually trained networks beside it",
        f"<thead><tr>{row}</tr></thead>{groups}",
        "groups",
    )


def _networks(one: Beside) -> list[Candidate | Individual]:
    return [network for network in (one.ours, one.best, one.nearest) if network is not None]


def _energies(found: Iterable[Beside]) -> list[float | None]:
    return [network.energy_mj for one in found for network in _networks(one)]


def _latencies(one: Beside) -> list[float]:
    return [n.median_ms if isinstance(n, Candidate) else n.latency_ms for n in _networks(one)]


def _group(one: Beside, places: int, energy: bool) -> str:
    lines = list(_lines(one, places))
    body = ""
    for index, line in enumerate(lines):
        head = (
            f'<th scope="rowgroup" class="budget" rowspan="{len(lines)}">{text(str(one.budget))}</th>'
            if index == 0
            else ""
        )
        cells = (
            f'<th scope="row" class="role">{text(line.what)}</th>'
            f'<td class="name">{text(line.name)}</td>'
            + "".join(
                f'<td class="number">{text(cell)}</td>'
                for cell in (line.top1, line.points, line.median, line.ms, line.bound)
            )
            + (f'<td class="number">{text(line.energy)}</td>' if energy else "")
        )
        body += f'<tr class="{line.css}">{head}{cells}</tr>'
    return f"<tbody>{body}</tbody>"


def _lines(one: Beside, places: int) -> Iterable[_Line]:
    if one.ours is None:
        yield _Line("ours", "none fits", "", "", "", "", "", "", "ours")
    else:
        yield _Line(
            what="ours",
            name=one.ours.topology,
            top1=f"{one.ours.top1:.2f}",
            points="",
            median=f"{one.ours.median_ms:.{places}f}",
            ms="",
            bound=f"{one.ours.latency_ms:.{places}f}",
            energy=_millijoules(one.ours.energy_mj),
            css="ours",
        )
    if one.best is None:
        yield _Line("most accurate", "none fits", "", "", "", "", "", "")
    else:
        yield _individual("most accurate", one.best, one.best_points, one.best_ms, places)
    if one.nearest is not None and one.nearest != one.best:
        yield _individual("same time", one.nearest, one.nearest_points, one.nearest_ms, places)


def _individual(
    what: str, network: Individual, points: float | None, ms: float | None, places: int
) -> _Line:
    return _Line(
        what=what,
        name=network.name,
        top1=f"{network.top1:.2f}{'' if network.alone else INSIDE}",
        points="" if points is None else format_points(points),
        median=f"{network.latency_ms:.{places}f}",
        ms="" if ms is None else f"{ms:+.{places}f}".replace("-", "\N{MINUS SIGN}"),
        bound=f"{network.bound_ms:.{places}f}",
        energy=_millijoules(network.energy_mj),
    )


def _millijoules(energy_mj: float | None) -> str:
    return "not measured" if energy_mj is None else f"{energy_mj:.{decimals([energy_mj])}f}"


def _sources(found: Iterable[Beside]) -> str:
    networks = {n.name: n for one in found for n in (one.best, one.nearest) if n is not None}
    if not networks:
        return ""
    columns = [
        Column("Network", list(networks), "name"),
        Column("Costs and accuracy", [n.source for n in networks.values()], "words"),
    ]
    content = folded("Show where these numbers are from", table("Sources", columns))
    if any(not network.alone for network in networks.values()):
        content = (
            paragraph(f"{INSIDE} Inside of the stitched network; alone is not known.") + content
        )
    return content
